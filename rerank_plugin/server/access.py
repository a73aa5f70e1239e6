"""The bearer key that requests must have."""

import hmac

from starlette.requests import Request

from rerank_plugin.server.refusals import Reason, RefusedError


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
