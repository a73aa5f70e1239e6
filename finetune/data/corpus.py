"""A corpus on disk: memory does not grow with its texts, each read by its position."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line

from .beir_files import REPEATED_PASSAGES, Record, at, read_passages
from .reason_counts import ReasonCounts

#: Bytes of text that are read at once when the whole corpus is read.
TEXT_BLOCK = 1 << 24

Positions = npt.NDArray[np.int64]


class RepeatedPassages:
    """Passages whose ids are repeated; that they are copies of the first ones is checked last."""

    def __init__(self, counts: ReasonCounts) -> None:
        self._counts = counts
        self._lines: dict[str, list[tuple[int, Line]]] = {}

    def add(self, passage: Record) -> None:
        """Add a passage whose id is repeated."""
        self._counts.add(REPEATED_PASSAGES, at(passage.id, passage.line))
        where = replace(passage.line, raw=b"")
        self._lines.setdefault(passage.id, []).append((hash(passage.text), where))

    def check(self, data_path: DataPath) -> None:
        """Compare them with the first ones of their ids.

        Raises:
            InputError: one has another text.
        """
        # To keep all texts, or a hash of each, would take much memory for a rare case.
        for passage in read_passages(data_path) if self._lines else ():
            for text, line in self._lines.pop(passage.id, ()):
                if text != hash(passage.text):
                    problem = f"duplicate passage id {passage.id!r}, with another text"
                    raise line.error(problem)


class Corpus:
    """The concatenated texts of passages in a file, and the offsets of each.

    Args:
        path: The file.
        starts: The offset of each passage, and the end of the last one, `[passages + 1]`.
        positions: The positions of the passages with wanted ids.
        blank: How many passages were left out because they have no text.
        blank_ids: The wanted ids of those.
        first_id: The id of the first passage, for messages.
    """

    def __init__(
        self,
        path: Path,
        starts: Positions,
        positions: dict[str, int],
        blank: int,
        blank_ids: frozenset[str],
        first_id: str,
    ) -> None:
        self.first_id = first_id
        self.starts = starts
        self.positions = positions
        self.blank = blank
        self.blank_ids = blank_ids
        self._path = path
        self._file = path.open("rb")

    @classmethod
    def build(
        cls,
        data_path: DataPath,
        folder: Path,
        wanted: set[str],
        counts: ReasonCounts,
        progress: Callable[[int], Any] | None = None,
        *,
        wanted_only: bool = False,
    ) -> "Corpus":
        """Write the texts of a corpus into a folder.

        Args:
            data_path: The corpus, as `read_passages` takes it.
            folder: The folder of the file.
            wanted: The ids whose positions are kept.
            counts: Counts repeated passages.
            progress: Called with the number of passages read since the last call.
            wanted_only: Leave out the passages with other ids, so that disk and memory do not grow
                with the corpus.

        Raises:
            InputError: two texts have the same id, or there are fewer than two passages.
        """
        path = folder / "corpus.txt"
        lengths = [0]
        positions: dict[str, int] = {}
        seen: set[str] = set()
        repeated = RepeatedPassages(counts)
        first_id = ""
        blank = 0
        blank_ids: set[str] = set()
        with path.open("wb") as file:
            for passage in read_passages(data_path):
                first_id = first_id or passage.id
                if passage.id in seen:
                    repeated.add(passage)
                    continue
                if progress:
                    progress(1)
                if wanted_only and passage.id not in wanted:
                    continue
                seen.add(passage.id)
                if not passage.text.strip():
                    blank += 1
                    blank_ids |= {passage.id} & wanted
                    continue
                if passage.id in wanted:
                    positions[passage.id] = len(lengths) - 1
                lengths.append(file.write(passage.text.encode()))
        repeated.check(data_path)
        if len(lengths) < 3 and not wanted_only:
            raise InputError(f"{data_path}: expected at least two passages")
        return cls(path, np.cumsum(lengths), positions, blank, frozenset(blank_ids), first_id)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def texts(self, positions: Sequence[int]) -> list[str]:
        """Return the texts of some passages, in the order of their positions."""
        texts = []
        for position in positions:
            start, end = int(self.starts[position]), int(self.starts[position + 1])
            self._file.seek(start)
            texts.append(self._file.read(end - start).decode())
        return texts

    def __iter__(self) -> Iterator[str]:
        """Yield all texts in their order, read in large blocks."""
        position = 0
        with self._path.open("rb") as file:
            while position < len(self):
                start = int(self.starts[position])
                end = int(np.searchsorted(self.starts, start + TEXT_BLOCK, "right")) - 1
                end = min(max(end, position + 1), len(self))
                block = file.read(int(self.starts[end]) - start)
                offsets = (self.starts[position : end + 1] - start).tolist()
                for first, last in pairwise(offsets):
                    yield block[first:last].decode()
                position = end

    def close(self) -> None:
        """Close the file."""
        self._file.close()
