"""The settings of a server: what it admits, and whom."""

from dataclasses import dataclass

from rerank_plugin.errors import OptionError
from rerank_plugin.options import check_options, option


@dataclass(kw_only=True)
class ServerSettings:
    """Limits of requests, and who may send them."""

    max_documents: int = option(1_000, minimum=1, help="the maximum number of documents a request")
    max_characters: int = option(
        100_000, minimum=1, help="the maximum number of characters of a query or a document"
    )
    max_body_bytes: int = option(
        10_000_000, minimum=1, help="the maximum size of the body of a request in bytes"
    )
    max_waiting_pairs: int = option(
        10_000,
        minimum=1,
        help="the number of pairs that may wait or be scored; more requests are refused with 429",
    )
    max_waiting_bytes: int = option(
        100_000_000, minimum=1, help="the same for the bytes of their bodies"
    )
    read_timeout: float = option(
        30.0, minimum=0.001, help="the seconds in which the body of a request must arrive"
    )
    cors_origins: list[str] | None = option(
        None, help="origins of web pages that may send requests, such as https://example.com"
    )
    allowed_hosts: list[str] | None = option(
        None,
        help="the host names that requests may be addressed to; default: those of this machine "
        "with a loopback --host, else any",
    )

    def __post_init__(self) -> None:
        check_options(self)
        for host in self.allowed_hosts or []:
            if host != "*" and "*" in host.removeprefix("*."):
                raise OptionError("allowed_hosts", f"expected NAME, *.NAME or *, not {host!r}")
        for limit, maximum in (
            ("max_waiting_pairs", self.max_documents),
            ("max_waiting_bytes", self.max_body_bytes),
        ):
            if getattr(self, limit) < maximum:
                raise OptionError(limit, f"must be at least {maximum}, for one request")
