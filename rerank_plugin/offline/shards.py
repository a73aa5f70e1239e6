"""Shards: runs of requests in the files of a data path, found and read without the rest."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import SUFFIXES, Line, reading
from rerank_plugin.io.request_tables import TABLE, row_count
from rerank_plugin.io.requests import RerankRequest, parse_request, read_table_requests


@dataclass(frozen=True)
class Shard:
    """Some requests that follow each other in one file."""

    #: Its index among all shards.
    number: int
    path: Path
    #: The number of the first line, or the index of the first row.
    first: int
    #: The number of requests.
    count: int
    #: The position of the first line in the file, in bytes after any decompression.
    offset: int = 0

    @property
    def where(self) -> str:
        """Return the file and the first line or row, for messages."""
        if self.path.name.endswith(TABLE):
            return f"{self.path}[{self.first}]"
        return f"{self.path}:{self.first}"


def find_shards(
    files: Sequence[Path], size: int, progress: Callable[[int], Any] | None = None
) -> list[Shard]:
    """Return the shards of all files, of at most `size` requests each.

    Lines are counted here; who reads a shard parses them.

    Args:
        files: The files.
        size: The number of requests in a shard at most.
        progress: Called with the number of requests in each shard that is found.

    Raises:
        InputError: a file is unreadable, empty, or of another kind.
    """
    shards: list[Shard] = []
    for path in files:
        if path.name.endswith(TABLE):
            runs = table_runs(path, size)
        elif path.name.endswith(SUFFIXES):
            runs = line_runs(path, size)
        else:
            raise InputError(f"{path}: expected .jsonl, .jsonl.gz or {TABLE} with --engine ray")
        before = len(shards)
        for first, count, offset in runs:
            shards.append(Shard(len(shards), path, first, count, offset))
            if progress:
                progress(count)
        if len(shards) == before:
            raise InputError(f"{path}: the file is empty")
    return shards


def table_runs(path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the first row and the number of rows of each shard."""
    rows = row_count(path)
    return ((first, min(size, rows - first), 0) for first in range(0, rows, size))


def line_runs(path: Path, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the first line, the number of lines with a request and the offset of each shard."""
    first = count = start = offset = 0
    with reading(path) as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                if not count:
                    first, start = number, offset
                count += 1
            offset += len(raw)
            if count == size:
                yield first, count, start
                count = 0
    if count:
        yield first, count, start


def read_shard(shard: Shard) -> list[RerankRequest]:
    """Return the requests of a shard.

    Raises:
        InputError: naming the file and the line of a bad request, or the file has changed.
    """
    if shard.path.name.endswith(TABLE):
        requests = list(read_table_requests(shard.path, shard.first, shard.count))
    else:
        requests = [parse_request(line.record(), line.where) for line in shard_lines(shard)]
    if len(requests) != shard.count:
        raise InputError(f"{shard.path}: the file has changed while it was read")
    return requests


def shard_lines(shard: Shard) -> Iterator[Line]:
    """Yield the lines of a shard that are not blank."""
    count = 0
    with reading(shard.path) as file:
        file.seek(shard.offset)
        for number, raw in enumerate(file, shard.first):
            if raw.strip():
                yield Line(shard.path, number, raw.rstrip(b"\r\n"))
                count += 1
            if count == shard.count:
                return
