"""Queries as two models rank them, for reports and for the terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .judged_query import JudgedQueries, JudgedQuery
from .metrics import QueryValues, ranked_indices
from .scoring import Evaluation
from .significance import EQUAL

#: Documents of a ranking that are shown, and characters of each.
DOCUMENTS, CHARACTERS = 3, 400

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Evaluations = tuple[Evaluation, Evaluation]


@dataclass(frozen=True)
class TopDocument:
    """One of the best documents of a ranking."""

    text: str
    relevant: bool
    #: The logit, or a retriever's score.
    score: float


@dataclass(frozen=True)
class TopDocuments:
    """The head of a model's ranking of a query."""

    #: The query's value of the metric by which models are compared.
    value: float
    documents: list[TopDocument]
    #: The rank of the first relevant document, from 1; None without one.
    first_relevant: int | None

    @property
    def summary(self) -> str:
        """The rank of the first relevant document, in words."""
        if self.first_relevant is None:
            return "no relevant document among the candidates"
        return f"first relevant document at rank {self.first_relevant}"


@dataclass(frozen=True)
class ComparedQuery:
    """A query with the best documents of two models."""

    text: str
    before: TopDocuments
    after: TopDocuments
    #: The relevant documents among the candidates.
    relevant: list[str]


def gains(evaluations: Evaluations, metric: str) -> QueryValues:
    """Return what every query gains in a metric from the first model to the second, `[queries]`."""
    before, after = evaluations
    return after.values[metric] - before.values[metric]


def most_improved(evaluations: Evaluations, metric: str, count: int) -> npt.NDArray[np.intp]:
    """Return the indices of the queries that gain most, at most `count`."""
    delta = gains(evaluations, metric)
    best = np.argsort(-delta, kind="stable")[:count]
    return best[delta[best] > EQUAL]


def most_hurt(evaluations: Evaluations, metric: str, count: int) -> npt.NDArray[np.intp]:
    """Return the indices of the queries that lose most, at most `count`."""
    return most_improved((evaluations[1], evaluations[0]), metric, count)


def compared_queries(
    judged: JudgedQueries,
    evaluations: Evaluations,
    metric: str,
    indices: Sequence[int] | npt.NDArray[np.intp],
) -> list[ComparedQuery]:
    """Return some queries as two models rank them.

    Args:
        judged: All queries that were evaluated.
        evaluations: Those of both models, with logits.
        metric: The metric whose values are shown.
        indices: Which queries.
    """
    return [compared_query(judged, evaluations, metric, index) for index in map(int, indices)]


def compared_query(
    judged: JudgedQueries, evaluations: Evaluations, metric: str, index: int
) -> ComparedQuery:
    """Return one query as two models rank it."""
    query = judged[index]
    before, after = (top_documents(model, metric, index, query) for model in evaluations)
    pairs = zip(query.documents, query.labels, strict=True)
    relevant = [excerpt(text) for text, label in pairs if label > 0]
    return ComparedQuery(excerpt(query.query), before, after, relevant)


def top_documents(
    evaluation: Evaluation, metric: str, index: int, query: JudgedQuery
) -> TopDocuments:
    """Return the head of a model's ranking of one query."""
    scored = evaluation.scored_query(index, query)
    order = ranked_indices(scored).tolist()
    relevant = [label > 0 for label in query.labels]
    documents = [
        TopDocument(excerpt(query.documents[i]), relevant[i], float(scored.scores[i]))
        for i in order[:DOCUMENTS]
    ]
    first = next((rank for rank, i in enumerate(order, 1) if relevant[i]), None)
    return TopDocuments(float(evaluation.values[metric][index]), documents, first)


def excerpt(text: str) -> str:
    """Return a text as it is shown, without control characters, which a terminal would obey."""
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + "…"
