"""Read the body of a request up to a limit, as a JSON object."""

import asyncio
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request

from rerank_plugin.server.admission import Share
from rerank_plugin.server.refusals import Reason, RefusedError
from rerank_plugin.server.settings import ServerSettings

#: The encodings of JSON that is sent as bytes: only UTF-8.
CHARSETS = {"", "utf-8", "utf8"}


async def read_object(request: Request, settings: ServerSettings, share: Share) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        RefusedError: it is something else, too large, or too slow, or does not fit beside others.
        ClientDisconnect: the client has closed the connection.
    """
    check_headers(request)
    try:
        async with asyncio.timeout(settings.read_timeout):
            body = await read_bytes(request, settings.max_body_bytes, share)
    except TimeoutError:
        raise RefusedError(
            Reason.TOO_SLOW, f"the body did not arrive within {settings.read_timeout:g} s"
        ) from None
    try:
        # Not more than 200 levels deep, and without NaN or unpaired surrogates.
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(Reason.MALFORMED, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError(Reason.INVALID, "the body must be a JSON object")
    return value


def check_headers(request: Request) -> None:
    """Check that the body is announced as plain JSON, which no page of another origin can send.

    Raises:
        RefusedError: it is announced as something else.
    """
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise RefusedError(Reason.UNSUPPORTED, "the Content-Type must be application/json")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if charset not in CHARSETS:
        raise RefusedError(Reason.UNSUPPORTED, "the charset of the body must be utf-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(Reason.UNSUPPORTED, "compressed bodies are not supported")


async def read_bytes(request: Request, limit: int, share: Share) -> bytes:
    """Return the body, of at most so many bytes; raises as `read_object`."""
    length = request.headers.get("content-length", "")
    # The HTTP server has checked that it is a number.
    announced = int(length) if length.isdecimal() else 0
    check_size(announced, limit)
    share.check_bytes(announced)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        check_size(len(body), limit)
        share.take_bytes(len(chunk))
    return bytes(body)


def check_size(size: int, limit: int) -> None:
    """Raise a `RefusedError` for a body that is too large."""
    if size > limit:
        raise RefusedError(Reason.TOO_LARGE, f"the body has more than {limit} bytes, the limit")
