"""Score encoded pairs: the one forward pass of training, evaluation and serving."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.engine.cpu.products import ROW_MULTIPLE
from rerank_plugin.engine.distinct import EncodedPairs
from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.fused_layers import fuse_layers
from rerank_plugin.engine.layout import Layout
from rerank_plugin.engine.packing import (
    Inputs,
    equal_batches,
    pack,
    pair_costs,
    prefix_batches,
    prepare_packing,
    row_cost,
)
from rerank_plugin.engine.padding import batches_by_length, pad
from rerank_plugin.engine.schedule import Schedule
from rerank_plugin.engine.scores import Logits
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.inputs import Pair
from rerank_plugin.model.adapters import ActiveAdapter, Adapters
from rerank_plugin.model.families import family_of, first_position

logger = logging.getLogger(__name__)

#: The maximum cost of a scoring batch in tokens, by device: a GPU needs more work at once.
TOKEN_BUDGET = {"cuda": 65_536, "mps": 16_384, "cpu": 4_096}

#: The smallest budget that is halved when a batch does not fit the memory is twice this.
SMALLEST_BUDGET = 512

#: Pairs that are encoded and scored together: enough to share texts and to fill batches evenly.
PAIRS_AT_ONCE = 4_096

#: The same for a GPU, which would be idle while more are encoded.
GPU_PAIRS_AT_ONCE = 512


def pair_logits(model: nn.Module, batch: Inputs) -> Tensor:
    """Return one float32 logit a pair, `[pairs]`.

    With two labels it is the positive label's logit minus the other's, whose sigmoid is the
    positive label's softmax.
    """
    logits: Tensor = model(**batch).logits.float()
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


class ScoresPairs(Protocol):
    """Anything that scores pairs: a `Reranker`, or the scorer of a model in training."""

    def logits(self, pairs: Sequence[Pair], progress: Callable[[int], Any] | None = None) -> Logits:
        """Return one raw logit a pair, float32 `[pairs]`."""
        ...


def takes_types(model: PreTrainedModel, encoder: PairEncoder) -> bool:
    """Return whether a model is given token types, as a plain call of its tokenizer gives them."""
    if "token_type_ids" not in encoder.tokenizer.model_input_names:
        return False
    if getattr(model.config, "type_vocab_size", 2) < 2:
        return False
    return "token_type_ids" in inspect.signature(model.base_model.forward).parameters


class Scorer:
    """Scores pairs with a model that is on its device already.

    Args:
        model: A sequence classifier with one or two labels; if its family can, it is prepared for
            packed rows.
        encoder: The encoder of its pairs.
        token_budget: The maximum cost of a batch in tokens; default by the model's device.
        trained: The module to call instead of the model: a PEFT model around it.
        adapters: The adapters on the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: PairEncoder,
        *,
        token_budget: int | None = None,
        trained: nn.Module | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.model: Any = model if trained is None else trained
        self.adapters = adapters
        self.encoder = encoder
        self.with_types = takes_types(model, encoder)
        self.packs = prepare_packing(model)
        self.pads = family_of(model.config).masks_padding
        self.causal = family_of(model.config).causal
        self.hidden_size = int(getattr(model.config, "hidden_size", 768))
        self.first_position = first_position(model.config)
        self._token_budget = token_budget
        #: The context of a forward pass. FSDP, which gathers weights in it, needs `no_grad`.
        self.without_gradients: Callable[[], AbstractContextManager[None]] = torch.inference_mode
        #: Whether it may halve its budget alone; processes that share weights would all have to.
        self.adapts_budget = True

    def fuse(self, *, int8: bool = False) -> bool:
        """Make scoring on a CPU faster, where possible; returns whether.

        The model cannot be trained any more.

        Args:
            int8: Whether the products of its layers have weights of 8 bits.
        """
        if self.device.type != "cpu" or not self.packs:
            return False
        active = self.adapters.active if self.adapters else ActiveAdapter()
        return fuse_layers(self.model, active, int8=int8)

    @property
    def token_budget(self) -> int:
        """Return the maximum cost of a batch in tokens."""
        if self._token_budget is None:
            return TOKEN_BUDGET.get(self.device.type, TOKEN_BUDGET["cpu"])
        return self._token_budget

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        device: torch.device = self.model.device
        return device

    def batches(self, pairs: Sequence[EncodedPair]) -> list[list[int]]:
        """Return indices of pairs in batches that cost no more than the budget."""
        if not self.packs:
            lengths = [len(pair) for pair in pairs]
            return list(batches_by_length(lengths, self.token_budget, equal=not self.pads))
        if self.causal:
            return prefix_batches(pairs, self.token_budget, self.hidden_size)
        return equal_batches(self._costs(pairs).tolist(), self.token_budget)

    def cost(self, pairs: Sequence[EncodedPair]) -> float:
        """Return the cost of pairs in one batch, in the tokens that a budget counts."""
        if self.packs and self.causal:
            return row_cost(Layout.with_shared_prefixes(pairs), self.hidden_size)
        return float(self._costs(pairs).sum())

    def _costs(self, pairs: Sequence[EncodedPair]) -> "np.typing.NDArray[np.float64]":
        return pair_costs([len(pair) for pair in pairs], self.hidden_size)

    def inputs(self, pairs: Sequence[EncodedPair]) -> Inputs:
        """Return the model's inputs for one batch, on the CPU."""
        if not self.packs:
            return pad(pairs, self.encoder.pad_id, with_types=self.with_types)
        return pack(
            pairs,
            first_position=self.first_position,
            with_types=self.with_types,
            causal=self.causal,
            multiple=ROW_MULTIPLE if self.device.type == "cpu" else 1,
        )

    def logits(self, pairs: Sequence[Pair], progress: Callable[[int], Any] | None = None) -> Logits:
        """Return the raw logits of pairs in their order, float32 `[pairs]`.

        While the model scores a chunk of pairs, another thread encodes the next one.

        Raises:
            ScoringError: a logit is not a finite number.
        """
        chunks = list(self.chunks(pairs))
        encoded: Iterator[EncodedPairs] = map(self.encode, chunks)
        if len(chunks) > 1:
            encoded = ahead(encoded)
        with evaluating(self.model):
            logits = [self._chunk_logits(chunk, progress) for chunk in encoded]
        return np.concatenate(logits) if logits else np.empty(0, np.float32)

    def _chunk_logits(
        self, encoded: EncodedPairs, progress: Callable[[int], Any] | None = None
    ) -> Logits:
        schedule = Schedule(self)
        job = schedule.add(encoded, schedule.cut(encoded), progress=progress)
        while taken := schedule.take():
            if not schedule.score(taken):
                schedule.put_back(taken)
        return job.future.result()

    def chunks(self, pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
        """Yield the pairs in their order, in chunks that are encoded and scored together."""
        size = PAIRS_AT_ONCE
        if self.device.type == "cuda":
            size = min(size, GPU_PAIRS_AT_ONCE)
        iterator = iter(pairs)
        while chunk := list(islice(iterator, size)):
            yield chunk

    def encode(self, pairs: Sequence[Pair]) -> EncodedPairs:
        """Encode a chunk of pairs."""
        return EncodedPairs.from_pairs(pairs, self.encoder)

    def use(self, adapter: str | None) -> None:
        """Score with one of the model's adapters from now on, or with none."""
        if self.adapters:
            self.adapters.use(adapter)

    def forward(self, pairs: Sequence[EncodedPair]) -> Logits:
        """Return the raw logits of one batch, float32 `[pairs]`."""
        with self.without_gradients():
            batch = on_device(self.inputs(pairs), self.device)
            logits: Logits = pair_logits(self.model, batch).cpu().numpy()
        return logits

    def halve_budget(self) -> bool:
        """Halve the budget after a batch did not fit the memory; false if it is too small."""
        if not self.adapts_budget or self.token_budget // 2 < SMALLEST_BUDGET:
            return False
        self._token_budget = self.token_budget // 2
        torch.cuda.empty_cache()
        logger.warning(
            "out of memory on %s: using batches of %d tokens", self.device, self._token_budget
        )
        return True


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and back into the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def on_device(batch: Inputs, device: torch.device) -> Inputs:
    """Return a batch on a model's device."""
    if device.type == "cpu":
        return batch
    return {name: value.to(device) for name, value in batch.items()}


def ahead(chunks: Iterator[EncodedPairs]) -> Iterator[EncodedPairs]:
    """Yield the same chunks, each encoded in another thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="encoding") as thread:
        following: Future[EncodedPairs | None] = thread.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = thread.submit(next, chunks, None)
            yield chunk
