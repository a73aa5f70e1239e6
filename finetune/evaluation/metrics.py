"""Ranking metrics of every query, by trec_eval."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytrec_eval

#: Our names, and trec_eval's.
METRICS = {
    "ndcg@10": "ndcg_cut_10",
    "mrr@10": "recip_rank",
    "map": "map",
    "hit@1": "success_1",
    "hit@3": "success_3",
    "recall@10": "recall_10",
}

#: What trec_eval is asked for, cuts after a dot.
TREC_MEASURES = {"ndcg_cut.10", "recip_rank", "map", "success.1,3", "recall.10"}

#: The metric by which models are compared.
METRIC = "ndcg@10"

Values = npt.NDArray[np.float64]


class ScoredQuery(NamedTuple):
    """The scores and the grades of a query's candidates."""

    #: `[candidates]`
    scores: npt.NDArray[np.float32]
    #: The grade of every candidate, 0 for a negative.
    grades: Sequence[int]
    #: Grades of judged documents that are not among the candidates.
    missed: Sequence[int] = ()
    #: Whether equal scores rank in the order of the candidates, which a retriever has chosen.
    in_order: bool = False


def ranked_indices(query: ScoredQuery) -> npt.NDArray[np.intp]:
    """Return the indices of the candidates, the best one first, `[candidates]`.

    Of candidates with equal scores the one with the lower grade ranks first, so that a model that
    gives every candidate the same score gets no credit for it.
    """
    if query.in_order:
        return np.argsort(-query.scores, kind="stable")
    return np.lexsort((np.asarray(query.grades), -query.scores))


def query_metrics(queries: Iterable[ScoredQuery]) -> dict[str, Values]:
    """Return every metric of every query, each an array `[queries]`."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for query in queries:
        # trec_eval breaks ties its own way: ranks in place of scores leave it none.
        run = {str(index): float(-rank) for rank, index in enumerate(ranked_indices(query))}
        grades = [*query.grades, *query.missed]
        judged = {str(index): int(grade) for index, grade in enumerate(grades)}
        evaluator = pytrec_eval.RelevanceEvaluator({"query": judged}, TREC_MEASURES)
        found = evaluator.evaluate({"query": run})["query"]
        # trec_eval has no cut-off for the reciprocal rank: below rank 10 it counts as 0.
        found["recip_rank"] *= found["recip_rank"] >= 1 / 10
        for name, trec_name in METRICS.items():
            values[name].append(found[trec_name])
    return {name: np.array(column) for name, column in values.items()}


def mean_metrics(values: Mapping[str, Values]) -> dict[str, float]:
    """Return the means over queries, and the number of `queries`."""
    means = {name: float(column.mean()) for name, column in values.items()}
    return {**means, "queries": len(next(iter(values.values())))}
