"""From encoded pairs to one logit a pair: the one forward of training, evaluation and serving."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rerank_plugin.encoding import EncodedPair, Pair, PairEncoder
from rerank_plugin.errors import RerankError

Logits = npt.NDArray[np.float32]

#: Padded tokens in a scoring batch, by device: a GPU wants more work at once than a CPU core.
TOKEN_BUDGET = {"cuda": 65_536, "mps": 16_384, "cpu": 4_096}

#: Pairs that are encoded, sorted by length and scored before the next ones are looked at.
PAIRS_AT_ONCE = 16_384


class ScoringError(RerankError):
    """The model gave something that is no score."""


def pad(pairs: Sequence[EncodedPair], pad_id: int, *, with_types: bool) -> dict[str, Tensor]:
    """A padded batch as models take it: int64 tensors `[pairs, longest]`, padded on the right."""
    shape = (len(pairs), max(len(pair) for pair in pairs))
    ids, types, mask = np.full(shape, pad_id), np.zeros(shape, int), np.zeros(shape, int)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair)] = pair.ids
        types[row, : len(pair)] = pair.types
        mask[row, : len(pair)] = 1
    batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if with_types:
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch


def pair_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
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


def batches_by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of pairs in batches of like length, longest first, padded tokens within a budget."""
    batch: list[int] = []
    longest = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        longest = longest or lengths[index]
        if batch and longest * (len(batch) + 1) > token_budget:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(int(index))
    if batch:
        yield batch


class Scorer:
    """Scores pairs with a model that is on its device already.

    Args:
        model: A sequence classifier with one or two labels, or a PEFT model around one.
        encoder: The encoder of its pairs.
        with_types: Whether the model is given token types, see `takes_types`.
    """

    def __init__(self, model: nn.Module, encoder: PairEncoder, *, with_types: bool) -> None:
        self.model = model
        self.encoder = encoder
        self.with_types = with_types

    @property
    def token_budget(self) -> int:
        """Padded tokens in a batch, for the device that the model is on."""
        device = next(self.model.parameters()).device.type
        return TOKEN_BUDGET.get(device, TOKEN_BUDGET["cpu"])

    def batches(
        self, pairs: Sequence[EncodedPair]
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """The model's inputs for some pairs, on the CPU, each with the places of its pairs."""
        for places in batches_by_length([len(pair) for pair in pairs], self.token_budget):
            part = [pairs[place] for place in places]
            yield places, pad(part, self.encoder.pad_id, with_types=self.with_types)

    def logits(self, pairs: Sequence[Pair], progress: Callable[[int], Any] | None = None) -> Logits:
        """The raw logits of pairs in their order, float32 `[pairs]`; equal pairs are scored once.

        Raises:
            ScoringError: a logit is not a finite number.
        """
        logits = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            places: dict[Pair, int] = {}
            index = [places.setdefault(pair, len(places)) for pair in part]
            logits[start : start + len(part)] = self._distinct(list(places), progress)[index]
        bad = np.flatnonzero(~np.isfinite(logits))
        if len(bad):
            raise ScoringError(
                f"the model gave {logits[bad[0]]} for pair {bad[0]} ({len(bad)} of {len(pairs)} "
                "pairs): its weights or its precision are broken, try dtype float32"
            )
        return logits

    def _distinct(self, pairs: list[Pair], progress: Callable[[int], Any] | None) -> Logits:
        encoded = self.encoder.encode(pairs)
        device = next(self.model.parameters()).device
        logits = np.empty(len(pairs), np.float32)
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for places, batch in self.batches(encoded):
                    batch = {name: tensor.to(device) for name, tensor in batch.items()}
                    logits[places] = pair_logits(self.model, batch).cpu().numpy()
                    if progress:
                        progress(len(places))
        finally:
            self.model.train(training)
        return logits
