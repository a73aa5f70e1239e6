"""The paired comparison of two models: bootstrap intervals and a permutation test."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .metrics import METRIC, QueryValues, mean_metrics

#: Sums of the same numbers in another order may differ in their last bits.
EQUAL = 1e-9

#: Queries of all samples that are drawn at once: memory does not grow with the data.
DRAWN_AT_ONCE = 1_000_000


def paired_difference(
    before: Mapping[str, QueryValues], after: Mapping[str, QueryValues], *, samples: int = 10_000
) -> dict[str, Any]:
    """Return the mean of after - before over the same queries, with 95% bootstrap intervals.

    The intervals are the percentiles of means over queries drawn with replacement (Efron 1979).
    `p_value` is that of a two-sided permutation test (Smucker et al. 2007, "A Comparison of
    Statistical Significance Tests for Information Retrieval Evaluation"); `better` and `worse`
    count the queries on which `after` is better or worse.
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


def permutation_p_values(delta: QueryValues, samples: int) -> QueryValues:
    """Return the two-sided p-value of the mean of each row of differences, `[rows]`.

    It is the share of random swaps of the two models, query by query, whose mean is at least as
    far from 0.

    Args:
        delta: Differences, `[rows, queries]`.
        samples: Swaps that are drawn.
    """
    draws = np.random.default_rng(0)
    observed = np.abs(delta.mean(1)) - EQUAL
    extreme = np.ones(len(delta))
    queries = delta.shape[1]
    for count in batch_sizes(samples, queries):
        signs = draws.integers(0, 2, (count, queries)) * 2.0 - 1
        means = np.abs(signs @ delta.T) / queries
        extreme += (means >= observed).sum(0)
    p_values: QueryValues = extreme / (samples + 1)
    return p_values


def improvement_probability(
    before: QueryValues, after: QueryValues, *, samples: int = 2_000
) -> float:
    """Return the share of bootstrap samples of queries on which `after` has the higher mean.

    Queries are paired; values are those of one metric, `[queries]`.
    """
    means = bootstrap_means((after - before)[None], samples)
    return float((means > EQUAL).mean())


def bootstrap_interval(values: QueryValues, samples: int = 10_000) -> QueryValues:
    """Return the 95% interval of each row's mean over queries, `[rows, queries]` to `[2, rows]`."""
    interval: QueryValues = np.percentile(bootstrap_means(values, samples), (2.5, 97.5), axis=0)
    return interval


def bootstrap_means(values: QueryValues, samples: int) -> QueryValues:
    """Return means over queries drawn with replacement, `[rows, queries]` to `[samples, rows]`."""
    queries = values.shape[1]
    draws = np.random.default_rng(0)
    means = [
        drawn_counts(draws, count, queries) @ values.T / queries
        for count in batch_sizes(samples, queries)
    ]
    return np.concatenate(means)


def drawn_counts(draws: np.random.Generator, samples: int, queries: int) -> QueryValues:
    """Draw queries with replacement; returns how often each was drawn, `[samples, queries]`.

    A product with these counts is faster than a mean of what is drawn.
    """
    drawn = draws.integers(queries, size=(samples, queries))
    drawn += np.arange(samples)[:, None] * queries
    counts = np.bincount(drawn.ravel(), minlength=samples * queries)
    return counts.reshape(samples, queries).astype(np.float64)


def batch_sizes(samples: int, queries: int) -> Iterator[int]:
    """Split a number of samples into batches of `DRAWN_AT_ONCE` queries, or of one sample."""
    size = max(1, DRAWN_AT_ONCE // queries)
    for start in range(0, samples, size):
        yield min(size, samples - start)


def compare_metrics(
    before: Mapping[str, QueryValues], after: Mapping[str, QueryValues], *, metric: str = METRIC
) -> dict[str, Any]:
    """Return the contents of `metrics.json`: `improved`, both means and their paired `difference`.

    Args:
        before: Every metric of every query by the first model, `[queries]`.
        after: The same by the second model.
        metric: The metric that decides whether the second model is an improvement.
    """
    means = mean_metrics(before), mean_metrics(after)
    return {
        "improved": means[1][metric] > means[0][metric] + EQUAL,
        "before": means[0],
        "after": means[1],
        "difference": paired_difference(before, after),
    }
