"""Unfinished results in a file of lines beside the output, from which the same command resumes."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import move_file, part_file, write_json
from rerank_plugin.io.disk_errors import naming
from rerank_plugin.io.locks import locked
from rerank_plugin.io.paths import real_path

logger = logging.getLogger(__name__)

#: The data and the options that results depend on, as JSON values.
Task = dict[str, Any]


def other_task(known: object, task: Task) -> str:
    """Return that a task differs from a known one, in words; "" if it does not."""
    return "" if known == task else "other data or options"


class Unfinished:
    """Unfinished results of an output in `<output>.part`, and their task in `<output>.part.json`.

    Args:
        output: The output file, without links.
        task: The task of the results.
        unit: The name of what a line is the result of, in plural.
        changes: Returns in words how a task differs from a known one; "" if it does not.

    Raises:
        OptionError: there are unfinished results of another task.
    """

    def __init__(
        self,
        output: Path,
        task: Task,
        unit: str,
        changes: Callable[[object, Task], str] = other_task,
    ) -> None:
        self.output = output
        self.part = part_file(output)
        self.state = output.with_name(output.name + ".part.json")
        #: The number of results of an earlier run.
        self.lines = 0
        self._replaces = output.exists()
        if self.part.exists() and self.part.stat().st_size:
            if changed := changes(self._known_task(), task):
                raise OptionError(
                    "output",
                    f"{self.part} has unfinished results of another run ({changed}): run the same "
                    "command, remove the file, or choose another --output",
                )
            self.lines = keep_whole_lines(self.part)
            logger.info("resuming after %d %s in %s", self.lines, unit, self.part)
        else:
            write_json(self.state, task)

    def _known_task(self) -> object:
        """Return the task of the unfinished results; None if it cannot be read."""
        with suppress(OSError, ValueError):
            return json.loads(self.state.read_text(encoding="utf-8"))
        return None

    @classmethod
    @contextmanager
    def open(
        cls,
        output: Path,
        task: Task,
        unit: str,
        changes: Callable[[object, Task], str] = other_task,
    ) -> Iterator[Self]:
        """Lock the unfinished results of an output; see the arguments of the class.

        Raises:
            BlockingIOError: another command is writing them.
            OptionError: they belong to another task.
        """
        target = real_path(output)
        with locked(part_file(target)):
            yield cls(target, task, unit, changes)

    @contextmanager
    def writing(self) -> Iterator[IO[str]]:
        """Open the file to append to it."""
        try:
            with naming(self.part), self.part.open("a", encoding="utf-8") as file:
                yield file
        except BaseException:  # Ctrl-C, too, leaves results to resume from
            self._leave()
            raise

    def _leave(self) -> None:
        """Say where results are when a command ends early; without any, remove the files."""
        if self.part.exists() and self.part.stat().st_size:
            logger.info("stopped: results so far are in %s; the same command resumes", self.part)
            return
        self.remove()

    def finish(self) -> None:
        """Move the results to the output file."""
        move_file(self.part, self.output, replaces=self._replaces)
        self.state.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the files: there is no result to resume from, or nobody needs them any more."""
        for file in (self.part, self.state):
            file.unlink(missing_ok=True)


def keep_whole_lines(path: Path) -> int:
    """Cut off the line that a killed run was writing; return the number of lines left."""
    lines = end = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, end = lines + 1, end + len(line)
        file.truncate(end)
    return lines
