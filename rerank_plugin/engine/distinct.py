"""Score equal pairs once: those of a call by their texts, those of a chunk by their token ids.

A matrix product may give equal rows results that differ in their last bits, and documents that are
read alike must keep their input order: they share one logit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.scores import Logits, ScoringError
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.inputs import Pair


def distinct_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], npt.NDArray[np.intp]]:
    """Return the distinct pairs of a call, sorted, and for each pair its index among them."""
    distinct = sorted(set(pairs))
    index = {pair: i for i, pair in enumerate(distinct)}
    return distinct, np.array([index[pair] for pair in pairs], np.intp)


@dataclass(frozen=True)
class EncodedPairs:
    """A chunk of pairs, encoded, with equal ones once."""

    #: The distinct windows to score; a document that is not read in windows is one window.
    windows: list[EncodedPair]
    #: For each distinct document the index of its first window, `[documents]`.
    starts: npt.NDArray[np.intp]
    #: For each pair the index of its document in `starts`, `[pairs]`.
    rows: npt.NDArray[np.intp]

    @classmethod
    def from_pairs(cls, pairs: Sequence[Pair], encoder: PairEncoder) -> Self:
        """Encode pairs."""
        encoded = encoder.windows(pairs)
        keys = [tuple(window.key for window in windows) for windows in encoded]
        # Sorted, so that batches do not depend on the order of a request.
        documents = dict(sorted(zip(keys, encoded, strict=True), key=itemgetter(0)))
        index = {key: row for row, key in enumerate(documents)}
        return cls(
            windows=[window for windows in documents.values() for window in windows],
            starts=np.cumsum([0, *map(len, documents.values())])[:-1],
            rows=np.array([index[key] for key in keys], np.intp),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def pair_counts(self) -> npt.NDArray[np.intp]:
        """Return how many pairs are done with each window, all with their document's first one."""
        counts = np.zeros(len(self.windows), np.intp)
        counts[self.starts] = np.bincount(self.rows, minlength=len(self.starts))
        return counts

    def pair_logits(self, window_logits: Logits) -> Logits:
        """Return the logits of the pairs, `[pairs]`: of each document its best window's.

        Raises:
            ScoringError: a logit is not a finite number.
        """
        logits: Logits = np.maximum.reduceat(window_logits, self.starts)[self.rows]
        broken = logits[~np.isfinite(logits)]
        if len(broken):
            raise ScoringError(
                f"the model returned {broken[0]} for {len(broken)} of {len(logits)} pairs: its "
                "weights or its precision are broken, try dtype float32"
            )
        return logits
