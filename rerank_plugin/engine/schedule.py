"""The scoring loop: jobs of encoded pairs, cut into batches that fit a token budget and the memory.

`ModelQueue` runs it in a thread of its own for many callers, `Scorer.logits` in the caller's.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from rerank_plugin.engine.distinct import EncodedPairs
from rerank_plugin.engine.scores import Logits
from rerank_plugin.engine.template import EncodedPair


class BatchScorer(Protocol):
    """The parts of a `Scorer` that a schedule needs."""

    packs: bool

    @property
    def token_budget(self) -> int:
        """Return the maximum cost of a batch in tokens."""
        ...

    def cost(self, pairs: Sequence[EncodedPair]) -> float:
        """Return the cost of pairs in one batch."""
        ...

    def batches(self, pairs: Sequence[EncodedPair]) -> list[list[int]]:
        """Return indices of pairs in batches within the budget."""
        ...

    def use(self, adapter: str | None) -> None:
        """Score with an adapter from now on."""
        ...

    def forward(self, pairs: Sequence[EncodedPair]) -> Logits:
        """Return the logits of a batch."""
        ...

    def halve_budget(self) -> bool:
        """Halve the budget; false if it is as small as it may be."""
        ...


@dataclass(frozen=True)
class Batch:
    """Windows of one job that are scored at once: their indices, and their cost."""

    indices: list[int]
    cost: float


@dataclass(eq=False)
class Job:
    """Encoded pairs that are scored batch by batch.

    Args:
        encoded: The pairs.
        batches: The batches that are not scored yet.
        due: The cost of all that has been scored when it is this job's turn at the latest.
        adapter: The adapter that scores it; a batch has one.
        caller: Jobs of one caller do not share batches, so that the logits of a lone caller do not
            depend on how many of its jobs wait.
        progress: Called with a number of pairs whenever that many more are scored.
        future: Gets the logits of the pairs.
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
        self.logits = np.empty(len(self.encoded.windows), np.float32)

    def add(self, batch: Batch, logits: Logits) -> None:
        """Take the logits of a batch; after the last one the future is done."""
        if self.future.done():
            return
        try:
            self.logits[batch.indices] = logits
            if self.progress:
                self.progress(int(self.encoded.pair_counts()[batch.indices].sum()))
            if not self.batches and self.future.set_running_or_notify_cancel():
                self.future.set_result(self.encoded.pair_logits(self.logits))
        except Exception as error:
            # The progress callback is the caller's: its errors must not end the scoring thread.
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the job with an error."""
        self.batches.clear()
        if self.future.done():
            return
        if self.future.running() or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Schedule:
    """Decides which batches are scored next.

    A job is due when the model has scored as much as the job costs since it arrived: three
    documents overtake ten thousand, but not for ever, as a job that arrives later is due later. A
    batch is filled up with further jobs of the same adapter; pairs of one job stay in the batches
    that they would be in if it were alone.

    It is not thread-safe: whoever shares it holds a lock around everything but `score`.

    Args:
        scorer: The model's scorer.
    """

    def __init__(self, scorer: BatchScorer) -> None:
        self._scorer = scorer
        #: The jobs that have batches left, by when they are due.
        self.waiting: list[Job] = []
        self._scored = 0.0

    def cut(self, encoded: EncodedPairs, indices: Sequence[int] | None = None) -> deque[Batch]:
        """Cut windows of encoded pairs, all by default, into batches within the budget."""
        indices = range(len(encoded.windows)) if indices is None else indices
        windows = [encoded.windows[index] for index in indices]
        return deque(
            Batch([indices[i] for i in batch], self._scorer.cost([windows[i] for i in batch]))
            for batch in self._scorer.batches(windows)
        )

    def add(
        self,
        encoded: EncodedPairs,
        batches: deque[Batch],
        *,
        adapter: str | None = None,
        caller: object = None,
        progress: Callable[[int], Any] | None = None,
    ) -> Job:
        """Add a job whose pairs were cut into batches; without a caller it has its own."""
        due = self._scored + sum(batch.cost for batch in batches)
        job = Job(encoded, batches, due, adapter, caller or object(), progress)
        self._insert(job)
        return job

    def take(self) -> list[tuple[Job, Batch]]:
        """Return batches that are scored at once, with their jobs; none if no job waits.

        They are one of the first job, filled up with its next ones and those of later jobs.
        """
        # Whoever cancelled a job does not wait for it.
        self.waiting = [job for job in self.waiting if not job.future.done()]
        if not self.waiting:
            return []
        adapter, room = self.waiting[0].adapter, float(self._scorer.token_budget)
        taken: list[tuple[Job, Batch]] = []
        callers: set[object] = set()
        for job in self.waiting:
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
        self.waiting = [job for job in self.waiting if job.batches]
        self._scored += sum(batch.cost for _, batch in taken)
        return taken

    def score(self, taken: Sequence[tuple[Job, Batch]]) -> bool:
        """Score batches and hand their logits to their jobs.

        Returns:
            False if they did not fit the memory and the budget was halved: put them back.
        """
        windows = [job.encoded.windows[index] for job, batch in taken for index in batch.indices]
        try:
            self._scorer.use(taken[0][0].adapter)
            logits = self._scorer.forward(windows)
        except Exception as error:
            # Every error belongs to the callers: the thread continues with other jobs.
            if isinstance(error, torch.OutOfMemoryError) and self._scorer.halve_budget():
                return False
            for job, _ in taken:
                job.fail(error)
            return True
        start = 0
        for job, batch in taken:
            job.add(batch, logits[start : start + len(batch.indices)])
            start += len(batch.indices)
        return True

    def put_back(self, taken: Sequence[tuple[Job, Batch]]) -> None:
        """Put batches back, and cut everything that waits by the new budget."""
        for job, batch in taken:
            job.batches.append(batch)
        jobs = dict.fromkeys([*(job for job, _ in taken), *self.waiting])
        self.waiting = []
        for job in jobs:
            indices = [index for batch in job.batches for index in batch.indices]
            job.batches = self.cut(job.encoded, indices)
            self._insert(job)

    def _insert(self, job: Job) -> None:
        insort(self.waiting, job, key=lambda waiting: waiting.due)
