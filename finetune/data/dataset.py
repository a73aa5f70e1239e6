"""A data set of groups, read one by one from its files: memory does not grow with its size."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_plugin.errors import OptionError
from rerank_plugin.io.jsonl import DataPath, SkippedLines, input_files

from .beir_files import ChecksInstruction
from .group_file import GroupFile
from .groups import Group, no_group_left
from .index_cache import IndexCache

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]


class GroupDataset:
    """The groups of a data path, in the order of its lines, each read when it is accessed.

    Args:
        files: The files, in their order.
        rows: The groups of this data set, by their row in all files; default all.
        teacher_margin: Negatives are left out if their teacher score is not at least this far below
            that of every positive.
    """

    def __init__(
        self,
        files: Sequence[GroupFile],
        rows: Indices | None = None,
        teacher_margin: float | None = None,
    ) -> None:
        self.files = list(files)
        self.teacher_margin = teacher_margin
        self._ends = np.cumsum([len(file) for file in self.files])
        self.rows = np.arange(self._ends[-1]) if rows is None else rows

    @classmethod
    def build(
        cls,
        data_path: DataPath,
        cache: Path,
        skipped: SkippedLines | None,
        *,
        progress: bool = False,
    ) -> "GroupDataset":
        """Check and index all lines, or take the index of an earlier run from the cache.

        Args:
            data_path: A file, a folder or a glob, or several.
            cache: The folder of all indices.
            skipped: Records bad lines; without it the first bad line is an error.
            progress: Show a progress bar for every file that is read.

        Raises:
            InputError: a file is missing, empty or unreadable, a line is bad, or none is usable.
        """
        indices = IndexCache(cache)
        files = []
        for path in input_files(data_path):
            file = indices.open(path, stop_at_bad=skipped is None, progress=progress)
            for line, problem in file.bad_lines():
                if skipped is None:
                    raise problem
                skipped.add(line, problem)
            files.append(file)
        if not any(map(len, files)):
            raise no_group_left(data_path, skipped)
        return cls(files)

    @property
    def fingerprint(self) -> str:
        """Return a hash of the contents of all files."""
        hashes = [file.fingerprint for file in self.files]
        several = hashlib.sha256("".join(hashes).encode()).hexdigest()
        return (hashes[0] if len(hashes) == 1 else several)[:16]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Group:
        file, row = self._find(index)
        group = file[row]
        margin = self.teacher_margin
        return group if margin is None else group.without_false_negatives(margin)

    def __iter__(self) -> Iterator[Group]:
        return (self[index] for index in range(len(self)))

    @property
    def query_hashes(self) -> npt.NDArray[np.uint64]:
        """Return `text_digest` of every group's query, `[groups]`."""
        return self._column("query")

    @property
    def teacher_gaps(self) -> npt.NDArray[np.float64]:
        """Return `Group.teacher_gap` of every group, `[groups]`; NaN without teacher scores."""
        return self._column("teacher_gap")

    def select(self, indices: Sequence[int] | Indices) -> "GroupDataset":
        """Return some of the groups, in the order of their indices."""
        chosen = self.rows[np.asarray(indices, np.int64)]
        return GroupDataset(self.files, chosen, self.teacher_margin)

    def require_teacher(self, option: str, value: str) -> None:
        """Refuse an option if a group has no teacher scores.

        Args:
            option: The option that needs them.
            value: Its value, for the message.

        Raises:
            OptionError: with the first group that has none.
        """
        without = np.flatnonzero(np.isnan(self.teacher_gaps))
        if len(without):
            file, row = self._find(int(without[0]))
            raise OptionError(
                option,
                f"{value} requires teacher scores: {len(without)} of {len(self)} groups have no "
                f"'pos_scores' or 'neg_scores', the first is {file.where(row)}",
            )

    def check_instructions(self, model: ChecksInstruction) -> None:
        """Check that a model takes instructions, if a group has one.

        Raises:
            InputError: with file and line of the first group that has one.
        """
        instructed = np.flatnonzero(self._column("instructed"))
        if len(instructed):
            file, row = self._find(int(instructed[0]))
            model.check_instruction(file[row].instruction, file.where(row))

    def without_false_negatives(self, margin: float) -> "GroupDataset":
        """Return the groups without negatives that the teacher scores like positives.

        A negative is kept if its score is at least `margin` below those of all positives. Groups
        that keep none are left out, and counted in a warning.

        Raises:
            OptionError: a group has no teacher scores, or no group keeps a negative.
        """
        self.require_teacher("teacher_margin", f"{margin:g}")
        kept = np.flatnonzero(self.teacher_gaps >= margin)
        if not len(kept):
            raise OptionError(
                "teacher_margin", f"{margin:g} leaves no group with a negative: use a smaller one"
            )
        if len(kept) < len(self):
            logger.warning(
                "--teacher_margin %g leaves %d of %d training groups without a negative: "
                "they are left out",
                margin,
                len(self) - len(kept),
                len(self),
            )
        return GroupDataset(self.files, self.rows[kept], margin)

    def _find(self, index: int) -> tuple[GroupFile, int]:
        row = int(self.rows[index])
        file = int(np.searchsorted(self._ends, row, side="right"))
        return self.files[file], row - (int(self._ends[file - 1]) if file else 0)

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([file.rows[name] for file in self.files])[self.rows]
