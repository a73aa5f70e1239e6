"""The pace of requests: a rate limit, and pauses that an endpoint asks for."""

import logging
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

logger = logging.getLogger(__name__)

#: A pause of so many seconds is logged.
LONG = 10.0


class StoppedError(Exception):
    """No more requests are sent, because one has failed for good."""


class Pace:
    """The times at which the threads of a client may send requests.

    Args:
        per_minute: The most requests a minute; None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def wait(self) -> None:
        """Wait until a request may be sent.

        Raises:
            StoppedError: none may be sent any more.
        """
        with self._lock:
            time_to_send = max(time.monotonic(), self._next)
            self._next = time_to_send + self._interval
        if self._stopped.wait(max(0.0, time_to_send - time.monotonic())):
            raise StoppedError

    def pause(self, seconds: float) -> None:
        """Let no thread send a request for some seconds."""
        if seconds >= LONG:
            logger.warning("the endpoint is busy: the next request is sent in %.0f s", seconds)
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def stop(self) -> None:
        """Let no thread send a request any more."""
        self._stopped.set()


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header: a number or a date; None without one."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
