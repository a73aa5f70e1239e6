"""Runs of a benchmark side by side, in processes that remain: libraries are imported once."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shared.workers import CONTEXT, write_to

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run whose record is known, or is being made."""

    path: Path
    future: "Future[None] | None"
    log: Path

    @property
    def record(self) -> Record:
        """Return the record; waits until it is there."""
        if self.future is not None:
            try:
                self.future.result()
            except BrokenProcessPool:
                raise SystemExit(f"{self.path.stem}: a process ended, see {self.log}") from None
        record: Record = json.loads(self.path.read_text(encoding="utf-8"))
        return record


class Jobs:
    """Processes that work off runs; a context manager ends them.

    Args:
        count: How many run at once.
        log: The file that takes what they write.
    """

    def __init__(self, count: int, log: Path) -> None:
        self.log = log
        self._pool = ProcessPoolExecutor(
            count, mp_context=CONTEXT, initializer=write_to, initargs=(log,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # After an error, runs that have not begun do not begin.
        self._pool.shutdown(cancel_futures=True)

    def submit(self, path: Path, function: Callable[..., Record], *arguments: Any) -> Job:
        """Make the record in a file, unless it is there already."""
        if path.is_file():
            return Job(path, None, self.log)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Job(path, self._pool.submit(keep, path, function, *arguments), self.log)


def keep(path: Path, function: Callable[..., Record], *arguments: Any) -> None:
    """Write the record that a function returns."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(function(*arguments)) + "\n", encoding="utf-8")
    unfinished.replace(path)
