"""A file of groups and the index of its lines: made in one pass, then each group read by it.

The pass checks every line, so that a group is not checked again when it is read. No group is kept
in memory.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from math import nan
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rerank_plugin.cli.console import bar
from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import Line, reading

from ..text.normalize import text_digest
from .groups import Group, checked_group, parse_group

#: The index of a line: its offset and length in bytes, its number, `text_digest` of its query,
#: `Group.teacher_gap`, and whether it has an instruction.
ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("length", "<i8"),
        ("line", "<i8"),
        ("query", "<u8"),
        ("teacher_gap", "<f8"),
        ("instructed", "?"),
    ]
)

IndexRows = npt.NDArray[np.void]

#: Bytes that are read, hashed and checked at a time.
BLOCK = 1 << 20

#: Files of an index: rows of usable lines, rows of bad lines, and the lines of a gzipped file.
GOOD, BAD, LINES = "good.rows", "bad.rows", "lines.jsonl"

#: Size and modification time of a file, which change with its contents.
Stamp = tuple[int, int]


class GroupFile:
    """One file of groups and the index of its lines.

    Pickled as its arguments, without what it has read.

    Args:
        path: The file, plain or gzipped.
        stamp: Its stamp when it was indexed.
        entry: The folder of its index.
    """

    def __init__(self, path: Path, stamp: Stamp, entry: Path) -> None:
        self.path = path
        self.stamp = stamp
        self.entry = entry
        self.rows = map_rows(entry / GOOD)
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
        """Return a hash of the file's contents."""
        return self.entry.name.partition("-")[2]

    def __getitem__(self, index: int) -> Group:
        return checked_group(self._line(self.rows[index]))

    def where(self, index: int) -> str:
        """Return file and line of a group, for messages."""
        return f"{self.path}:{self.rows['line'][index]}"

    def bad_lines(self) -> Iterator[tuple[Line, InputError]]:
        """Yield the lines that are not groups, and the problem of each."""
        for row in map_rows(self.entry / BAD):
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


def map_rows(path: Path) -> IndexRows:
    """Map the rows of a file into memory."""
    # An empty file cannot be mapped.
    return np.memmap(path, ROW, mode="r") if path.stat().st_size else np.empty(0, ROW)


def stamp_of(file: Path | FileIO) -> Stamp:
    """Return the stamp of a file."""
    status = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def changed(path: Path) -> InputError:
    """Return the error of a file that was changed after it was indexed."""
    return InputError(f"{path}: the file was changed while it was in use: start again")


# Files are kept open so that one that is replaced or removed during a run remains readable; only
# some of them, as a process may open few files and a data set may have many. With another stamp a
# path is another file.
@lru_cache(maxsize=128)
def opened(path: Path, stamp: Stamp) -> FileIO:  # noqa: ARG001
    """Return a file, open for reading."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_at(file: FileIO, offset: int, length: int) -> bytes:
    """Return bytes of a file from an offset on, without the offset that forked processes share."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), length, offset)
    with Path(file.name).open("rb") as reopened:
        reopened.seek(offset)
        return reopened.read(length)


@dataclass(frozen=True)
class Block:
    """Some consecutive lines of a file."""

    path: Path
    #: Number and offset of the first line.
    number: int
    offset: int
    raw: list[bytes]

    def line(self, number: int) -> Line:
        """Return a line by its number in the file."""
        return Line(self.path, number, self.raw[number - self.number].rstrip(b"\r\n"))


def index_file(path: Path, folder: Path, *, stop_at_bad: bool, progress: bool = False) -> str:
    """Check all lines of a file, write its index into a folder, and return the contents' hash.

    Args:
        path: The file, plain or gzipped.
        folder: Where the index is written.
        stop_at_bad: End at the first bad line.
        progress: Show a progress bar.

    Raises:
        InputError: the file is empty or cannot be read or, with `stop_at_bad`, a line is bad.
    """
    digest = hashlib.sha256()
    packed = path.name.endswith(".gz")
    total = None if packed else path.stat().st_size
    title = f"checking {path.name}"
    with (
        (folder / GOOD).open("wb") as good,
        (folder / BAD).open("wb") as bad,
        (folder / LINES).open("wb") as lines,
        # A file that is read at once needs no bar.
        bar(title, "B", total, shown=progress, unit_scale=True, delay=1) as shown,
    ):
        for block in blocks(path):
            contents = b"".join(block.raw)
            digest.update(contents)
            if packed:
                lines.write(contents)
            usable, others = check_block(block)
            if stop_at_bad and len(others):
                # Raises the problem of the line.
                parse_group(block.line(int(others[0]["line"])))
            # Not by `tofile`, which ignores a full disk.
            good.write(usable.tobytes())
            bad.write(others.tobytes())
            shown.update(len(contents))
        if not good.tell() and not bad.tell():
            raise InputError(f"{path}: the file is empty")
        for file in (good, bad, lines):
            file.flush()
            os.fsync(file.fileno())
    if not packed:
        (folder / LINES).unlink()
    return digest.hexdigest()


def blocks(path: Path) -> Iterator[Block]:
    """Yield a plain or gzipped file in blocks of whole lines."""
    number, offset = 1, 0
    with reading(path) as file:
        while lines := file.readlines(BLOCK):
            yield Block(path, number, offset, lines)
            number += len(lines)
            offset += sum(map(len, lines))


def check_block(block: Block) -> tuple[IndexRows, IndexRows]:
    """Return the rows of usable lines and those of bad ones; blank lines have none."""
    good: list[tuple[int, int, int, int, float, bool]] = []
    bad: list[tuple[int, int, int, int, float, bool]] = []
    offset = block.offset
    for number, raw in enumerate(block.raw, block.number):
        if not raw.isspace():
            try:
                group = parse_group(block.line(number))
            except InputError:
                bad.append((offset, len(raw), number, 0, nan, False))
            else:
                query, gap = text_digest(group.query), group.teacher_gap
                good.append((offset, len(raw), number, query, gap, bool(group.instruction)))
        offset += len(raw)
    return np.array(good, ROW), np.array(bad, ROW)
