"""The reasons why a request is not answered, and what each format makes of them."""

from enum import Enum

from pydantic import ValidationError

#: An error of the type of a document, whatever types it could have.
DOCUMENT_TYPE = "expected a text, or an object with a 'text'"


class Reason(Enum):
    """Why a request is refused, with its usual status."""

    MALFORMED = 400
    UNAUTHORIZED = 401
    UNKNOWN_MODEL = 404
    TOO_SLOW = 408
    TOO_LARGE = 413
    UNSUPPORTED = 415
    INVALID = 422
    OVERLOADED = 429
    FAILED = 500
    UNAVAILABLE = 503


class RefusedError(Exception):
    """A request is not answered.

    Args:
        reason: Why.
        message: The problem in one line; it names the field, and has no text of the request.
        retry_after: The seconds after which the request may succeed.
    """

    def __init__(self, reason: Reason, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.reason is Reason.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.reason is Reason.TOO_SLOW:
            headers["Connection"] = "close"
        return headers


def invalid(error: ValidationError) -> RefusedError:
    """Return the refusal of a request whose fields have wrong types or values."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    location = first["loc"]
    if len(location) > 1 and isinstance(location[1], int):
        problem = DOCUMENT_TYPE if location[0] == "documents" else first["msg"]
        return RefusedError(Reason.INVALID, f"{location[0]}[{location[1]}]: {problem}")
    field = str(location[0]) if location else "body"
    problem = "the field is required" if first["type"] == "missing" else first["msg"]
    return RefusedError(Reason.INVALID, f"{field}: {problem}")
