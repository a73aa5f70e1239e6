"""Groups in a jsonl file, each at hand by the place of its line: nothing of them is in memory."""

import os
from collections.abc import Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path

import numpy as np

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import Line

from .groups import Group, parse_group
from .indexing import BAD, GOOD, LINES, ROW, Rows

#: Size and time of the last change of a file: another pair, another content.
Stamp = tuple[int, int]


class GroupFile:
    """One file of groups and the index of its lines.

    Travels to other processes as what it is made from, not as what it has read.

    Args:
        path: The file, plain or gzipped.
        stamp: Its stamp when it was indexed.
        entry: The folder of its index.
    """

    def __init__(self, path: Path, stamp: Stamp, entry: Path) -> None:
        self.path = path
        self.stamp = stamp
        self.entry = entry
        self.rows = read_rows(entry / GOOD)
        unpacked = entry / LINES
        self._lines = unpacked if unpacked.exists() else path
        self._lines_stamp = stamp_of(unpacked) if unpacked.exists() else stamp
        opened(self._lines, self._lines_stamp)

    def __reduce__(self) -> tuple[type["GroupFile"], tuple[Path, Stamp, Path]]:
        return GroupFile, (self.path, self.stamp, self.entry)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """A hash of the file's contents."""
        return self.entry.name.partition("-")[2]

    def __getitem__(self, index: int) -> Group:
        return parse_group(self._line(self.rows[index]))

    def place(self, index: int) -> str:
        """File and line of a group, for messages."""
        return f"{self.path}:{self.rows['line'][index]}"

    def bad_lines(self) -> Iterator[tuple[Line, InputError]]:
        """The lines that are no groups, and what is wrong with each."""
        for row in read_rows(self.entry / BAD):
            line = self._line(row)
            try:
                parse_group(line)
            except InputError as problem:
                yield line, problem

    def _line(self, row: np.void) -> Line:
        length = int(row["length"])
        file = opened(self._lines, self._lines_stamp)
        if stamp_of(file) == self._lines_stamp:
            raw = read_at(file, int(row["offset"]), length)
            if len(raw) == length:
                return Line(self.path, int(row["line"]), raw.rstrip(b"\r\n"))
        raise changed(self.path)


def read_rows(path: Path) -> Rows:
    """Rows as they stand on disk, read when they are looked at."""
    # Nothing can be mapped of an empty file.
    return np.memmap(path, ROW, mode="r") if path.stat().st_size else np.empty(0, ROW)


def stamp_of(file: Path | FileIO) -> Stamp:
    """The stamp of a file."""
    found = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def changed(path: Path) -> InputError:
    """What is said of a file that is another one than it was."""
    return InputError(f"{path}: the file was changed while it was in use: start again")


# Open, so that a file which is replaced or cleared away in the middle of a run stays readable; not
# all at once, as a process may have few files open and a data set many. Under another stamp it is
# another file.
@lru_cache(maxsize=128)
def opened(path: Path, stamp: Stamp) -> FileIO:  # noqa: ARG001
    """A file, open for reading."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_at(file: FileIO, offset: int, length: int) -> bytes:
    """Bytes from an offset on, whatever else reads the same open file in other processes."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), length, offset)
    with Path(file.name).open("rb") as own:
        own.seek(offset)
        return own.read(length)
