"""Which queries are held out of training, and which of those choose a model or report on it."""

from collections.abc import Sequence

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
    by_hash = sorted(
        {query_key(query): query_hash(query, seed) for query in queries}.items(),
        key=lambda item: item[1],
    )
    held_out = {key for key, _ in by_hash[: held_out_count(len(by_hash), wanted)]}
    sides: tuple[list[int], list[int]] = ([], [])
    for index, query in enumerate(queries):
        sides[query_key(query) in held_out].append(index)
    return sides


def halves(queries: Sequence[str], *, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the groups that choose a model and of those that report what it is worth.

    The gain of a model that was chosen for its gain flatters it: the queries that report it must
    not be those that chose it. One query alone has to do both.
    """
    keys = sorted({query_key(query) for query in queries}, key=lambda key: query_hash(key, ~seed))
    if len(keys) < 2:
        return list(range(len(queries))), list(range(len(queries)))
    choosing = set(keys[: len(keys) // 2])
    sides: tuple[list[int], list[int]] = ([], [])
    for index, query in enumerate(queries):
        sides[query_key(query) not in choosing].append(index)
    return sides
