"""Splits of queries into training, validation and test queries."""

import numpy as np
import numpy.typing as npt

from rerank_plugin.errors import InputError

#: `text_digest` of the queries of groups, `[groups]`: equal for equal queries.
Hashes = npt.NDArray[np.uint64]

#: Indices of groups on one side of a split and on the other, each in ascending order.
Sides = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

#: Fewer queries than this are weak evidence: a mean nDCG@10 over 50 has a standard error of 0.04.
FEW_QUERIES = 50


def held_out_count(queries: int, wanted: int | None) -> int:
    """Return how many of the distinct queries are held out."""
    if queries < 2:
        raise InputError("one query cannot be split: use --eval_data_path")
    if wanted is not None:
        if wanted >= queries:
            raise InputError(
                f"--eval_queries: {wanted} of {queries} queries leave none to train on"
            )
        return wanted
    return max(2 if queries > 2 else 1, min(max(FEW_QUERIES, queries // 20), 500, queries // 5))


def split_by_query(queries: Hashes, *, wanted: int | None, seed: int) -> Sides:
    """Return the indices of the training groups and of those held out; no query is in both.

    Which queries are held out depends on the seed and on their text, so that groups that are added
    to a data set hardly move the others.
    """
    dealt = deal(queries, seed)
    return sides(queries, dealt[: held_out_count(len(dealt), wanted)])


def halves(queries: Hashes, *, seed: int) -> Sides:
    """Return the indices of the validation groups and of the test groups among those held out.

    The model is selected on the validation queries, so its gain on them is biased: the gain is
    measured on the test queries. A single query is used for both.
    """
    dealt = deal(queries, ~seed)
    if len(dealt) < 2:
        return np.arange(len(queries)), np.arange(len(queries))
    return sides(queries, dealt[len(dealt) // 2 :])


def deal(queries: Hashes, seed: int) -> Hashes:
    """Return the distinct queries in an order that depends on their texts and the seed."""
    distinct = np.unique(queries)
    return distinct[np.argsort(mixed(distinct ^ mixed(np.array([seed % 2**64], np.uint64))))]


def mixed(numbers: Hashes) -> Hashes:
    """Return numbers spread over 64 bits, each to a different one.

    This is the finalizer of SplitMix64 (Steele et al. 2014, Fast Splittable Pseudorandom Number
    Generators).
    """
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def sides(queries: Hashes, second: Hashes) -> Sides:
    """Return the indices of groups whose queries are not in `second`, and of those whose are."""
    # By a table, numpy 2.0 overflows with numbers of 64 bits.
    is_second = np.isin(queries, second, kind="sort")
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)
