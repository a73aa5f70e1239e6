"""The format of Jina's `/v1/rerank`, which Cohere's version 1 and most local servers share."""

from typing import Any

from pydantic import BaseModel, Field

from rerank_plugin.server.formats.base import (
    Documents,
    Format,
    Instruction,
    Model,
    Query,
    RequestFields,
    Threshold,
    TopN,
    document_texts,
)
from rerank_plugin.server.ranking_request import RankingRequest, RankingResponse
from rerank_plugin.server.refusals import RefusedError


class JinaRequest(RequestFields):
    """A query and documents."""

    model: Model | None = None
    query: Query
    documents: Documents
    top_n: TopN = None
    return_documents: bool | None = Field(
        default=False, description="whether results have the texts of their documents"
    )
    instruction: Instruction = None
    score_threshold: Threshold = None

    def ranking_request(self) -> RankingRequest:
        """Return what is to be ranked."""
        return RankingRequest(
            query=self.query,
            texts=document_texts(self.documents),
            field="documents",
            model=self.model,
            top_n=self.top_n,
            score_threshold=self.score_threshold,
            instruction=self.instruction,
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
