"""Ranking metrics of every query, by ir-measures and trec_eval."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures.measures.base import MeanAgg
from ir_measures.providers import FallbackProvider

from rerank_plugin.errors import OptionError

from ..data.batched import batched

#: The metrics of an evaluation, if no others are given.
METRICS = ("ndcg@10", "mrr@10", "map", "hit@1", "hit@3", "recall@10")

#: The metric by which models are compared.
METRIC = "ndcg@10"

#: Spellings that ir-measures has under other names.
METRIC_ALIASES = {"ndcg": "nDCG", "mrr": "RR", "map": "AP", "hit": "Success", "recall": "R"}

#: Both compute metrics in this process; trec_eval has no cut-off for the reciprocal rank.
PROVIDER = FallbackProvider([ir_measures.pytrec_eval, ir_measures.msmarco])

#: Queries that are scored and measured together; enough for their pairs to sort well by length.
BATCH_QUERIES = 256

QueryValues = npt.NDArray[np.float64]


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


@cache
def parse_metric(name: str) -> Any:
    """Return the measure of ir-measures that a name such as `nDCG@10` or `hit@1` means.

    Raises:
        OptionError: no such metric, or one that is no mean over queries.
    """
    kind, at, cut_off = name.partition("@")
    try:
        measure = ir_measures.parse_measure(f"{METRIC_ALIASES.get(kind, kind)}{at}{cut_off}")
        known = PROVIDER.supports(measure) and isinstance(measure.aggregator(), MeanAgg)
    except (AssertionError, NameError, TypeError, ValueError):
        known = False
    if not known:
        problem = f"unknown metric {name!r}; use names such as nDCG@10, RR@10, AP, P@1 or R@10"
        raise OptionError("metrics", problem)
    return measure


def query_metrics(
    queries: Iterable[ScoredQuery], names: Sequence[str] = METRICS
) -> dict[str, QueryValues]:
    """Return metrics of every query, each an array `[queries]`.

    Args:
        queries: The queries.
        names: The names of the metrics.
    """
    measures = {name: parse_metric(name) for name in names}
    batches = [batch_metrics(batch, measures) for batch in batched(queries, BATCH_QUERIES)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def batch_metrics(
    queries: Sequence[ScoredQuery], measures: Mapping[str, Any]
) -> dict[str, QueryValues]:
    """Return metrics of some queries, each an array `[queries]`."""
    run, grades = {}, {}
    for number, query in enumerate(queries):
        # trec_eval breaks ties its own way: ranks in place of scores leave it none.
        ranks = enumerate(ranked_indices(query))
        run[str(number)] = {str(index): float(-rank) for rank, index in ranks}
        judged = enumerate([*query.grades, *query.missed])
        grades[str(number)] = {str(index): int(grade) for index, grade in judged}
    values = {measure: np.zeros(len(queries)) for measure in measures.values()}
    for metric in PROVIDER.evaluator(list(values), grades).iter_calc(run):
        values[metric.measure][int(metric.query_id)] = metric.value
    return {name: values[measure] for name, measure in measures.items()}


def mean_metrics(values: Mapping[str, QueryValues]) -> dict[str, float]:
    """Return the means over queries, and the number of `queries`."""
    means = {name: float(column.mean()) for name, column in values.items()}
    return {**means, "queries": len(next(iter(values.values())))}
