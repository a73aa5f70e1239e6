"""From encoded pairs to one logit a pair: the one forward of training, evaluation and serving."""

import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.engine.encoder import EncodedPair, Pair, PairEncoder
from rerank_plugin.engine.fused_layers import ROW_MULTIPLE, fuse_layers
from rerank_plugin.engine.packing import Inputs, equal_batches, pack, pair_costs, prepare_packing
from rerank_plugin.errors import RerankError
from rerank_plugin.model.adapters import Adapters, InUse
from rerank_plugin.model.families import family_of, first_position

logger = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]

#: What a scoring batch may cost in tokens, by device: a GPU wants more work at once than a CPU.
TOKEN_BUDGET = {"cuda": 65_536, "mps": 16_384, "cpu": 4_096}

#: Below this a budget that does not fit the memory is not halved any more.
SMALLEST_BUDGET = 512

#: Pairs that are encoded and scored together: enough to share texts and to fill batches evenly.
PAIRS_AT_ONCE = 4_096

#: The same for a GPU, which would stand still while more are encoded.
GPU_PAIRS_AT_ONCE = 512


class ScoringError(RerankError):
    """The model gave something that is no score."""


@dataclass(frozen=True)
class EncodedPairs:
    """Some pairs in their order, as what is scored for them."""

    #: The distinct pairs; a long document has several, its windows, one behind the other.
    distinct: list[EncodedPair]
    #: Where in `distinct` each document begins, `[documents]`.
    starts: npt.NDArray[np.intp]
    #: For every pair its place in `starts`, `[pairs]`.
    places: npt.NDArray[np.intp]

    def pairs_done(self) -> npt.NDArray[np.intp]:
        """How many pairs each of `distinct` stands for: a document's first window for all."""
        done = np.zeros(len(self.distinct), np.intp)
        done[self.starts] = np.bincount(self.places, minlength=len(self.starts))
        return done

    def of_pairs(self, logits: Logits) -> Logits:
        """The logits of pairs, `[pairs]`, out of those of `distinct`.

        Raises:
            ScoringError: one is not a finite number.
        """
        # A document is as good as the best of its windows.
        found: Logits = np.maximum.reduceat(logits, self.starts)[self.places]
        bad = found[~np.isfinite(found)]
        if len(bad):
            raise ScoringError(
                f"the model gave {bad[0]} for {len(bad)} of {len(found)} pairs: its weights or its "
                "precision are broken, try dtype float32"
            )
        return found


def pad(pairs: Sequence[EncodedPair], pad_id: int, *, with_types: bool) -> Inputs:
    """A padded batch as models take it: int64 tensors `[pairs, longest]`, padded on the right."""
    shape = (len(pairs), max(len(pair) for pair in pairs))
    ids, types, mask = np.full(shape, pad_id), np.zeros(shape, int), np.zeros(shape, int)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair)] = pair.ids
        types[row, : len(pair)] = pair.types
        mask[row, : len(pair)] = 1
    batch: Inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if with_types:
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch


def pair_logits(model: nn.Module, batch: Inputs) -> Tensor:
    """One float32 logit a pair, `[pairs]`.

    With two labels it is the positive label's logit minus the other's, whose sigmoid is the
    positive label's softmax.
    """
    logits: Tensor = model(**batch).logits.float()
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def takes_types(model: nn.Module, encoder: PairEncoder) -> bool:
    """Whether a model is given token types: as a plain call of its tokenizer would, if it can."""
    if "token_type_ids" not in encoder.tokenizer.model_input_names:
        return False
    if getattr(model.config, "type_vocab_size", 2) < 2:
        return False
    return "token_type_ids" in inspect.signature(model.forward).parameters


def batches_by_length(
    lengths: Sequence[int], token_budget: int, *, equal: bool = False
) -> Iterator[list[int]]:
    """Indices of pairs in batches of like length, longest first, padded tokens within a budget.

    With `equal`, all pairs of a batch are of the same length, so that nothing is padded.
    """
    batch: list[int] = []
    longest = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        longest = longest or lengths[index]
        full = longest * (len(batch) + 1) > token_budget
        if batch and (full or (equal and lengths[index] != longest)):
            yield batch
            batch, longest = [], lengths[index]
        batch.append(int(index))
    if batch:
        yield batch


class ScoresPairs(Protocol):
    """Anything that scores pairs: a `Reranker`, or the scorer of a model in training."""

    def logits(self, pairs: Sequence[Pair], progress: Callable[[int], Any] | None = None) -> Logits:
        """Return one raw logit a pair, float32 `[pairs]`."""
        ...


class Scorer:
    """Scores pairs with a model that is on its device already.

    Args:
        model: A sequence classifier with one or two labels; if its family can, it is prepared for
            packed rows.
        encoder: The encoder of its pairs.
        token_budget: What a batch may cost in tokens; default by the model's device.
        trained: What is called instead of the model: a PEFT model around it.
        adapters: Those that the model carries.
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
        self.hidden_size = int(getattr(model.config, "hidden_size", 768))
        self.first_position = first_position(model.config)
        self._token_budget = token_budget
        #: What it scores under. FSDP, which gathers weights in the forward, needs `no_grad` here.
        self.without_gradients: Callable[[], AbstractContextManager[None]] = torch.inference_mode
        #: Whether it may cut batches by itself; where processes share weights, all would have to.
        self.adapts_budget = True

    def fuse(self) -> None:
        """Make scoring on a CPU faster, where it can be; the model cannot be trained any more."""
        if self.device.type == "cpu" and self.packs:
            fuse_layers(self.model, self.adapters.in_use if self.adapters else InUse())

    @property
    def token_budget(self) -> int:
        """What a batch may cost in tokens."""
        if self._token_budget is None:
            return TOKEN_BUDGET.get(self.device.type, TOKEN_BUDGET["cpu"])
        return self._token_budget

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def batches(self, pairs: Sequence[EncodedPair]) -> list[list[int]]:
        """The places of some pairs in batches that cost no more than the budget."""
        if not self.packs:
            lengths = [len(pair) for pair in pairs]
            return list(batches_by_length(lengths, self.token_budget, equal=not self.pads))
        return equal_batches(self.costs(pairs), self.token_budget)

    def costs(self, pairs: Sequence[EncodedPair]) -> list[float]:
        """What each pair costs, in the tokens that a budget counts."""
        costs = pair_costs([len(pair) for pair in pairs], self.hidden_size)
        return [float(cost) for cost in costs]

    def inputs(self, pairs: Sequence[EncodedPair]) -> Inputs:
        """The model's inputs for one batch, on the CPU."""
        if not self.packs:
            return pad(pairs, self.encoder.pad_id, with_types=self.with_types)
        return pack(
            pairs,
            first_position=self.first_position,
            with_types=self.with_types,
            multiple=ROW_MULTIPLE if self.device.type == "cpu" else 1,
        )

    def logits(self, pairs: Sequence[Pair], progress: Callable[[int], Any] | None = None) -> Logits:
        """The raw logits of pairs in their order, float32 `[pairs]`.

        Equal pairs of a part are scored once. While the model scores a part, another thread encodes
        the next one.

        Raises:
            ScoringError: a logit is not a finite number.
        """
        parts = list(self.parts(pairs))
        encoded: Iterator[EncodedPairs] = map(self.encode, parts)
        if len(parts) > 1:
            encoded = ahead(encoded)
        found = [part.of_pairs(self._distinct(part, progress)) for part in encoded]
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def parts(self, pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
        """The pairs in their order, as many at a time as are encoded and scored together."""
        at_once = PAIRS_AT_ONCE
        if self.device.type == "cuda":
            at_once = min(at_once, GPU_PAIRS_AT_ONCE)
        left = iter(pairs)
        while part := list(islice(left, at_once)):
            yield part

    def encode(self, part: Sequence[Pair]) -> EncodedPairs:
        """Return some pairs as what is scored for them; those with equal token ids once.

        A product may give equal rows unequal results in their last bits, and texts that a tokenizer
        reads alike must keep their input order.
        """
        index: dict[Pair, int] = {}
        texts = [index.setdefault(pair, len(index)) for pair in part]
        documents = self.encoder.windows(list(index))
        keys = [tuple(window.key for window in document) for document in documents]
        # In an order of their own, so that batches do not depend on the order of a request.
        windows = dict(sorted(zip(keys, documents, strict=True), key=itemgetter(0)))
        rows = {key: row for row, key in enumerate(windows)}
        distinct = [pair for document in windows.values() for pair in document]
        starts = np.cumsum([0, *map(len, windows.values())])[:-1]
        return EncodedPairs(
            distinct, starts, np.array([rows[keys[text]] for text in texts], np.intp)
        )

    def use(self, adapter: str | None) -> None:
        """Score with one of the model's adapters from now on, or with none."""
        if self.adapters:
            self.adapters.use(adapter)

    def forward(self, pairs: Sequence[EncodedPair]) -> Logits:
        """The raw logits of one batch, float32 `[pairs]`."""
        with self.without_gradients():
            batch = on_device(self.inputs(pairs), self.device)
            logits: Logits = pair_logits(self.model, batch).cpu().numpy()
        return logits

    def halve_budget(self) -> bool:
        """Halve what a batch may cost, as the memory has no room for it; false if it is small."""
        if not self.adapts_budget or self.token_budget // 2 < SMALLEST_BUDGET:
            return False
        self._token_budget = self.token_budget // 2
        torch.cuda.empty_cache()
        logger.warning(
            "out of memory on %s: batches are cut to %d tokens", self.device, self._token_budget
        )
        return True

    def _distinct(self, encoded: EncodedPairs, progress: Callable[[int], Any] | None) -> Logits:
        logits = np.empty(len(encoded.distinct), np.float32)
        training = self.model.training
        self.model.eval()
        try:
            self._fill(logits, encoded, progress)
        finally:
            self.model.train(training)
        return logits

    def _fill(
        self, logits: Logits, encoded: EncodedPairs, progress: Callable[[int], Any] | None
    ) -> None:
        """Score batch by batch; what does not fit the memory is cut anew, by half the budget."""
        pairs, done = encoded.distinct, encoded.pairs_done()
        left = deque(self.batches(pairs))
        while left:
            places = left.popleft()
            try:
                logits[places] = self.forward([pairs[place] for place in places])
            except torch.OutOfMemoryError:
                if not self.halve_budget():
                    raise
                rest = [*places, *(place for batch in left for place in batch)]
                cut = self.batches([pairs[place] for place in rest])
                left = deque([rest[i] for i in batch] for batch in cut)
                continue
            if progress:
                progress(int(done[places].sum()))


def on_device(batch: Inputs, device: torch.device) -> Inputs:
    """A batch on a model's device."""
    if device.type == "cpu":
        return batch
    return {name: value.to(device) for name, value in batch.items()}


def ahead(items: Iterator[EncodedPairs]) -> Iterator[EncodedPairs]:
    """The same items, each made in another thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="encoding") as thread:
        coming: Future[EncodedPairs | None] = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
