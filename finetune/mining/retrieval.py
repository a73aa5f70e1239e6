"""Hits of retrievers, and their fusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..data.corpus import Positions

Scores = npt.NDArray[np.float32]

#: In a fusion a rank counts 1 / (RANK_CONSTANT + rank), after Cormack, Clarke and Büttcher 2009.
RANK_CONSTANT = 60


@dataclass(frozen=True)
class Hits:
    """The passages found for a query, best first: corpus positions and scores, `[hits]`."""

    positions: Positions
    scores: Scores

    def scores_of(self, positions: Sequence[int]) -> Scores:
        """Return the scores of some passages; the lowest one for those that were not found."""
        lowest = float(self.scores.min()) if len(self.scores) else 0.0
        known = dict(zip(self.positions.tolist(), self.scores.tolist(), strict=True))
        return np.array([known.get(position, lowest) for position in positions], np.float32)


class Retriever(Protocol):
    """A search engine over a corpus."""

    def search(self, queries: Sequence[str], count: int) -> list[Hits]:
        """Return at most `count` hits for each query, equal scores in the corpus's order."""
        ...

    def score(self, queries: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Scores]:
        """Return the scores of given passages for each query, as in a search."""
        ...


def best_first(positions: Positions, scores: Scores) -> Hits:
    """Return hits in descending order of scores; equal ones in the corpus's order."""
    order = np.lexsort((positions, -scores))
    return Hits(positions[order].astype(np.int64), scores[order].astype(np.float32))


def fuse(lists: Sequence[Hits], count: int) -> Hits:
    """Fuse lists of hits by reciprocal rank (Cormack, Clarke and Büttcher 2009).

    The score of a passage is the sum of 1 / (60 + rank, from 1) over the lists that have it,
    whatever the scales of their scores.
    """
    if len(lists) == 1:
        return lists[0]
    sums: dict[int, float] = {}
    for hits in lists:
        for rank, position in enumerate(hits.positions.tolist(), 1):
            sums[position] = sums.get(position, 0.0) + 1 / (RANK_CONSTANT + rank)
    fused = best_first(np.array(list(sums), np.int64), np.array(list(sums.values()), np.float32))
    return Hits(fused.positions[:count], fused.scores[:count])
