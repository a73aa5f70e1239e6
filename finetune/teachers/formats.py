"""The formats of HTTP rerank endpoints: what requests have, and how responses are read."""

from ipaddress import ip_address
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

#: Fields of a request besides `query`, `documents` and `model`, by the name of its format.
FORMATS: dict[str, dict[str, Any]] = {"jina": {"return_documents": False}, "cohere": {}}


def is_endpoint(teacher: str) -> bool:
    """Return whether a teacher is a URL."""
    return teacher.startswith(("http://", "https://"))


def endpoint_format(url: str) -> str:
    """Return the name of the format that the path of a URL tells."""
    return "cohere" if urlsplit(url).path.rstrip("/").endswith("/v2/rerank") else "jina"


def is_local(url: str) -> bool:
    """Return whether a URL is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def request_body(name: str, model: str | None, query: str, documents: list[str]) -> dict[str, Any]:
    """Return the body of a request that ranks all documents."""
    named = {"model": model} if model else {}
    return {**named, "query": query, "documents": documents, **FORMATS[name]}


def response_scores(body: Any, documents: int) -> list[float]:
    """Return the scores of a response in the order of the documents.

    Raises:
        ValueError: it has no finite score for one of them.
    """
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, list):
        raise ValueError("the response has no list 'results'")
    scores: dict[int, float] = {}
    for result in results:
        try:
            index, score = int(result["index"]), float(result["relevance_score"])
        except (TypeError, KeyError, ValueError):
            raise ValueError("a result has no 'index' and 'relevance_score'") from None
        if not isfinite(score):
            raise ValueError(f"the score of document {index} is {score}")
        scores[index] = score
    missing = [index for index in range(documents) if index not in scores]
    if missing:
        raise ValueError(f"{len(missing)} of {documents} documents have no score")
    return [scores[index] for index in range(documents)]
