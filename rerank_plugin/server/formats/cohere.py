"""The format of Cohere's `/v2/rerank`."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field

from rerank_plugin.server.formats.base import DocumentsFields, Format, Model
from rerank_plugin.server.ranking_request import RankingRequest, RankingResponse
from rerank_plugin.server.refusals import Reason, RefusedError


class CohereRequest(DocumentsFields):
    """A query and documents."""

    model: Model
    max_tokens_per_doc: int | None = Field(
        default=None,
        ge=1,
        description="the number of tokens that documents are cut to; default: as the model does",
    )

    def ranking_request(self) -> RankingRequest:
        """Return what is to be ranked."""
        return replace(super().ranking_request(), max_tokens=self.max_tokens_per_doc)

    def answer(self, ranking: RankingResponse) -> Any:
        """Return the body of the response."""
        return {
            "id": str(uuid4()),
            "results": [
                {"index": document.index, "relevance_score": document.score}
                for document in ranking.documents
            ],
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 0},
                "tokens": {"input_tokens": ranking.tokens},
            },
        }


class CohereResult(BaseModel):
    """A ranked document."""

    index: int = Field(description="its index in the request")
    relevance_score: float


class CohereResponse(BaseModel):
    """The best documents, the best first."""

    id: str
    results: list[CohereResult]
    meta: dict[str, Any] = Field(description="the version of the format, and the tokens read")


class CohereError(BaseModel):
    """A problem in one line."""

    id: str
    message: str


def refuse(error: RefusedError) -> dict[str, Any]:
    """Return the body of an error."""
    return {"id": str(uuid4()), "message": error.message}


#: Cohere's format, in which invalid requests have status 400.
COHERE = Format("cohere", CohereRequest, CohereResponse, CohereError, refuse, {Reason.INVALID: 400})
