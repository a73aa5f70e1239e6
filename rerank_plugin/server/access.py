"""The bearer key that requests must have, which is read from a file."""

import hmac
import os
import stat
from pathlib import Path

from starlette.requests import Request

from rerank_plugin.errors import OptionError
from rerank_plugin.server.refusals import Reason, RefusedError


def read_key(path: str | Path) -> str:
    """Return the API key in a file.

    Raises:
        OptionError: the file cannot be read, may be read by every user, or has no key.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            key = opened.read().strip()
    except OSError as error:
        raise OptionError("api_key_file", f"{file}: cannot be read: {error.strerror}") from None
    if os.name == "posix" and mode & stat.S_IROTH:
        raise OptionError("api_key_file", f"{file}: every user may read it: chmod 600 {file}")
    if not key:
        raise OptionError("api_key_file", f"{file}: the file is empty")
    if not key.isascii() or not key.decode("ascii").isprintable() or b" " in key:
        raise OptionError("api_key_file", f"{file}: expected one key of printable ASCII characters")
    return key.decode("ascii")


def check_key(request: Request, key: str | None) -> None:
    """Check the bearer key of a request; without a key of the server there is nothing to check.

    Raises:
        RefusedError: it has no key, or another one.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise RefusedError(Reason.UNAUTHORIZED, "the API key is missing: Authorization: Bearer KEY")
    # The time does not depend on how much of a wrong key is right.
    if not hmac.compare_digest(given.strip().encode("utf-8", "replace"), key.encode()):
        raise RefusedError(Reason.UNAUTHORIZED, "the API key is wrong")
