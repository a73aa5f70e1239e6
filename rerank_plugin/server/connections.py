"""Connections that time out: uvicorn alone waits for the rest of a request's head for ever."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: The bytes of a body that are read after its request is refused. A client that still sends gets
#: the response only if the connection is not closed before.
LINGERING_BYTES = 10_000_000


class TimedConnection(H11Protocol):
    """Closes a connection if the head of its next request does not arrive in time.

    The time is uvicorn's for connections that are kept alive. uvicorn stops it at the first byte,
    and does not start it for a new connection.
    """

    #: The bytes that were read of bodies whose requests are refused.
    discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first request."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """Receive data; bytes of a head that is not complete do not stop the time."""
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self.discarded += len(data)
            if self.discarded > LINGERING_BYTES:
                self.transport.close()
                return
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        in_request = self.cycle is not None and not self.cycle.response_complete
        if timer is not None and (in_request or self.timeout_keep_alive_task is not None):
            timer.cancel()
        elif timer is not None:
            self.timeout_keep_alive_task = timer
