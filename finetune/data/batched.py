"""Batches of any iterable."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items of an iterable in lists of at most `size`, as Python 3.12's `batched`."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
