"""Write groups into one file, or into several among which queries are split."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import writing
from rerank_plugin.io.jsonl import DataPath
from rerank_plugin.io.outputs import check_output
from rerank_plugin.io.streams import is_stream

from ..text.normalize import text_digest
from .groups import Group
from .splits import deal

#: The names of the files of a split.
SIDES = ("train", "dev", "test")

#: The first of them in a file's name, not as a part of a longer word.
TRAIN_NAME = re.compile(r"(?<![A-Za-z])train(?![A-Za-z])")


def group_line(group: Group) -> str:
    """Return a group as a line of a jsonl file, without fields that are None or ""."""
    record = {name: value for name, value in asdict(group).items() if value not in (None, "")}
    return record_line(record)


def record_line(record: Mapping[str, Any]) -> str:
    """Return a record as a line of a jsonl file."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def parse_shares(value: str | Sequence[str | float] | None) -> list[float]:
    """Return the shares of `--split` for train, dev and perhaps test; without it all is train.

    Raises:
        OptionError: not two or three positive numbers whose sum is 1.
    """
    if value is None:
        return [1.0]
    numbers = value.split(",") if isinstance(value, str) else value
    try:
        shares = [float(number) for number in numbers]
    except ValueError:
        shares = []
    positive = all(share > 0 for share in shares)
    # Written so that NaN fails as well.
    if len(shares) not in (2, 3) or not positive or not abs(sum(shares) - 1) <= 1e-6:
        expected = "two or three positive numbers whose sum is 1, such as 0.8,0.1,0.1"
        raise OptionError("split", f"expected {expected}, not {value!r}")
    return shares


def split_files(output: Path, shares: Sequence[float]) -> list[Path]:
    """Return the files of a split: `train.jsonl` has `dev.jsonl` and `test.jsonl` beside it.

    Where `train` is not in the name of the output, the side is appended: `mined-dev.jsonl`.
    """
    files = [output]
    for side in SIDES[1 : len(shares)]:
        name, count = TRAIN_NAME.subn(side, output.name)
        files.append(output.with_name(name if count else f"{output.stem}-{side}{output.suffix}"))
    return files


def check_files(
    files: Sequence[Path],
    inputs: Sequence[DataPath | None],
    *,
    overwrite: bool,
    option: str = "output",
) -> None:
    """Check that groups can be written into the files of an option.

    Raises:
        OptionError: not into one of them.
    """
    if len(files) > 1 and is_stream(files[0]):
        raise OptionError(option, f"{files[0]} is a stream: not allowed with --split")
    for file in files:
        if file.name.endswith(".gz"):
            raise OptionError(option, f"{file}: compressed files cannot be written: use .jsonl")
        check_output(file, inputs, overwrite=overwrite, option=option)


def split_sides(queries: Sequence[str], shares: Sequence[float], seed: int) -> dict[int, int]:
    """Return for the digest of every query the index of its share.

    Queries are dealt in the order of hashes of their texts: the same queries and seed give the same
    split in any order, and no query text is in two shares.

    Raises:
        OptionError: a share has no query.
    """
    dealt = deal(np.array([text_digest(query) for query in queries], np.uint64), seed)
    ends = [round(sum(shares[: index + 1]) * len(dealt)) for index in range(len(shares))]
    starts = [0, *ends[:-1]]
    for side, start, end in zip(SIDES, starts, ends, strict=False):
        if start == end:
            problem = f"{len(dealt)} queries are too few for a {side} split: choose other shares"
            raise OptionError("split", problem)
    return {
        query: index
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        for query in dealt[start:end].tolist()
    }


class GroupWriter:
    """Writes every group into the file of its query's side."""

    def __init__(self, files: Sequence[IO[str]], sides: Mapping[int, int]) -> None:
        self.counts = [0] * len(files)
        self._files = files
        self._sides = sides

    def write(self, group: Group) -> None:
        """Write one group."""
        side = self._sides[text_digest(group.query)]
        self._files[side].write(group_line(group))
        self.counts[side] += 1


@contextmanager
def group_writer(files: Sequence[Path], sides: Mapping[int, int]) -> Iterator[GroupWriter]:
    """Open a writer whose files appear when all groups are written."""
    with ExitStack() as stack:
        yield GroupWriter([stack.enter_context(writing(file)) for file in files], sides)
