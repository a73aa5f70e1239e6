"""Measurements of a server in the format of Prometheus."""

from starlette.responses import Response

from rerank_plugin.extras import MissingPackageError

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
except ModuleNotFoundError as error:
    raise MissingPackageError("prometheus_client") from error

from rerank_plugin.server.admission import Admission

#: The upper bounds of the buckets of seconds.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts requests, documents and tokens.

    Args:
        admission: Where the pairs and bytes are that wait.
    """

    def __init__(self, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rerank_requests",
            "Requests by endpoint and status; 499 is a connection that the client closed.",
            ("endpoint", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "rerank_request_seconds",
            "Seconds from the headers of a request to its response.",
            ("endpoint",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.documents = Counter(
            "rerank_documents", "Documents that were ranked.", registry=self.registry
        )
        self.tokens = Counter(
            "rerank_tokens", "Tokens that the model has read.", registry=self.registry
        )
        pairs = Gauge(
            "rerank_waiting_pairs", "Pairs that wait or are scored.", registry=self.registry
        )
        pairs.set_function(lambda: admission.pairs)
        size = Gauge("rerank_waiting_bytes", "Bytes of their requests.", registry=self.registry)
        size.set_function(lambda: admission.bytes)
        ProcessCollector(registry=self.registry)

    def response(self) -> Response:
        """Return all measurements."""
        return Response(
            generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
