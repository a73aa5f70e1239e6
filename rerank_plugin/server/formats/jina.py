"""The format of Jina's `/v1/rerank`, which Cohere's version 1 and most local servers share."""

from typing import Any

from pydantic import BaseModel, Field

from rerank_plugin.server.formats.base import DocumentsFields, Format
from rerank_plugin.server.ranking_request import RankingResponse
from rerank_plugin.server.refusals import RefusedError


class JinaRequest(DocumentsFields):
    """A query and documents."""

    return_documents: bool | None = Field(
        default=False, description="whether results have the texts of their documents"
    )

    def answer(self, ranking: RankingResponse) -> Any:
        """Return the body of the response."""
        results: list[dict[str, Any]] = [
            {"index": document.index, "relevance_score": document.score}
            for document in ranking.documents
        ]
        if self.return_documents:
            for result, document in zip(results, ranking.documents, strict=True):
                result["document"] = {"text": document.text}
        usage = {"total_tokens": ranking.tokens, "prompt_tokens": ranking.tokens}
        return {"model": ranking.model, "results": results, "usage": usage}


class JinaDocument(BaseModel):
    """The text of a document."""

    text: str


class JinaResult(BaseModel):
    """A ranked document."""

    index: int = Field(description="its index in the request")
    relevance_score: float
    document: JinaDocument | None = None


class JinaUsage(BaseModel):
    """The number of tokens that the model has read."""

    total_tokens: int
    prompt_tokens: int


class JinaResponse(BaseModel):
    """The best documents, the best first."""

    model: str
    results: list[JinaResult]
    usage: JinaUsage


class JinaError(BaseModel):
    """A problem in one line."""

    detail: str


def refuse(error: RefusedError) -> dict[str, Any]:
    """Return the body of an error."""
    return {"detail": error.message}


#: Jina's format.
JINA = Format("jina", JinaRequest, JinaResponse, JinaError, refuse)
