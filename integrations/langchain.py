"""Reranking in LangChain: a document compressor, a retriever and a cross-encoder."""

from collections.abc import Callable, Sequence
from typing import Any, Self

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
    )
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever, RetrieverLike
    from langchain_core.runnables import Runnable, RunnableConfig
    from langchain_core.runnables.config import get_config_list
    from pydantic import ConfigDict, Field, model_validator
except ImportError as error:
    raise ImportError(
        "rerank_plugin.integrations.langchain needs langchain-core: "
        "pip install 'rerank-plugin[langchain]'"
    ) from error

from .settings import (
    LOWEST,
    ModelSettings,
    Ranking,
    RankingSettings,
    Request,
    checked_query,
    is_blank,
)

#: Where retrievers and other rerankers leave their score.
EARLIER_SCORES = ("relevance_score", "score")


class RerankCompressor(BaseDocumentCompressor, RankingSettings):
    """Keeps the best of some documents, with their scores under `relevance_score`.

    Documents are copied, with their ids and classes; those that are given stay as they are.
    Equal scores keep the order of the input, blank documents come last.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int | None = Field(
        default=3, ge=1, description="how many are kept at most; None for all"
    )
    keep_retrieval_score: bool = Field(
        default=False,
        description="keep the score that a document has already, under `retrieval_score`",
    )
    metadata_keys: list[str] = Field(
        default_factory=list, description="metadata that is scored too, in front of the content"
    )
    text_fn: Callable[[Document], str] | None = Field(
        default=None, description="the text of a document that is scored; default its content"
    )

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.text_fn is not None and self.metadata_keys:
            raise ValueError("text_fn and metadata_keys both say which text is scored: give one")
        return self

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents, best first.

        Args:
            documents: What was retrieved; of none nothing is loaded, scored or traced.
            query: What they were retrieved for; not blank.
            callbacks: They get a run of this compressor's name.
        """
        return self._step().invoke(step_input(query, documents), {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents`, without blocking the event loop; cancelled, it stops scoring."""
        return await self._step().ainvoke(step_input(query, documents), {"callbacks": callbacks})

    def compress_many(
        self,
        requests: Sequence[tuple[str, Sequence[Document]]],
        callbacks: Callbacks | None = None,
    ) -> list[list[Document]]:
        """Compress the documents of many queries at once; faster than one after the other."""
        inputs = [step_input(query, documents) for query, documents in requests]
        return self._step().batch(inputs, {"callbacks": callbacks})

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """A step of a chain that takes `{"query": str, "documents": [Document, …]}`."""
        return self._step()

    def _step(self, top_n: int | None = None) -> "RerankStep":
        return RerankStep(self, self.top_n if top_n is None else top_n)

    def _request(self, given: dict[str, Any]) -> Request:
        return given["query"], [self._text(document) for document in given["documents"]]

    def _text(self, document: Document) -> str:
        if self.text_fn is not None:
            return self.text_fn(document)
        values = [document.metadata.get(key) for key in self.metadata_keys]
        lines = [str(value) for value in values if value is not None]
        return "\n".join([*lines, document.page_content])

    def _scored(self, document: Document, score: float) -> Document:
        metadata = {**document.metadata, "relevance_score": score}
        earlier = [key for key in EARLIER_SCORES if key in document.metadata]
        if self.keep_retrieval_score and earlier:
            metadata["retrieval_score"] = float(document.metadata[earlier[0]])
        return document.model_copy(update={"metadata": metadata})


class RerankStep(Runnable[dict[str, Any], list[Document]]):
    """What chains and tracers see of a compressor.

    Args:
        compressor: It.
        top_n: How many documents are kept at most.
    """

    def __init__(self, compressor: RerankCompressor, top_n: int | None) -> None:
        self.name = type(compressor).__name__
        self.compressor = compressor
        self.top_n = top_n

    def invoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **_: Any
    ) -> list[Document]:
        """The best documents, best first."""
        return self._call_with_config(self._best, input, config) if has_work(input) else []

    async def ainvoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **_: Any
    ) -> list[Document]:
        """`invoke`, without blocking the event loop."""
        return await self._acall_with_config(self._abest, input, config) if has_work(input) else []

    def batch(
        self,
        inputs: list[dict[str, Any]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **_: Any,
    ) -> list[list[Document]]:
        """The best documents of many queries, whose pairs are scored together."""
        if return_exceptions:
            return super().batch(inputs, config, return_exceptions=True)
        places = [place for place, given in enumerate(inputs) if has_work(given)]
        configs = get_config_list(config, len(inputs))
        found: list[list[Document]] = [[] for _ in inputs]
        best = self._batch_with_config(
            self._best_of_all, [inputs[i] for i in places], [configs[i] for i in places]
        )
        for place, documents in zip(places, best, strict=True):
            found[place] = documents
        return found

    def _best(self, given: dict[str, Any]) -> list[Document]:
        (ranking,) = self.compressor._rank([self.compressor._request(given)], self.top_n)
        return self._documents(given, ranking)

    async def _abest(self, given: dict[str, Any]) -> list[Document]:
        request = self.compressor._request(given)
        (ranking,) = await self.compressor._arank([request], self.top_n)
        return self._documents(given, ranking)

    def _best_of_all(self, inputs: list[dict[str, Any]]) -> list[Exception | list[Document]]:
        requests = [self.compressor._request(given) for given in inputs]
        rankings = self.compressor._rank(requests, self.top_n)
        return [self._documents(*item) for item in zip(inputs, rankings, strict=True)]

    def _documents(self, given: dict[str, Any], ranking: Ranking) -> list[Document]:
        documents = given["documents"]
        return [self.compressor._scored(documents[place], score) for place, score in ranking]


class RerankRetriever(BaseRetriever):
    """Retrieves with another retriever and keeps the best of what it finds.

    Further arguments of a call, `retriever.invoke(query, k=3, filter=…)`, go to the other one.
    """

    model_config = ConfigDict(extra="forbid")

    base_retriever: RetrieverLike = Field(description="finds the documents")
    compressor: RerankCompressor = Field(description="ranks them")
    k: int | None = Field(
        default=None, ge=1, description="how many are kept at most; default the compressor's top_n"
    )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        **arguments: Any,
    ) -> list[Document]:
        step, config = self._step(k), RunnableConfig(callbacks=run_manager.get_child())
        documents = self.base_retriever.invoke(query, config, **arguments)
        return step.invoke(step_input(query, documents), config)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        **arguments: Any,
    ) -> list[Document]:
        step, config = self._step(k), RunnableConfig(callbacks=run_manager.get_child())
        documents = await self.base_retriever.ainvoke(query, config, **arguments)
        return await step.ainvoke(step_input(query, documents), config)

    def _step(self, k: int | None) -> RerankStep:
        if k is not None and k < 1:
            raise ValueError(f"k: {k} is less than 1")
        return self.compressor._step(k or self.k)


class RerankCrossEncoder(BaseCrossEncoder, ModelSettings):
    """A cross-encoder for code that takes LangChain's, such as `CrossEncoderReranker`."""

    model_config = ConfigDict(extra="forbid")

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """The scores of (query, text) pairs, in their order; blank texts get the lowest."""
        if not text_pairs:
            return []
        places = [place for place, (_, text) in enumerate(text_pairs) if not is_blank(text)]
        pairs = [(checked_query(query), text) for query, text in text_pairs]
        found = self.reranker.score([pairs[place] for place in places], adapter=self._called)
        scores = [LOWEST[self.reranker.normalize]] * len(text_pairs)
        for place, score in zip(places, found, strict=True):
            scores[place] = float(score)
        return scores


def step_input(query: str, documents: Sequence[Document]) -> dict[str, Any]:
    """What a step takes."""
    return {"query": query, "documents": list(documents)}


def has_work(given: dict[str, Any]) -> bool:
    """Whether there are documents to rank; if so, the query must not be blank."""
    return bool(given["documents"] and checked_query(given["query"]))
