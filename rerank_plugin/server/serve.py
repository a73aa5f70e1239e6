"""Serve an application on a socket until a signal ends it."""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette

from rerank_plugin.errors import OptionError
from rerank_plugin.server.connections import TimedConnection

logger = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which accepts no connections yet.

    Raises:
        OptionError: there is no such address, or another program uses it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        if os.name == "posix":
            # The port of a server that has just ended can be used again.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except socket.gaierror as error:
        raise OptionError("host", f"{host}: {error.strerror}") from None
    except OSError as error:
        raise OptionError("port", f"{host}:{port}: {error.strerror}") from None
    return bound


class Server(uvicorn.Server):
    """A server that says where it is.

    Args:
        app: The application.
        max_connections: The number of connections; more get status 503.
        read_timeout: The seconds in which the head of a request must arrive.
        shutdown_timeout: The seconds in which requests may finish at the end.
    """

    def __init__(
        self,
        app: Starlette,
        *,
        max_connections: int,
        read_timeout: float,
        shutdown_timeout: float,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=TimedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=max_connections,
            timeout_keep_alive=max(1, round(read_timeout)),
            timeout_graceful_shutdown=max(1, round(shutdown_timeout)),
        )
        super().__init__(config)
        #: Called once connections are accepted.
        self.on_start: Callable[[], Any] = list

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, and log the address."""
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("serving at http://%s:%d (Ctrl-C stops it)", shown, port)
        self.on_start()

    def serve_at(self, bound: socket.socket) -> None:
        """Serve until SIGINT or SIGTERM; then nothing is accepted, and requests finish."""
        # uvicorn raises the signal again once all requests are answered.
        with suppress(KeyboardInterrupt):
            self.run([bound])
