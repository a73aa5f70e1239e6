"""Drop the work of a request whose connection the client has closed."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of work; it is cancelled if the client closes the connection.

    Args:
        request: The request, whose body has been read.
        work: The work for its response.

    Raises:
        ClientDisconnect: the client has closed the connection.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for unfinished in (task, watcher):
            unfinished.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await unfinished


async def disconnected(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
