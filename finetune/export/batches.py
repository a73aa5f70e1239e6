"""Padded batches of pairs, as arrays for a runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.padding import batches_by_length, pad
from rerank_plugin.engine.scorer import takes_types
from rerank_plugin.engine.scores import Logits
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.inputs import Pair
from rerank_plugin.model.families import family_of
from rerank_plugin.model.loaded import LoadedModel

from .runtime import Batch

#: The largest padded batch in tokens.
TOKEN_BUDGET = 1024


@dataclass(frozen=True)
class PairBatches:
    """Makes the batches of a model."""

    encoder: PairEncoder
    #: Whether the model is given token types.
    with_types: bool
    #: Whether a batch has pairs of different lengths: not where padding changes the logits.
    pads: bool

    @classmethod
    def from_model(cls, loaded: LoadedModel, max_length: int) -> Self:
        """Return what makes the batches of a model, from pairs of at most `max_length` tokens."""
        encoder = PairEncoder(loaded.tokenizer, max_length=max_length)
        pads = family_of(loaded.model.config).masks_padding
        return cls(encoder, takes_types(loaded.model, encoder), pads)

    def batch(self, pairs: Sequence[EncodedPair]) -> Batch:
        """Return a padded batch."""
        inputs = pad(pairs, self.encoder.pad_id, with_types=self.with_types)
        return {name: tensor.numpy() for name, tensor in inputs.items()}

    def each(self, pairs: Sequence[Pair]) -> list[Batch]:
        """Return a batch for each pair."""
        return [self.batch([encoded]) for encoded in self.encoder.encode(pairs)]

    def logits(self, compute: Callable[[Batch], npt.NDArray[Any]], pairs: Sequence[Pair]) -> Logits:
        """Return the logits of pairs, float32 `[pairs]`, in their order.

        Args:
            compute: Returns the logits of a batch, `[pairs, 1]`.
            pairs: The pairs.
        """
        encoded = self.encoder.encode(pairs)
        lengths = [len(pair) for pair in encoded]
        logits = np.zeros(len(pairs), np.float32)
        for rows in batches_by_length(lengths, TOKEN_BUDGET, equal=not self.pads):
            logits[rows] = compute(self.batch([encoded[row] for row in rows]))[:, 0]
        return logits
