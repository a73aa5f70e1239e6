"""The folder of sharded results: which shards are finished, and of what task they are."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from rerank_plugin.cli.console import say
from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.locks import locked
from rerank_plugin.io.sync import sync_file
from rerank_plugin.io.unfinished import Task
from rerank_plugin.io.versions import with_versions
from rerank_plugin.offline.shard_files import STAGED
from rerank_plugin.offline.shards import Shard
from rerank_plugin.offline.task import changes

# Readers of data sets leave out names that begin with an underscore.

#: The task of the results: the data, the model and the options that they depend on.
TASK = "_task.json"

#: The empty file of a complete folder, by the name that Hadoop and Spark have for it.
SUCCESS = "_SUCCESS"

LOCK = "_lock"


class ShardFolder:
    """A folder with a file for each shard.

    Args:
        path: The folder, without links.
        shards: All shards.
        suffix: The suffix of the files.
    """

    def __init__(self, path: Path, shards: Sequence[Shard], suffix: str) -> None:
        self.path = path
        self.files = [path / f"part-{shard.number:05d}.{suffix}" for shard in shards]
        self._shards = shards

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        shards: Sequence[Shard],
        suffix: str,
        task: Task,
        *,
        overwrite: bool,
    ) -> Iterator[Self]:
        """Lock a folder for a task, and keep the finished shards of the same task.

        Raises:
            BlockingIOError: another command is writing it.
            OptionError: it has results of another task, or something else.
        """
        folder, is_new = cls(path, shards, suffix), not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        with locked(path / LOCK):
            try:
                folder._prepare(task, overwrite=overwrite)
                try:
                    yield folder
                except BaseException:  # Ctrl-C, too, leaves shards to resume from
                    folder._leave()
                    raise
            finally:
                (path / LOCK).unlink(missing_ok=True)
                if is_new and not any(path.iterdir()):
                    path.rmdir()

    def _prepare(self, task: Task, *, overwrite: bool) -> None:
        """Remove what `overwrite` replaces, and write the task if it is a new one."""
        entries = {entry.name for entry in self.path.iterdir()} - {LOCK}
        if entries and TASK not in entries:
            raise OptionError("output", f"{self.path} is not empty: choose another folder")
        changed = changes(self._known_task(), task) if entries else ""
        if changed and not overwrite:
            raise OptionError(
                "output",
                f"{self.path} has results of another run ({changed}): run the same command, choose "
                "another folder, or use --overwrite",
            )
        if overwrite and (changed or SUCCESS in entries):
            for name in (SUCCESS, TASK):
                (self.path / name).unlink(missing_ok=True)
            for file in self.path.glob("part-*"):
                file.unlink()
        self._remove_staged()
        if not (self.path / TASK).exists():
            write_json(self.path / TASK, with_versions({"task": task}))

    def _leave(self) -> None:
        """Say where shards are when a command ends early; without any, remove the task."""
        self._remove_staged()
        if len(self.unfinished()) < len(self.files):
            say(f"stopped: finished shards are in {self.path}; the same command resumes")
        else:
            (self.path / TASK).unlink()

    def _known_task(self) -> object:
        """Return the task of the results; None if there is none that can be read."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads((self.path / TASK).read_text(encoding="utf-8"))["task"]
        return None

    def _remove_staged(self) -> None:
        """Remove the incomplete files of workers that died."""
        for file in self.path.glob(f".part-*{STAGED}"):
            file.unlink(missing_ok=True)

    def unfinished(self) -> list[Shard]:
        """Return the shards without a file."""
        names = {entry.name for entry in self.path.iterdir()}
        return [shard for shard in self._shards if self.files[shard.number].name not in names]

    def finish(self) -> None:
        """Mark the folder as complete."""
        self._remove_staged()
        sync_file(self.path)
        (self.path / SUCCESS).touch()
