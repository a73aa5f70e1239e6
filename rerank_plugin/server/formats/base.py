"""A format: the fields of its requests, its responses and its errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rerank_plugin.server.ranking_request import RankingRequest, RankingResponse
from rerank_plugin.server.refusals import Reason, RefusedError


class DocumentObject(BaseModel):
    """A document with its text and other fields, which are not read."""

    model_config = ConfigDict(strict=True, extra="ignore")

    text: str


Documents = Annotated[
    list[str | DocumentObject], Field(description="texts, or objects with a `text`")
]
Model = Annotated[str, Field(description="the name of the model, or of one of its adapters")]
Query = Annotated[str, Field(description="the query")]
Instruction = Annotated[
    str | None,
    Field(description="what makes a document relevant, for models that take an instruction"),
]
Threshold = Annotated[
    Annotated[float, Field(allow_inf_nan=False)] | str | None,
    Field(
        description="the lowest score that is returned, before `top_n` counts: a number, or the "
        "name of a calibrated threshold of the model",
    ),
]
TopN = Annotated[int | None, Field(ge=1, description="the number of documents to return at most")]


class RequestFields(BaseModel):
    """The fields of a request; those that are not known here are ignored, as services do."""

    model_config = ConfigDict(strict=True, extra="ignore")

    def ranking_request(self) -> RankingRequest:
        """Return what is to be ranked.

        Raises:
            RefusedError: it asks for something that is not supported.
        """
        raise NotImplementedError

    def answer(self, ranking: RankingResponse) -> Any:
        """Return the body of the response."""
        raise NotImplementedError


class DocumentsFields(RequestFields):
    """The fields that the formats of Jina and Cohere share."""

    query: Query
    documents: Documents
    model: Model | None = None
    top_n: TopN = None
    instruction: Instruction = None
    score_threshold: Threshold = None

    def ranking_request(self) -> RankingRequest:
        """Return what is to be ranked."""
        return RankingRequest(
            query=self.query,
            texts=[d if isinstance(d, str) else d.text for d in self.documents],
            field="documents",
            model=self.model,
            top_n=self.top_n,
            score_threshold=self.score_threshold,
            instruction=self.instruction,
        )


@dataclass(frozen=True)
class Format:
    """A format: the fields of its requests, responses and errors."""

    name: str
    request: type[RequestFields]
    response: Any
    error: type[BaseModel]
    #: Returns the body of an error.
    refuse: Callable[[RefusedError], dict[str, Any]]
    #: The status of reasons for which it is not the usual one.
    statuses: Mapping[Reason, int] = field(default_factory=dict)

    def status(self, reason: Reason) -> int:
        """Return the status of a refused request."""
        return self.statuses.get(reason, reason.value)
