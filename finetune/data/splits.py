"""Which queries are held out of training, and which of those choose a model or report on it."""

import numpy as np
import numpy.typing as npt

from rerank_plugin.errors import InputError

#: `text_digest` of the queries of groups, `[groups]`: what makes two queries the same.
Hashes = npt.NDArray[np.uint64]

#: Indices of groups on one side of a split and on the other, each in ascending order.
Sides = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

#: Fewer queries than this say little about a model (a mean nDCG@10 over 50 has an error of 0.04).
FEW_QUERIES = 50


def held_out_count(queries: int, wanted: int | None) -> int:
    """How many of the distinct queries are held out."""
    if queries < 2:
        raise InputError("one query alone cannot be split: give --eval_data_path")
    if wanted is not None:
        if wanted >= queries:
            raise InputError(
                f"--eval_queries: {wanted} of {queries} queries leave none to train on"
            )
        return wanted
    return max(2 if queries > 2 else 1, min(max(FEW_QUERIES, queries // 20), 500, queries // 5))


def split_by_query(queries: Hashes, *, wanted: int | None, seed: int) -> Sides:
    """Indices of the groups to train on and of those held out; no query stands on both sides.

    Which queries are held out depends on the seed and their own text: adding groups to a data set
    leaves the others on their sides.
    """
    dealt = deal(queries, seed)
    return sides(queries, dealt[: held_out_count(len(dealt), wanted)])


def halves(queries: Hashes, *, seed: int) -> Sides:
    """Indices of the held-out groups that choose the model, and of those that report its gain.

    The gain of a model that was chosen for its gain flatters it: the queries that report it must
    not be those that chose it. One query alone has to do both.
    """
    dealt = deal(queries, ~seed)
    if len(dealt) < 2:
        return np.arange(len(queries)), np.arange(len(queries))
    return sides(queries, dealt[len(dealt) // 2 :])


def deal(queries: Hashes, seed: int) -> Hashes:
    """The distinct queries in an order that depends on each one's text and the seed."""
    distinct = np.unique(queries)
    return distinct[np.argsort(mixed(distinct ^ mixed(np.array([seed % 2**64], np.uint64))))]


def mixed(numbers: Hashes) -> Hashes:
    """Numbers spread over 64 bits, no two of them to the same one.

    The finalizer of SplitMix64 (Steele et al. 2014, Fast Splittable Pseudorandom Number
    Generators).
    """
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def sides(queries: Hashes, second: Hashes) -> Sides:
    """Indices of the groups whose queries are not in `second`, and of those whose queries are."""
    found = np.isin(queries, second)
    return np.flatnonzero(~found), np.flatnonzero(found)
