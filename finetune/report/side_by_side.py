"""A query as two models rank it: what reports and terminals show of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..evaluation.judged_query import JudgedQueries, JudgedQuery
from ..evaluation.metrics import Values, ranked_indices
from ..evaluation.scoring import Evaluation
from ..evaluation.significance import EQUAL

METRIC = "ndcg@10"

#: Documents of a ranking that are shown, and characters of each.
PLACES, CHARACTERS = 3, 400

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Two = tuple[Evaluation, Evaluation]


@dataclass(frozen=True)
class Ranked:
    """What a model made of a query."""

    #: nDCG@10.
    value: float
    #: The best documents, by their places among the candidates.
    best: list[int]
    #: The rank of the first relevant document from 1; None where there is none.
    first: int | None


@dataclass(frozen=True)
class SideBySide:
    """A query, and what two models made of it."""

    place: int
    judged: JudgedQuery
    before: Ranked
    after: Ranked

    @property
    def relevant(self) -> list[str]:
        """Return the relevant documents that the query has."""
        pairs = zip(self.judged.documents, self.judged.labels, strict=True)
        return [shortened(text) for text, label in pairs if label > 0]


def gains(evaluations: Two) -> Values:
    """What every query gains in nDCG@10 from the first model to the second, `[queries]`."""
    before, after = evaluations
    return after.values[METRIC] - before.values[METRIC]


def most_improved(evaluations: Two, count: int) -> npt.NDArray[np.intp]:
    """The places of the queries that gain most, at most `count`."""
    delta = gains(evaluations)
    best = np.argsort(-delta, kind="stable")[:count]
    return best[delta[best] > EQUAL]


def most_hurt(evaluations: Two, count: int) -> npt.NDArray[np.intp]:
    """The places of the queries that lose most, at most `count`."""
    return most_improved((evaluations[1], evaluations[0]), count)


def side_by_side(
    judged: JudgedQueries, evaluations: Two, places: Sequence[int] | npt.NDArray[np.intp]
) -> list[SideBySide]:
    """Some queries, by their places."""
    found = []
    for place in map(int, places):
        own = judged[place]
        before, after = (ranked(evaluation, place, own) for evaluation in evaluations)
        found.append(SideBySide(place, own, before, after))
    return found


def ranked(evaluation: Evaluation, place: int, judged: JudgedQuery) -> Ranked:
    """What a model made of one query."""
    ranking = ranked_indices(evaluation.scored_query(place, judged)).tolist()
    first = next((rank for rank, index in enumerate(ranking, 1) if judged.labels[index] > 0), None)
    return Ranked(float(evaluation.values[METRIC][place]), ranking[:PLACES], first)


def first_relevant(ranked: Ranked) -> str:
    """Where a ranking has its first relevant document, in words."""
    if ranked.first is None:
        return "no relevant document among the candidates"
    return f"first relevant document in place {ranked.first}"


def shortened(text: str) -> str:
    """A text as it is shown; a terminal obeys control characters."""
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + "…"
