"""The result of ranking files of requests."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_plugin.ranking import RankedDocuments


@dataclass(frozen=True)
class RerankResult:
    """The files with the rankings, and how much was ranked."""

    #: The files, in the order of the requests; none if the rankings were written to stdout.
    files: list[Path]
    #: The number of requests in all files.
    requests: int
    #: How many of them an earlier, interrupted run had ranked.
    resumed: int = 0


def result_record(ranked: "RankedDocuments[Any]") -> dict[str, object]:
    """Return the result of a request as it is written."""
    ranking = [
        {"index": ranked_document.index, "score": ranked_document.score}
        for ranked_document in ranked.ranking
    ]
    return {"query": ranked.query, "scores": ranked.scores.tolist(), "ranking": ranking}
