"""The endpoints that rank: read a request in a format, rank, answer in the same format."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from rerank_plugin.engine.fork import QueueError
from rerank_plugin.engine.scores import ScoringError
from rerank_plugin.server.access import check_key
from rerank_plugin.server.admission import Admission, Share
from rerank_plugin.server.body import read_object
from rerank_plugin.server.disconnection import unless_disconnected
from rerank_plugin.server.formats.base import Format
from rerank_plugin.server.metrics import Metrics
from rerank_plugin.server.refusals import Reason, RefusedError, invalid
from rerank_plugin.server.served_model import ServedModel
from rerank_plugin.server.settings import ServerSettings

logger = logging.getLogger(__name__)

#: The status in logs and metrics of a connection that the client has closed.
CLOSED_BY_CLIENT = 499


@dataclass(frozen=True)
class Service:
    """The model, the limits and the measurements that all endpoints of a server share."""

    model: ServedModel
    settings: ServerSettings
    api_key: str | None
    admission: Admission
    metrics: Metrics


@dataclass
class Record:
    """The log line of a request: sizes and times, never texts."""

    start: float
    #: The formats that it may be in: one, as soon as its body is read.
    formats: list[Format]
    documents: int = 0
    characters: int = 0
    tokens: int = 0


class RankingEndpoint:
    """Ranks the documents of requests.

    Args:
        service: The model and the limits.
        path: The path of the endpoint, for logs and metrics.
        formats: The formats of its requests by the field that only they have. Requests with none
            of these fields are in the first one.
    """

    def __init__(self, service: Service, path: str, formats: dict[str, Format]) -> None:
        self.service = service
        self.path = path
        self.formats = formats

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        record = Record(monotonic(), list(self.formats.values()))
        try:
            with self.service.admission.request() as share:
                response = await self._rank(request, share, record)
        except RefusedError as error:
            response = refused(error, record.formats)
        except ClientDisconnect:
            response = Response(status_code=CLOSED_BY_CLIENT)
        except Exception as error:
            response = refused(failed(error), record.formats)
        self._note(record, response.status_code)
        return response

    async def _rank(self, request: Request, share: Share, record: Record) -> Response:
        check_key(request, self.service.api_key)
        body = await read_object(request, self.service.settings, share)
        format = self._format_of(body)
        record.formats = [format]
        try:
            fields = format.request.model_validate(body)
        except ValidationError as error:
            raise invalid(error) from None
        ranking_request = fields.ranking_request()
        record.documents = len(ranking_request.texts)
        record.characters = ranking_request.characters
        ranking_request.check(self.service.settings)
        share.take_pairs(record.documents)
        ranking = await unless_disconnected(request, self.service.model.rank(ranking_request))
        record.tokens = ranking.tokens
        return JSONResponse(fields.answer(ranking))

    def _format_of(self, body: dict[str, object]) -> Format:
        """Return the format of a request.

        Raises:
            RefusedError: it has fields of several formats.
        """
        given = [field for field in self.formats if field in body]
        if len(given) > 1:
            raise RefusedError(Reason.INVALID, f"{' and '.join(given)}: use one of them")
        return self.formats[given[0]] if given else next(iter(self.formats.values()))

    def _note(self, record: Record, status: int) -> None:
        """Log a request, and count it."""
        seconds = monotonic() - record.start
        metrics = self.service.metrics
        metrics.requests.labels(self.path, str(status)).inc()
        metrics.seconds.labels(self.path).observe(seconds)
        if status == 200:
            metrics.documents.inc(record.documents)
            metrics.tokens.inc(record.tokens)
        logger.info(
            "POST %s %d: %s, %d documents, %d characters, %d tokens, %.3f s",
            self.path,
            status,
            " or ".join(format.name for format in record.formats),
            record.documents,
            record.characters,
            record.tokens,
            seconds,
        )


def refused(error: RefusedError, formats: Sequence[Format]) -> Response:
    """Return the response to a request that is refused, in its format.

    If the format is not known, the response has the fields of all that it may be in.
    """
    body: dict[str, Any] = {}
    for format in formats:
        body |= format.refuse(error)
    return JSONResponse(body, formats[0].status(error.reason), headers=error.headers)


def failed(error: Exception) -> RefusedError:
    """Return the error of a request that could not be answered, and log why.

    The message of an error that is not expected may have texts of the request.
    """
    if isinstance(error, QueueError | ScoringError):
        logger.error("a request failed: %s", error)
        reason = Reason.UNAVAILABLE if isinstance(error, QueueError) else Reason.FAILED
        return RefusedError(reason, str(error))
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    where = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback else "?"
    logger.error("a request failed: %s at %s", type(error).__name__, where)
    return RefusedError(Reason.FAILED, f"the ranking failed: {type(error).__name__}")
