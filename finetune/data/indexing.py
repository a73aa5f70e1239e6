"""One pass over a file of groups: every line is checked, and where it stands is written down."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rerank_plugin.cli.console import bar
from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import Line, reading

from ..text.normalize import text_digest
from .groups import parse_group

#: What is known of a line without reading it again: where it stands in bytes, its number, its
#: query, and how far the teacher puts the worst negative below the worst positive.
ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("length", "<i8"),
        ("line", "<i8"),
        ("query", "<u8"),
        ("teacher_gap", "<f8"),
    ]
)

Rows = npt.NDArray[np.void]

#: Bytes that are read, hashed and checked at a time.
BLOCK = 1 << 20

#: Files of an index: rows of usable and of bad lines, and the lines themselves if they were packed.
GOOD, BAD, LINES = "good.rows", "bad.rows", "lines.jsonl"


@dataclass(frozen=True)
class Block:
    """Some lines of a file, one behind the other."""

    path: Path
    #: Number and offset of the first line.
    number: int
    offset: int
    raw: list[bytes]

    def line(self, number: int) -> Line:
        """A line by its number in the file."""
        return Line(self.path, number, self.raw[number - self.number].rstrip(b"\r\n"))


def index_file(path: Path, folder: Path, *, stop_at_bad: bool) -> str:
    """Check all lines of a file into an index under `folder`; returns the hash of its contents.

    Progress goes to stderr.

    Raises:
        InputError: the file is empty or cannot be read or, with `stop_at_bad`, a line is bad.
    """
    digest = hashlib.sha256()
    packed = path.name.endswith(".gz")
    total = None if packed else path.stat().st_size
    with (
        (folder / GOOD).open("wb") as good,
        (folder / BAD).open("wb") as bad,
        (folder / LINES).open("wb") as lines,
        # A file that is read at once needs no bar.
        bar(f"checking {path.name}", "B", total, unit_scale=True, delay=1) as progress,
    ):
        for block in blocks(path):
            contents = b"".join(block.raw)
            digest.update(contents)
            if packed:
                lines.write(contents)
            usable, others = check_block(block)
            if stop_at_bad and len(others):
                # Says what is wrong with it.
                parse_group(block.line(int(others[0]["line"])))
            # Not by `tofile`, which says nothing of a disk that is full.
            good.write(usable.tobytes())
            bad.write(others.tobytes())
            progress.update(len(contents))
        if not good.tell() and not bad.tell():
            raise InputError(f"{path}: the file is empty")
        for file in (good, bad, lines):
            file.flush()
            os.fsync(file.fileno())
    if not packed:
        (folder / LINES).unlink()
    return digest.hexdigest()


def blocks(path: Path) -> Iterator[Block]:
    """A plain or gzipped file in blocks of whole lines."""
    number, offset = 1, 0
    with reading(path) as file:
        while lines := file.readlines(BLOCK):
            yield Block(path, number, offset, lines)
            number += len(lines)
            offset += sum(map(len, lines))


def check_block(block: Block) -> tuple[Rows, Rows]:
    """The rows of usable lines and those of bad ones; blank lines have none."""
    good: list[tuple[int, int, int, int, float]] = []
    bad: list[tuple[int, int, int, int, float]] = []
    offset = block.offset
    for number, raw in enumerate(block.raw, block.number):
        if not raw.isspace():
            try:
                group = parse_group(block.line(number))
            except InputError:
                bad.append((offset, len(raw), number, 0, nan))
            else:
                query = text_digest(group.query)
                good.append((offset, len(raw), number, query, group.teacher_gap))
        offset += len(raw)
    return np.array(good, ROW), np.array(bad, ROW)
