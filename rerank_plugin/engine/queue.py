"""A model's queue: any number of callers, one thread that scores, batches out of what waits.

Callers encode their pairs, in their own thread or, on an event loop, in a thread beside it; one
thread owns the model and nobody else touches it. It scores batch by batch and looks at everything
that waits before each.
"""

import asyncio
import atexit
import os
import threading
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch

from rerank_plugin.engine.encoder import Pair
from rerank_plugin.engine.scorer import PAIRS_AT_ONCE, EncodedPairs, Logits, Scorer
from rerank_plugin.errors import RerankError

Result = TypeVar("Result")

#: Jobs of up to so many pairs are short; they do not wait for room behind long ones.
SHORT_JOB = 256

#: Pairs that may be inside at once, of short jobs and of long ones each; the others wait outside,
#: not encoded yet.
ROOM = 2 * PAIRS_AT_ONCE

#: Threads that encode for event loops: a long request does not keep short ones waiting.
ENCODING_THREADS = 4


FORKED = (
    "a model was used before this process was forked, and a fork has none of its threads: load "
    'models in the child processes only, or start these with multiprocessing.get_context("spawn")'
)


class QueueError(RerankError):
    """The model cannot be used from here, or not any more."""


@dataclass(frozen=True)
class Batch:
    """A part of a job that is scored at once: places among its distinct pairs, and their cost."""

    places: list[int]
    cost: float


@dataclass(eq=False)
class Job:
    """Encoded pairs on their way through the model.

    Args:
        encoded: The pairs.
        batches: What of them is not scored yet.
        due: What the model has scored, in cost, when this job's turn has come at the latest.
        adapter: Which of the model's adapters scores it; a batch has one.
        caller: Whose it is; a batch has no two jobs of a caller, so that what a lone caller gets
            does not depend on how many of its jobs waited.
        progress: Told how many pairs have been scored, whenever more are.
    """

    encoded: EncodedPairs
    batches: deque[Batch]
    due: float
    adapter: str | None
    caller: object
    progress: Callable[[int], Any] | None
    future: "Future[Logits]" = field(default_factory=Future)
    logits: Logits = field(init=False)

    def __post_init__(self) -> None:
        self.logits = np.empty(len(self.encoded.distinct), np.float32)

    def add(self, batch: Batch, logits: Logits) -> None:
        """Take in what a batch gave; the job may be done by that."""
        if self.future.done():
            return
        try:
            self.logits[batch.places] = logits
            if self.progress:
                self.progress(int(self.encoded.pairs_done()[batch.places].sum()))
            if not self.batches and self.future.set_running_or_notify_cancel():
                self.future.set_result(self.encoded.of_pairs(self.logits))
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        self.batches.clear()
        if self.future.done():
            return
        if self.future.running() or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass
class Door:
    """Lets pairs in while there is room, first come first served; many at once only alone."""

    room: int
    inside: int = 0
    outside: "deque[tuple[int, Future[None]]]" = field(default_factory=deque)

    def admit(self) -> None:
        """Let in who fits."""
        while self.outside:
            count, ticket = self.outside[0]
            if self.inside and self.inside + count > self.room and not ticket.cancelled():
                return
            self.outside.popleft()
            if ticket.set_running_or_notify_cancel():
                self.inside += count
                ticket.set_result(None)


class ModelQueue:
    """Scores the pairs of any number of threads and event loops with one model.

    Who comes first: a job is due when the model has scored as much as the job costs since it came.
    So three documents pass ten thousand, but not for ever: what comes when the model has scored
    that much does not pass them any more. A batch is filled up with further jobs of the same
    adapter; pairs of one job stay in the batches that they would be in if it were alone.

    Args:
        scorer: The model, on its device, not trained any more.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._waiting: list[Job] = []
        self._scored = 0.0
        self._doors = {"short": Door(ROOM), "long": Door(ROOM)}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._encoding = ThreadPoolExecutor(ENCODING_THREADS, thread_name_prefix="encoding")
        self._forks = forks
        open_queues.add(self)

    def submit(
        self,
        pairs: Sequence[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
        caller: object = None,
    ) -> "Future[Logits]":
        """Encode pairs in this thread and hand them over; waits while there is no room.

        A future that is cancelled frees its room, and what is not scored yet is dropped. Jobs of
        the same `caller` do not share batches; without one a job shares them with any other.

        Raises:
            QueueError: the process was forked, or the model is closed.
            InputError: a text is none of valid Unicode.
        """
        with self._room(len(pairs)) as ticket:
            ticket.result()
            return self._hand_over(*self._encode(pairs), adapter, caller or object(), progress)

    async def score(self, pairs: Sequence[Pair], *, adapter: str | None = None) -> Logits:
        """The raw logits of pairs, `[pairs]`, without blocking the event loop.

        Raises as `submit`.
        """
        with self._room(len(pairs)) as ticket:
            await asyncio.wrap_future(ticket)
            encoded, batches = await self.beside_loop(self._encode, pairs)
            future = self._hand_over(encoded, batches, adapter, object(), None)
        return await asyncio.wrap_future(future)

    async def beside_loop(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that takes a while in a thread beside the event loop."""
        self.check()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoding, function, *arguments)

    def check(self) -> None:
        """Raise a `QueueError` if the model cannot be used from this process, or not any more.

        A daemon thread that is still there when Python shuts down ends here without a word: nobody
        is left who would take an error, and Python would print it.
        """
        if self._forks != forks:
            raise QueueError(FORKED)
        if self._closed:
            if threading.current_thread().daemon:
                raise SystemExit
            raise QueueError("the model is closed: Python is shutting down")

    def close(self) -> None:
        """Let the thread end behind the batch that it is scoring; what waits is not scored."""
        # In a fork the lock may be held for ever.
        if self._forks == forks:
            with self._changed:
                self._closed = True
                self._changed.notify()
            self._encoding.shutdown(wait=False)

    @contextmanager
    def _room(self, count: int) -> "Iterator[Future[None]]":
        """A ticket that is done when there is room for so many pairs; an error gives it back."""
        self.check()
        ticket: Future[None] = Future()
        with self._changed:
            door = self._door(count)
            door.outside.append((count, ticket))
            door.admit()
        try:
            yield ticket
        except BaseException:
            if not ticket.cancel():
                self._leave(count)
            raise

    def _door(self, count: int) -> Door:
        return self._doors["short" if count <= SHORT_JOB else "long"]

    def _leave(self, count: int) -> None:
        with self._changed:
            door = self._door(count)
            door.inside -= count
            door.admit()

    def _encode(self, pairs: Sequence[Pair]) -> tuple[EncodedPairs, deque[Batch]]:
        encoded = self._scorer.encode(pairs)
        return encoded, self._batches(encoded, range(len(encoded.distinct)))

    def _hand_over(
        self,
        encoded: EncodedPairs,
        batches: deque[Batch],
        adapter: str | None,
        caller: object,
        progress: Callable[[int], Any] | None,
    ) -> "Future[Logits]":
        with self._changed:
            self.check()
            due = self._scored + sum(batch.cost for batch in batches)
            job = Job(encoded, batches, due, adapter, caller, progress)
            job.future.add_done_callback(lambda _: self._leave(len(encoded.places)))
            self._insert(job)
            if self._thread is None:
                # A daemon: other threads may go on scoring when the main one has ended.
                self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
                scoring_threads.add(self._thread)
                self._thread.start()
            self._changed.notify()
        return job.future

    def _insert(self, job: Job) -> None:
        insort(self._waiting, job, key=lambda waiting: waiting.due)

    def _batches(self, encoded: EncodedPairs, places: Sequence[int]) -> deque[Batch]:
        pairs = [encoded.distinct[place] for place in places]
        costs = self._scorer.costs(pairs)
        return deque(
            Batch([places[i] for i in batch], sum(costs[i] for i in batch))
            for batch in self._scorer.batches(pairs)
        )

    def _work(self) -> None:
        """What the thread does until the queue is closed."""
        while taken := self._next():
            self._score(taken)
            # Nothing of a job is kept while the thread waits.
            del taken

    def _next(self) -> list[tuple[Job, Batch]]:
        """What is scored next, at once; nothing when the queue is closed."""
        with self._changed:
            while not self._closed:
                # Whoever has cancelled a job has gone.
                self._waiting = [job for job in self._waiting if not job.future.done()]
                if self._waiting:
                    return self._take()
                self._changed.wait()
            return []

    def _take(self) -> list[tuple[Job, Batch]]:
        """A batch of the first job, filled up from its next ones and from the jobs behind it."""
        adapter, room = self._waiting[0].adapter, float(self._scorer.token_budget)
        taken: list[tuple[Job, Batch]] = []
        callers: set[object] = set()
        for job in self._waiting:
            if job.adapter != adapter or job.caller in callers:
                continue
            callers.add(job.caller)
            while job.batches:
                if taken and (job.batches[0].cost > room or not self._scorer.packs):
                    # Among pairs of other lengths a padded batch would only be padded more.
                    break
                batch = job.batches.popleft()
                taken.append((job, batch))
                room -= batch.cost
            if job.batches:
                break
        self._waiting = [job for job in self._waiting if job.batches]
        self._scored += sum(batch.cost for _, batch in taken)
        return taken

    def _score(self, taken: list[tuple[Job, Batch]]) -> None:
        pairs = [job.encoded.distinct[place] for job, batch in taken for place in batch.places]
        try:
            self._scorer.use(taken[0][0].adapter)
            logits = self._scorer.forward(pairs)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) and self._scorer.halve_budget():
                self._cut_anew(taken)
                return
            for job, _ in taken:
                job.fail(error)
            return
        start = 0
        for job, batch in taken:
            job.add(batch, logits[start : start + len(batch.places)])
            start += len(batch.places)

    def _cut_anew(self, taken: list[tuple[Job, Batch]]) -> None:
        """Put a batch back that did not fit the memory, and cut all that waits by the budget."""
        with self._changed:
            for job, batch in taken:
                job.batches.append(batch)
            jobs = dict.fromkeys([*(job for job, _ in taken), *self._waiting])
            self._waiting = []
            for job in jobs:
                left = [place for batch in job.batches for place in batch.places]
                job.batches = self._batches(job.encoded, left)
                self._insert(job)


#: How often this process has been forked off since the module was imported.
forks = 0

#: Whether a process that this one was forked from had scored with several threads.
forked_from_scoring = False

open_queues: "WeakSet[ModelQueue]" = WeakSet()

#: Those of queues that nobody holds any more are among them: they may be freeing the model.
scoring_threads: "WeakSet[threading.Thread]" = WeakSet()


def after_fork() -> None:
    """In a child: the queues are the parent's."""
    global forks, forked_from_scoring, open_queues, scoring_threads
    forks += 1
    if torch.get_num_threads() > 1 and any(queue._thread for queue in open_queues):
        forked_from_scoring = True
    open_queues, scoring_threads = WeakSet(), WeakSet()


def check_fork() -> None:
    """Raise a `QueueError` if a model that is loaded now would hang.

    OpenMP's threads, which torch computes with, are not there in a child, and it waits for them.
    """
    if forked_from_scoring:
        raise QueueError(FORKED)


def close_all() -> None:
    """At the end of Python, when only daemons are left: no thread may be inside torch then."""
    for queue in list(open_queues):
        queue.close()
    for thread in list(scoring_threads):
        thread.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
atexit.register(close_all)
