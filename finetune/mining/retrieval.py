"""Candidates for negatives: what retrieval finds for a query, and several retrievers fused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..data.corpus import Places

Scores = npt.NDArray[np.float32]

#: In a fusion a rank counts 1 / (RANK_CONSTANT + rank), after Cormack, Clarke and Büttcher 2009.
RANK_CONSTANT = 60


@dataclass(frozen=True)
class Candidates:
    """What was found for a query, best first: places in the corpus and scores, `[candidates]`."""

    places: Places
    scores: Scores


class Retriever(Protocol):
    """What finds candidates in a corpus."""

    def search(self, queries: Sequence[str], count: int) -> list[Candidates]:
        """At most `count` candidates for each query, equal scores in the corpus's order."""
        ...

    def score(self, queries: Sequence[str], places: Sequence[Sequence[int]]) -> list[Scores]:
        """The scores of given passages for each query, as a search would give them."""
        ...


def best_first(places: Places, scores: Scores) -> Candidates:
    """Candidates in the order of falling scores; equal ones in the corpus's order."""
    order = np.lexsort((places, -scores))
    return Candidates(places[order].astype(np.int64), scores[order].astype(np.float32))


def fuse(lists: Sequence[Candidates], count: int) -> Candidates:
    """One list of several by reciprocal rank (Cormack, Clarke and Büttcher 2009).

    A passage scores the sum of 1 / (60 + its rank from 1) over the lists that have it, whatever
    the scales of their scores.
    """
    if len(lists) == 1:
        return lists[0]
    sums: dict[int, float] = {}
    for found in lists:
        for rank, place in enumerate(found.places.tolist(), 1):
            sums[place] = sums.get(place, 0.0) + 1 / (RANK_CONSTANT + rank)
    fused = best_first(np.array(list(sums), np.int64), np.array(list(sums.values()), np.float32))
    return Candidates(fused.places[:count], fused.scores[:count])
