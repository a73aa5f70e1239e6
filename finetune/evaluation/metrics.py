"""Ranking metrics by trec_eval, and the paired comparison of two models."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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

#: Sums of the same numbers in another order may differ in their last bits.
EQUAL = 1e-9

Values = npt.NDArray[np.float64]


class Ranking(NamedTuple):
    """How a query's candidates were scored, and how good they are."""

    #: `[candidates]`
    scores: npt.NDArray[np.float32]
    #: Of every candidate, 0 for a negative.
    grades: Sequence[int]
    #: Grades of judged documents that are not among the candidates.
    missed: Sequence[int] = ()
    #: Whether equal scores rank as the candidates come, as a retriever has put them.
    in_order: bool = False


def best_first(ranking: Ranking) -> npt.NDArray[np.intp]:
    """The places of the candidates, the best one first, `[candidates]`.

    Ties are counted against the better documents, so that a model that gives every candidate the
    same score looks as bad as it is.
    """
    if ranking.in_order:
        return np.argsort(-ranking.scores, kind="stable")
    return np.lexsort((np.asarray(ranking.grades), -ranking.scores))


def query_metrics(rankings: Iterable[Ranking]) -> dict[str, Values]:
    """Every metric for every query, each an array `[queries]`."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for ranking in rankings:
        # trec_eval breaks ties its own way: places leave it none.
        run = {str(index): float(-place) for place, index in enumerate(best_first(ranking))}
        grades = [*ranking.grades, *ranking.missed]
        judged = {str(index): int(grade) for index, grade in enumerate(grades)}
        evaluator = pytrec_eval.RelevanceEvaluator({"query": judged}, TREC_MEASURES)
        found = evaluator.evaluate({"query": run})["query"]
        # trec_eval knows no cut for the reciprocal rank: behind place 10 it counts nothing.
        found["recip_rank"] *= found["recip_rank"] >= 1 / 10
        for name, trec_name in METRICS.items():
            values[name].append(found[trec_name])
    return {name: np.array(column) for name, column in values.items()}


def mean_metrics(values: Mapping[str, Values]) -> dict[str, float]:
    """The means over queries, and how many `queries` there were."""
    means = {name: float(column.mean()) for name, column in values.items()}
    return {**means, "queries": len(next(iter(values.values())))}


def paired_difference(
    before: Mapping[str, Values], after: Mapping[str, Values], *, samples: int = 10_000
) -> dict[str, Any]:
    """The mean of after - before over the same queries, with 95% bootstrap intervals.

    The intervals are the percentiles of means over queries drawn with replacement (Efron 1979).
    `p_value` is that of a two-sided permutation test (Smucker et al. 2007, "A Comparison of
    Statistical Significance Tests for Information Retrieval Evaluation"), `better` and `worse` say
    on how many queries a model wins.
    """
    delta = np.stack([after[name] - before[name] for name in after])
    low, high = bootstrap_interval(delta, samples)
    p_values = permutation_p_values(delta, samples)
    return {
        **dict(zip(after, delta.mean(1).tolist(), strict=True)),
        "queries": delta.shape[1],
        "interval_95": {name: [float(low[i]), float(high[i])] for i, name in enumerate(after)},
        "p_value": dict(zip(after, p_values.tolist(), strict=True)),
        "better": dict(zip(after, (delta > EQUAL).sum(1).tolist(), strict=True)),
        "worse": dict(zip(after, (delta < -EQUAL).sum(1).tolist(), strict=True)),
    }


def permutation_p_values(delta: Values, samples: int) -> Values:
    """How often a mean is as far from 0 when models change sides at random, `[rows]`.

    `delta` are differences, `[rows, queries]`.
    """
    draws = np.random.default_rng(0)
    found = np.abs(delta.mean(1)) - EQUAL
    extreme = np.ones(len(delta))
    for _ in range(samples):
        signs = draws.integers(0, 2, delta.shape[1]) * 2.0 - 1
        extreme += np.abs(delta @ signs) / delta.shape[1] >= found
    p_values: Values = extreme / (samples + 1)
    return p_values


def improvement_probability(before: Values, after: Values, *, samples: int = 2_000) -> float:
    """The share of bootstrap samples of queries over which `after` has the higher mean.

    Queries are paired; values are those of one metric, `[queries]`.
    """
    means = bootstrap_means((after - before)[None], samples)
    return float((means > EQUAL).mean())


def bootstrap_interval(values: Values, samples: int = 10_000) -> Values:
    """The 95% interval of each row's mean over queries, `[rows, queries]` to `[2, rows]`."""
    interval: Values = np.percentile(bootstrap_means(values, samples), (2.5, 97.5), axis=0)
    return interval


def bootstrap_means(values: Values, samples: int) -> Values:
    """Means over queries drawn with replacement, `[rows, queries]` to `[samples, rows]`."""
    queries = values.shape[1]
    draws = np.random.default_rng(0)

    def times() -> Values:
        """How often every query is drawn, which is faster to add up than what is drawn."""
        drawn = draws.integers(queries, size=queries)
        return np.bincount(drawn, minlength=queries).astype(np.float64)

    means: Values = np.stack([values @ times() for _ in range(samples)]) / queries
    return means


def comparison(before: Mapping[str, Values], after: Mapping[str, Values]) -> dict[str, Any]:
    """What `metrics.json` holds: `improved`, `before`, `after` and their paired `difference`."""
    means = mean_metrics(before), mean_metrics(after)
    return {
        "improved": means[1]["ndcg@10"] > means[0]["ndcg@10"] + EQUAL,
        "before": means[0],
        "after": means[1],
        "difference": paired_difference(before, after),
    }
