"""A model's queue: any number of callers, one thread that scores, batches of everything that waits.

Callers encode their pairs in their own thread or, on an event loop, in a thread beside it; one
thread owns the model. Before each batch it looks at everything that waits.
"""

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

from rerank_plugin.engine import fork
from rerank_plugin.engine.cpu.threads import use_threads
from rerank_plugin.engine.distinct import EncodedPairs, distinct_pairs
from rerank_plugin.engine.fork import FORKED, QueueError
from rerank_plugin.engine.schedule import Batch, Job, Schedule
from rerank_plugin.engine.scorer import PAIRS_AT_ONCE, Scorer
from rerank_plugin.engine.scores import Logits, concatenated
from rerank_plugin.inputs import Pair

Result = TypeVar("Result")

#: Jobs of at most so many pairs are short; they do not wait for room behind long ones.
SHORT_JOB = 256

#: Pairs that may be inside at once, of short jobs and of long ones each; the others wait outside,
#: not encoded yet.
ROOM = 2 * PAIRS_AT_ONCE

#: Threads that encode for event loops: a long request does not keep short ones waiting.
ENCODING_THREADS = 4

#: Chunks of a stream that are encoded or scored at once.
CHUNKS_AHEAD = 2


@dataclass
class Door:
    """Admits pairs while there is room, in the order of arrival; too many only alone."""

    room: int
    inside: int = 0
    outside: "deque[tuple[int, Future[None]]]" = field(default_factory=deque)

    def admit(self) -> None:
        """Admit whoever fits."""
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

    Args:
        scorer: The model, on its device, not trained any more.
        threads: The number of threads that it computes with on a CPU.
    """

    def __init__(self, scorer: Scorer, threads: int | None = None) -> None:
        self._scorer = scorer
        self._threads = threads
        self._schedule = Schedule(scorer)
        self._doors = {"short": Door(ROOM), "long": Door(ROOM)}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._encoding = ThreadPoolExecutor(ENCODING_THREADS, thread_name_prefix="encoding")
        self._forks = fork.forks
        open_queues.add(self)

    def logits(
        self,
        pairs: Sequence[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Logits:
        """Return the raw logits of pairs, `[pairs]`; raises as `submit`."""
        distinct, rows = distinct_pairs(pairs)
        logits = concatenated(list(self.stream(distinct, progress, adapter=adapter)))
        if progress and len(distinct) < len(pairs):
            progress(len(pairs) - len(distinct))
        return logits[rows]

    async def alogits(
        self,
        pairs: Sequence[Pair],
        *,
        adapter: str | None = None,
        count_tokens: Callable[[int], Any] | None = None,
    ) -> Logits:
        """`logits`, without blocking the event loop."""
        distinct, rows = await self.beside_loop(distinct_pairs, pairs)
        chunks = [
            await self._score(chunk, adapter=adapter, count_tokens=count_tokens)
            for chunk in self._scorer.chunks(distinct)
        ]
        return concatenated(chunks)[rows]

    def stream(
        self,
        pairs: Iterable[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Logits]:
        """Yield the raw logits of pairs chunk by chunk; raises as `submit`.

        One chunk is read and encoded here while the one before is scored.
        """
        self.check()
        submitted: deque[Future[Logits]] = deque()
        caller = object()
        try:
            for chunk in self._scorer.chunks(pairs):
                submitted.append(self.submit(chunk, progress, adapter=adapter, caller=caller))
                if len(submitted) == CHUNKS_AHEAD:
                    yield submitted[0].result()
                    submitted.popleft()
            while submitted:
                yield submitted[0].result()
                submitted.popleft()
        finally:
            for future in submitted:
                future.cancel()

    def submit(
        self,
        pairs: Sequence[Pair],
        progress: Callable[[int], Any] | None = None,
        *,
        adapter: str | None = None,
        caller: object = None,
    ) -> "Future[Logits]":
        """Encode pairs in this thread and submit them; waits while there is no room.

        A future that is cancelled frees its room, and what is not scored yet is dropped. Jobs of
        the same `caller` do not share batches; without one a job shares them with any other.

        Raises:
            QueueError: the process was forked, or the model is closed.
            InputError: a text is not valid Unicode.
        """
        with self._room(len(pairs)) as ticket:
            ticket.result()
            return self._submit(*self._encode(pairs), adapter, caller, progress)

    async def _score(
        self,
        pairs: Sequence[Pair],
        *,
        adapter: str | None,
        count_tokens: Callable[[int], Any] | None,
    ) -> Logits:
        """Return the logits of one chunk of pairs, without blocking the event loop."""
        with self._room(len(pairs)) as ticket:
            await asyncio.wrap_future(ticket)
            encoded, batches = await self.beside_loop(self._encode, pairs)
            if count_tokens:
                count_tokens(sum(map(len, encoded.windows)))
            future = self._submit(encoded, batches, adapter)
        return await asyncio.wrap_future(future)

    async def beside_loop(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that takes a while in a thread beside the event loop."""
        self.check()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoding, function, *arguments)

    def check(self) -> None:
        """Raise a `QueueError` if the model cannot be used from this process, or not any more.

        A daemon thread that is still alive when Python shuts down ends here in silence: nobody is
        left to take an error, and Python would print it.
        """
        if self._forks != fork.forks:
            raise QueueError(FORKED)
        if self._closed:
            if threading.current_thread().daemon:
                raise SystemExit
            raise QueueError("the model is closed: Python is shutting down")

    def close(self) -> None:
        """Let the thread end after the batch that it is scoring; what waits is not scored."""
        # In a fork the lock may be held for ever.
        if self._forks == fork.forks:
            with self._changed:
                self._closed = True
                self._changed.notify()
            self._encoding.shutdown(wait=False)

    @contextmanager
    def _room(self, count: int) -> "Iterator[Future[None]]":
        """Yield a ticket that is done when there is room for so many pairs; errors return it."""
        self.check()
        ticket: Future[None] = Future()
        with self._changed:
            door = self._door(count)
            door.outside.append((count, ticket))
            door.admit()
        try:
            yield ticket
        except BaseException:
            # Ctrl-C and cancelled tasks, too, must return the room that they took.
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
        return encoded, self._schedule.cut(encoded)

    def _submit(
        self,
        encoded: EncodedPairs,
        batches: deque[Batch],
        adapter: str | None,
        caller: object = None,
        progress: Callable[[int], Any] | None = None,
    ) -> "Future[Logits]":
        with self._changed:
            self.check()
            job = self._schedule.add(
                encoded, batches, adapter=adapter, caller=caller, progress=progress
            )
            job.future.add_done_callback(lambda _: self._leave(len(encoded)))
            self._start()
            self._changed.notify()
        return job.future

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: other threads may still score when the main one has ended.
            self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
            fork.scoring_threads.add(self._thread)
            self._thread.start()

    def _work(self) -> None:
        """Score until the queue is closed."""
        use_threads(self._threads)
        while taken := self._take():
            if not self._schedule.score(taken):
                with self._changed:
                    self._schedule.put_back(taken)
            # Nothing of a job is kept while the thread waits.
            del taken

    def _take(self) -> list[tuple[Job, Batch]]:
        """Wait for batches to score; returns none when the queue is closed."""
        with self._changed:
            while not self._closed:
                if taken := self._schedule.take():
                    return taken
                self._changed.wait()
            return []


open_queues: "WeakSet[ModelQueue]" = WeakSet()


def close_all() -> None:
    """Close all queues when Python ends and only daemons are left: none may be inside torch."""
    for queue in list(open_queues):
        queue.close()
    for thread in list(fork.scoring_threads):
        thread.join()


atexit.register(close_all)
