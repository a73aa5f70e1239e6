"""Wall clock that can be stopped: training is timed without evaluating and saving."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Runs from the start; `paused` leaves out what happens inside it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._left_out = 0.0
        self._stopped: float | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._left_out += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Seconds so far, or until `stop`."""
        if self._stopped is not None:
            return self._stopped
        return time.perf_counter() - self._start - self._left_out

    def as_record(self) -> float:
        """What a resumed run must know."""
        return self.seconds

    def restore(self, seconds: float) -> None:
        """Go on from what `as_record` gave: what was lost with the interrupted run is not in it."""
        self._start, self._left_out = time.perf_counter() - seconds, 0.0

    def stop(self) -> None:
        """Stop for good."""
        self._stopped = self.seconds
