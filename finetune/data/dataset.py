"""The groups of a data path: any number of them at flat memory, each at hand by its index."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_plugin.errors import OptionError
from rerank_plugin.io.jsonl import DataPath, SkippedLines, input_files

from .group_file import GroupFile
from .groups import Group, no_group_left
from .index_cache import IndexCache

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]


class GroupDataset:
    """The groups of a data path, in the order of its lines; each is read when it is asked for.

    Args:
        files: Where they stand, one file behind the other.
        places: Which of the files' groups these are; default all.
        teacher_margin: Negatives that the teacher puts less than this below the worst right
            one are left out.
    """

    def __init__(
        self,
        files: Sequence[GroupFile],
        places: Indices | None = None,
        teacher_margin: float | None = None,
    ) -> None:
        self.files = list(files)
        self.teacher_margin = teacher_margin
        self._ends = np.cumsum([len(file) for file in self.files])
        self.places = np.arange(self._ends[-1]) if places is None else places

    @classmethod
    def build(
        cls,
        data_path: DataPath,
        cache: Path,
        skipped: SkippedLines | None,
        *,
        progress: bool = False,
    ) -> "GroupDataset":
        """Check all lines and index them under `cache`, or find there what an earlier run found.

        Args:
            data_path: A file, a folder or a glob, or several.
            cache: The folder of all indices.
            skipped: Where bad lines are written down; without it the first bad line is an error.
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
        """A hash of the contents of all files."""
        hashes = [file.fingerprint for file in self.files]
        several = hashlib.sha256("".join(hashes).encode()).hexdigest()
        return (hashes[0] if len(hashes) == 1 else several)[:16]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Group:
        file, place = self._find(index)
        group = file[place]
        margin = self.teacher_margin
        return group if margin is None else group.without_false_negatives(margin)

    def __iter__(self) -> Iterator[Group]:
        return (self[index] for index in range(len(self)))

    @property
    def query_hashes(self) -> npt.NDArray[np.uint64]:
        """`text_digest` of every group's query, `[groups]`."""
        return self._column("query")

    @property
    def teacher_gaps(self) -> npt.NDArray[np.float64]:
        """`Group.teacher_gap` of every group `[groups]`; NaN where it has no teacher scores."""
        return self._column("teacher_gap")

    def select(self, indices: Sequence[int] | Indices) -> "GroupDataset":
        """Some of the groups, in the order of their indices."""
        chosen = self.places[np.asarray(indices, np.int64)]
        return GroupDataset(self.files, chosen, self.teacher_margin)

    def require_teacher(self, option: str, what: str) -> None:
        """Refuse an option if a group has no teacher scores.

        Args:
            option: The option that needs them.
            what: Its value, for the message.

        Raises:
            OptionError: with the first group that has none.
        """
        without = np.flatnonzero(np.isnan(self.teacher_gaps))
        if len(without):
            file, place = self._find(int(without[0]))
            raise OptionError(
                option,
                f"{what} needs teacher scores: {len(without)} of {len(self)} groups lack "
                f"'pos_scores' or 'neg_scores', the first is {file.place(place)}",
            )

    def without_false_negatives(self, margin: float) -> "GroupDataset":
        """The groups without negatives that the teacher puts among the positives.

        A negative stays if its score is at least `margin` below those of all positives.
        Groups that keep none are left out, and counted in a warning.

        Raises:
            OptionError: a group has no teacher scores, or no group keeps a negative.
        """
        self.require_teacher("teacher_margin", f"{margin:g}")
        stays = np.flatnonzero(self.teacher_gaps >= margin)
        if not len(stays):
            raise OptionError("teacher_margin", f"{margin:g} leaves no group a negative")
        if len(stays) < len(self):
            logger.warning(
                "--teacher_margin %g leaves %d of %d training groups without a negative: "
                "they are left out",
                margin,
                len(self) - len(stays),
                len(self),
            )
        return GroupDataset(self.files, self.places[stays], margin)

    def _find(self, index: int) -> tuple[GroupFile, int]:
        place = int(self.places[index])
        file = int(np.searchsorted(self._ends, place, side="right"))
        return self.files[file], place - (int(self._ends[file - 1]) if file else 0)

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([file.rows[name] for file in self.files])[self.places]
