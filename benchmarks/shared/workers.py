"""Scorers in processes of their own: they wait until they are asked, so one works at a time."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peers.pipelines import PIPELINES
from peers.scorers import UnsupportedPrecisionError
from peers.table import SCORERS

from shared.machine import OtherWork, peak_memory, reset_peak_memory
from shared.texts import Request

#: What a worker can be, by its name.
MAKERS: dict[str, Any] = {**SCORERS, **PIPELINES["langchain"], **PIPELINES["llama_index"]}

# Not fork: a child that starts as a copy has its parent's memory and its parent's threads.
CONTEXT = multiprocessing.get_context("spawn")


class WorkerError(Exception):
    """A process ended that should not have."""


@dataclass(frozen=True)
class Loaded:
    """A scorer is ready."""

    precision: str
    peak_memory: int


@dataclass(frozen=True)
class Unsupported:
    """A scorer cannot be had at its precision."""

    reason: str


@dataclass(frozen=True)
class Answer:
    """The result, how long it took, and the peak memory since the last reset."""

    values: list[Any]
    seconds: float
    #: CPUs that others had meanwhile.
    others: float
    peak_memory: int


class Worker:
    """A scorer in its own process; it loads while others do, `loaded` waits for it.

    Args:
        who: A name in `MAKERS`.
        folder: The model folder.
        precision: A precision, or None for the library's own default.
        log: The file that takes what the process writes.
    """

    def __init__(self, who: str, folder: Path, precision: str | None, log: Path) -> None:
        self.who = who
        self.setting = precision or "default"
        self.name = f"{self.who} {self.setting}"
        self.log = log
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(
            target=serve, args=(theirs, log, who, str(folder), precision)
        )
        self._process.start()
        theirs.close()
        self._started: Loaded | Unsupported | None = None

    @property
    def precisions(self) -> tuple[str, ...]:
        """Return the precisions that it is measured at."""
        precisions: tuple[str, ...] = MAKERS[self.who].precisions
        return precisions

    @property
    def started(self) -> Loaded | Unsupported:
        """Return how it loaded, or why it cannot; waits until that is known."""
        if self._started is None:
            self._started = self._receive()
        return self._started

    @property
    def loaded(self) -> Loaded:
        """Return how it loaded; waits until it has."""
        started = self.started
        assert isinstance(started, Loaded)
        return started

    def score(self, requests: Sequence[Request]) -> Answer:
        """Score all pairs of some requests; the values are logits."""
        return self._ask(("score", requests))

    def rank(self, query: str, documents: list[str]) -> Answer:
        """Rank documents; the values are their indices."""
        return self._ask(("rank", query, documents))

    def together(self, requests: Sequence[Request]) -> Answer:
        """Ask a pipeline all queries at once; the values are seconds, the last one of a pause."""
        return self._ask(("together", requests))

    def overhead(self, requests: Sequence[Request]) -> Answer:
        """Rank without and with an adapter in turns; the values are the seconds of both."""
        return self._ask(("overhead", requests))

    def kept(self, requests: Sequence[Request]) -> list[str]:
        """Return the texts that a pipeline keeps."""
        return self._ask(("kept", requests)).values

    def reset_peak_memory(self) -> None:
        """Reset the peak memory."""
        self._ask(("reset",))

    def close(self) -> None:
        """End the process, whatever it does."""
        self._pipe.close()
        self._process.join(timeout=5)
        self._process.terminate()
        self._process.join()

    def _ask(self, question: tuple[Any, ...]) -> Answer:
        assert self.loaded
        self._pipe.send(question)
        answer: Answer = self._receive()
        return answer

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerError(f"{self.name} failed, see {self.log}") from None


def run_apart(target: Callable[..., None], *arguments: Any, log: Path) -> None:
    """Call a function in a process of its own, so that its memory and threads end with it.

    Raises:
        WorkerError: it failed.
    """
    process = CONTEXT.Process(target=call, args=(log, target, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise WorkerError(f"{target.__name__} failed, see {log}")


def call(log: Path, target: Callable[..., None], *arguments: Any) -> None:
    write_to(log)
    target(*arguments)


def serve(pipe: Connection, log: Path, who: str, folder: str, precision: str | None) -> None:
    """Answer questions until the pipe is closed."""
    write_to(log)
    try:
        scorer = MAKERS[who](folder, precision)
    except UnsupportedPrecisionError as error:
        pipe.send(Unsupported(str(error)))
        return
    pipe.send(Loaded(scorer.precision, peak_memory()))
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        values: list[Any] = []
        others = OtherWork()
        start = time.perf_counter()
        if question[0] == "score":
            values = scorer.score(question[1])
        elif question[0] in ("together", "overhead", "kept"):
            values = getattr(scorer, question[0])(question[1])
        elif question[0] == "rank":
            values = [float(index) for index in scorer.rank(question[1], question[2])]
        seconds = time.perf_counter() - start
        cpus = others.cpus
        if question[0] == "reset":
            reset_peak_memory()
        pipe.send(Answer(values, seconds, cpus, peak_memory()))


def write_to(log: Path) -> None:
    """Send all that this process writes, libraries in C included, to a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
