"""A teacher behind HTTP: a rerank endpoint in Jina's or Cohere's format."""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import ceil, log
from typing import TYPE_CHECKING, Any

from rerank_plugin.errors import InputError, OptionError, RerankError
from rerank_plugin.extras import require

from ..data.groups import Group
from .formats import endpoint_format, request_body, response_scores
from .options import MAX_REQUESTS, TeacherOptions
from .pace import Pace, StoppedError, retry_after
from .teacher import Record, Teacher

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

#: The most documents of a request: what Cohere takes.
DOCUMENTS = 1_000

#: Probabilities are clipped to this distance from 0 and 1: logits from -13.8 to 13.8.
LEAST = 1e-6

#: How often a request that fails is sent again, and the seconds before the first time.
RETRIES, FIRST_DELAY = 6, 1.0

#: The seconds that a request may take.
TIMEOUT = 120.0

#: Requests at the same time by default.
CONCURRENCY = 4


class EndpointError(RerankError):
    """An endpoint has failed; the same command resumes."""


@dataclass(frozen=True)
class Cost:
    """The numbers of requests, documents and characters that some groups need."""

    requests: int = 0
    documents: int = 0
    characters: int = 0

    @classmethod
    def from_groups(cls, groups: Iterable[Group]) -> "Cost":
        """Return the cost of groups."""
        requests = documents = characters = 0
        for group in groups:
            count = ceil(len(group.documents) / DOCUMENTS)
            requests += count
            documents += len(group.documents)
            characters += count * len(group.query) + sum(map(len, group.documents))
        return cls(requests, documents, characters)

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests with {self.documents:,} documents and "
            f"{self.characters:,} characters"
        )


class EndpointTeacher(Teacher):
    """A rerank endpoint.

    A request has a query and all documents of its group. Responses with status 429 or above 499 and
    broken connections are tried again, after the time in `Retry-After` or longer and longer ones.
    Every response is recorded when it arrives, so that nothing is paid for twice.

    Endpoints return probabilities, from which logits are made, as local models have them: clipped
    to [1e-6, 1 - 1e-6], p becomes log(p / (1 - p)).

    Args:
        url: The URL of the endpoint.
        options: Its format, model, key and limits.
    """

    def __init__(self, url: str, options: TeacherOptions) -> None:
        self.url = url
        self._httpx = require("httpx")
        self._format = options.endpoint_format or endpoint_format(url)
        self._model = options.endpoint_model
        self._are_logits = options.endpoint_scores == "logits"
        self._max_requests = options.max_requests or MAX_REQUESTS
        self._concurrency = options.concurrency or CONCURRENCY
        self._pace = Pace(options.requests_per_minute)
        key = options.api_key()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def check_instruction(self, instruction: str, where: str = "") -> None:
        """Refuse an instruction, for which the formats have no field."""
        problem = "an endpoint takes no instruction: remove the field 'instruction'"
        raise InputError(f"{where}: {problem}" if where else problem)

    def check_cost(self, cost: Cost) -> None:
        """Say what will be sent.

        Raises:
            OptionError: it is more than allowed.
        """
        logger.info("%s: %s", self.url, cost)
        if cost.requests > self._max_requests:
            raise OptionError(
                "max_requests",
                f"{cost} are needed, and {self._max_requests:,} requests are allowed: use "
                f"--max_requests {cost.requests}",
            )

    def score(self, groups: Iterable[tuple[int, Group]], record: Record) -> None:
        """Score all documents of some groups, and record the logits of each.

        Raises:
            InputError: the endpoint refuses a request or the key.
            EndpointError: it has failed for good.
        """
        client = self._httpx.Client(headers=self._headers, timeout=TIMEOUT)
        pool = ThreadPoolExecutor(self._concurrency, "teacher")

        def work(index: int, group: Group) -> None:
            try:
                record(index, self._group_logits(client, group))
            except BaseException:
                self._pace.stop()
                raise

        try:
            pending: set[Future[None]] = set()
            for index, group in groups:
                pending.add(pool.submit(work, index, group))
                if len(pending) >= 2 * self._concurrency:
                    pending = finished(pending)
            while pending:
                pending = finished(pending)
        except BaseException:
            # Requests in flight are waited for and recorded; no other is sent.
            self._pace.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            client.close()

    def _group_logits(self, client: "httpx.Client", group: Group) -> list[float]:
        scores = []
        for start in range(0, len(group.documents), DOCUMENTS):
            documents = group.documents[start : start + DOCUMENTS]
            body = request_body(self._format, self._model, group.query, documents)
            response = self._post(client, body)
            try:
                scores += response_scores(response.json(), len(documents))
            except ValueError as error:
                raise EndpointError(f"{self.url}: {error}") from None
        return scores if self._are_logits else [self._logit(score) for score in scores]

    def _logit(self, score: float) -> float:
        if not 0 <= score <= 1:
            problem = f"{self.url} returned {score:g}, which is no probability: use logits"
            raise OptionError("endpoint_scores", problem)
        clipped = min(max(score, LEAST), 1 - LEAST)
        return log(clipped / (1 - clipped))

    def _post(self, client: "httpx.Client", body: dict[str, Any]) -> "httpx.Response":
        """Send a request until it is answered."""
        problem = ""
        for delay in delays():
            self._pace.wait()
            try:
                response = client.post(self.url, json=body)
            except self._httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                self._pace.pause(delay)
                continue
            if response.is_success:
                return response
            problem = f"status {response.status_code}: {response.text[:200].strip()}"
            if response.status_code != 429 and response.status_code < 500:
                raise self._refusal(response.status_code, problem)
            asked = retry_after(response.headers.get("Retry-After"))
            self._pace.pause(delay if asked is None else asked)
        raise EndpointError(f"{self.url}: {problem} (after {RETRIES + 1} tries)")

    def _refusal(self, status: int, problem: str) -> InputError:
        if status in (401, 403):
            hint = ": see --api_key_env and --api_key_file"
            return InputError(f"{self.url}: the key is missing or wrong{hint} ({problem})")
        return InputError(f"{self.url}: {problem}")


def delays() -> Iterator[float]:
    """Yield the seconds to wait after each try that fails."""
    for retry in range(RETRIES + 1):
        yield FIRST_DELAY * 2**retry


def finished(pending: set[Future[None]]) -> set[Future[None]]:
    """Wait for a request, and return those that are not finished; raises the error of one."""
    done, waiting = wait(pending, return_when=FIRST_COMPLETED)
    errors = [future.exception() for future in done]
    for error in errors:
        if error is not None and not isinstance(error, StoppedError):
            raise error
    return waiting
