"""Admission: pairs and bytes that wait are bounded, and what does not fit is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from time import monotonic

from rerank_plugin.server.refusals import Reason, RefusedError

#: The limits of `Retry-After` in seconds.
SHORTEST_RETRY, LONGEST_RETRY = 1, 60


class Admission:
    """Counts the pairs and bytes of all requests that are being answered.

    It belongs to one event loop.

    Args:
        max_pairs: The number of pairs that fit.
        max_bytes: The number of bytes of bodies that fit.
    """

    def __init__(self, max_pairs: int, max_bytes: int) -> None:
        self.max_pairs = max_pairs
        self.max_bytes = max_bytes
        self.pairs = 0
        self.bytes = 0
        #: The seconds that the last answered request took, which the next one may take too.
        self._last_seconds = 0.0

    @contextmanager
    def request(self) -> Iterator["Share"]:
        """Yield the share of a request, which is returned at its end."""
        share, start = Share(self), monotonic()
        try:
            yield share
            if share.pairs:
                self._last_seconds = monotonic() - start
        finally:
            self.pairs -= share.pairs
            self.bytes -= share.bytes

    def overloaded(self) -> RefusedError:
        """Return the refusal of a request that does not fit."""
        seconds = min(max(ceil(self._last_seconds), SHORTEST_RETRY), LONGEST_RETRY)
        return RefusedError(
            Reason.OVERLOADED,
            f"the server is overloaded: try again in {seconds} s",
            retry_after=seconds,
        )


class Share:
    """The pairs and bytes of one request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.pairs = 0
        self.bytes = 0

    def take_pairs(self, count: int) -> None:
        """Take room for pairs.

        Raises:
            RefusedError: they do not fit.
        """
        if self._admission.pairs + count > self._admission.max_pairs:
            raise self._admission.overloaded()
        self.pairs += count
        self._admission.pairs += count

    def check_bytes(self, count: int) -> None:
        """Check that there is room for bytes that are announced; raises as `take_pairs`.

        They take it as they arrive: a client that sends none of them keeps no one out.
        """
        if self._admission.bytes + count > self._admission.max_bytes:
            raise self._admission.overloaded()

    def take_bytes(self, count: int) -> None:
        """Take room for bytes; raises as `take_pairs`."""
        self.check_bytes(count)
        self.bytes += count
        self._admission.bytes += count
