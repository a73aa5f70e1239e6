"""The format of `/rerank` of Hugging Face's text-embeddings-inference."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from rerank_plugin.server.formats.base import Format, Model, Query, RequestFields
from rerank_plugin.server.ranking_request import RankingRequest, RankingResponse
from rerank_plugin.server.refusals import Reason, RefusedError

#: The types of errors that clients know, by reason; all others are `Validation`.
ERROR_TYPES = {
    Reason.OVERLOADED: "Overloaded",
    Reason.FAILED: "Backend",
    Reason.UNAVAILABLE: "Unhealthy",
}


class TeiRequest(RequestFields):
    """A query and texts."""

    query: Query
    texts: list[str]
    raw_scores: bool = Field(default=False, description="whether scores are logits")
    return_text: bool = Field(default=False, description="whether results have their texts")
    truncate: bool | None = Field(
        default=None,
        description="whether the end of what is too long is cut off, as by default; else it is "
        "refused",
    )
    truncation_direction: Literal["left", "right", "Left", "Right"] = Field(
        default="right", description="the end that is cut off; only right is supported"
    )
    model: Model | None = None

    def ranking_request(self) -> RankingRequest:
        """Return what is to be ranked.

        Raises:
            RefusedError: it asks to cut off the beginning of texts.
        """
        if self.truncation_direction.lower() == "left":
            raise RefusedError(Reason.INVALID, "truncation_direction: only right is supported")
        return RankingRequest(
            query=self.query,
            texts=self.texts,
            field="texts",
            model=self.model,
            truncate=self.truncate is not False,
            raw_scores=self.raw_scores,
        )

    def answer(self, ranking: RankingResponse) -> Any:
        """Return the body of the response."""
        ranks: list[dict[str, Any]] = [
            {"index": document.index, "score": document.score} for document in ranking.documents
        ]
        if self.return_text:
            for rank, document in zip(ranks, ranking.documents, strict=True):
                rank["text"] = document.text
        return ranks


class TeiRank(BaseModel):
    """A ranked text."""

    index: int = Field(description="its index in the request")
    score: float
    text: str | None = None


class TeiError(BaseModel):
    """A problem in one line, and its type."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


def refuse(error: RefusedError) -> dict[str, Any]:
    """Return the body of an error."""
    error_type = ERROR_TYPES.get(error.reason, "Validation")
    return {"error": error.message, "error_type": error_type}


#: The format of text-embeddings-inference.
TEI = Format("tei", TeiRequest, list[TeiRank], TeiError, refuse, {Reason.FAILED: 424})
