"""Which queries are held out of training, and which of those choose a model or report on it."""

from collections.abc import Iterable, Sequence, Set

from rerank_plugin.errors import InputError

from .groups import query_hash, query_key

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


def split_by_query(
    queries: Sequence[str], *, wanted: int | None, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of the groups to train on and of those held out; no query text on both sides.

    Which queries are held out depends on the seed and their own text: adding groups to a data set
    leaves the others on their sides.
    """
    keys = [query_key(query) for query in queries]
    dealt = dealt_keys(keys, seed)
    return sides(keys, set(dealt[: held_out_count(len(dealt), wanted)]))


def halves(queries: Sequence[str], *, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the groups that choose a model and of those that report what it is worth.

    The gain of a model that was chosen for its gain flatters it: the queries that report it must
    not be those that chose it. One query alone has to do both.
    """
    keys = [query_key(query) for query in queries]
    dealt = dealt_keys(keys, ~seed)
    if len(dealt) < 2:
        return list(range(len(keys))), list(range(len(keys)))
    return sides(keys, set(dealt[len(dealt) // 2 :]))


def dealt_keys(keys: Iterable[str], seed: int) -> list[str]:
    """The distinct ones of queries' keys, in an order that depends on their text and the seed."""
    return sorted(set(keys), key=lambda key: query_hash(key, seed))


def sides(keys: Sequence[str], second: Set[str]) -> tuple[list[int], list[int]]:
    """Indices of the queries whose keys are not in a set, and of those whose keys are."""
    found: tuple[list[int], list[int]] = ([], [])
    for index, key in enumerate(keys):
        found[key in second].append(index)
    return found
