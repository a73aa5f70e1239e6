"""Reranking in LangChain: a document compressor, a retriever and a cross-encoder."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Annotated, Any, Self

from rerank_plugin.extras import MissingPackageError

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
    )
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever, RetrieverLike
    from langchain_core.runnables import Runnable, RunnableConfig
    from langchain_core.runnables.config import get_config_list
    from pydantic import BeforeValidator, ConfigDict, Field, model_validator
except ModuleNotFoundError as error:
    raise MissingPackageError("langchain_core") from error

from rerank_plugin.arguments import whole_number
from rerank_plugin.inputs import RetrievalScores, checked_query, document_list

from .base import (
    ModelSettings,
    Ranking,
    RankingInput,
    RankingSettings,
    TopN,
    earlier_score,
    retrieval_score,
)
from .cross_encoder import BaseCrossEncoder

#: The metadata in which retrievers and other rerankers save their score.
EARLIER_SCORES = ("relevance_score", "score", "_score", "@search.score")

Kept = Annotated[int | None, BeforeValidator(partial(whole_number, "k"))]


class RerankCompressor(BaseDocumentCompressor, RankingSettings):
    """Keeps the best documents, with their scores under `relevance_score`.

    Documents are copied, with their ids and classes; the originals are not changed.
    Equal scores keep the order of the input, blank documents come last. A model that was fused with
    its retriever counts the scores in the documents' metadata, or their order if one has none.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: TopN = Field(
        default=3, ge=1, description="the number of documents at most; None for all"
    )
    keep_retrieval_score: bool = Field(
        default=False,
        description="keep an earlier score of a document, under `retrieval_score`",
    )
    score_key: str | None = Field(
        default=None,
        description="the metadata with the score of the retriever; default: the first one of "
        f"{', '.join(EARLIER_SCORES)} that the first document has",
    )
    metadata_keys: list[str] = Field(
        default_factory=list, description="metadata that is scored, too, before the content"
    )
    text_fn: Callable[[Document], str] | None = Field(
        default=None, description="the text of a document that is scored; default: its content"
    )

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.text_fn is not None and self.metadata_keys:
            raise ValueError(
                "text_fn and metadata_keys both choose the scored text: use one of them"
            )
        return self

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return the best documents, best first.

        Args:
            documents: The retrieved documents; without any nothing is loaded, scored or traced.
            query: The query; not blank.
            callbacks: Callbacks for a run with this compressor's name.
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
        """Return a step for chains, with inputs `{"query": str, "documents": [Document, …]}`."""
        return self._step()

    def _step(self, k: int | None = None) -> "RerankStep":
        return RerankStep(self, k)

    def _request(self, chain_input: dict[str, Any]) -> RankingInput:
        documents = chain_input["documents"]
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                kind = type(document).__name__
                raise ValueError(f"documents[{index}]: expected a Document, not {kind}")
        texts = [self._text(document) for document in documents]
        return chain_input["query"], texts, self._retrieval_scores(documents)

    def _retrieval_scores(self, documents: Sequence[Document]) -> RetrievalScores:
        # Of one key: others may be on other scales.
        keys = [key for key in self._score_keys if documents[0].metadata.get(key) is not None]
        if not keys:
            return [None] * len(documents)
        return [retrieval_score(document.metadata.get(keys[0])) for document in documents]

    @property
    def _score_keys(self) -> Sequence[str]:
        return EARLIER_SCORES if self.score_key is None else (self.score_key,)

    def _text(self, document: Document) -> str:
        if self.text_fn is not None:
            return self.text_fn(document)
        values = [metadata_text(document.metadata.get(key)) for key in self.metadata_keys]
        return "\n".join([*filter(None, values), document.page_content])

    def _scored(self, document: Document, score: float) -> Document:
        metadata = {**document.metadata, "relevance_score": score}
        earlier = [key for key in self._score_keys if document.metadata.get(key) is not None]
        if self.keep_retrieval_score and earlier:
            metadata["retrieval_score"] = earlier_score(document.metadata[earlier[0]])
        return document.model_copy(update={"metadata": metadata})


class RerankStep(Runnable[dict[str, Any], list[Document]]):
    """A compressor as chains and tracers see it.

    Args:
        compressor: The compressor; its later changes apply to the step, too.
        k: The number of documents at most; default the compressor's `top_n`.
    """

    def __init__(self, compressor: RerankCompressor, k: int | None = None) -> None:
        self.name = type(compressor).__name__
        self.compressor = compressor
        self.k = k

    @property
    def top_n(self) -> int | None:
        """Return the number of documents at most."""
        return self.compressor.top_n if self.k is None else self.k

    def invoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **_: Any
    ) -> list[Document]:
        """Return the best documents, best first."""
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
        """Return the best documents of many queries, whose pairs are scored together."""
        if return_exceptions:
            return super().batch(inputs, config, return_exceptions=True)
        indices = [index for index, chain_input in enumerate(inputs) if has_work(chain_input)]
        configs = get_config_list(config, len(inputs))
        results: list[list[Document]] = [[] for _ in inputs]
        best = self._batch_with_config(
            self._best_of_all, [inputs[i] for i in indices], [configs[i] for i in indices]
        )
        for index, documents in zip(indices, best, strict=True):
            results[index] = documents
        return results

    def _best(self, chain_input: dict[str, Any]) -> list[Document]:
        (ranking,) = self.compressor._rank([self.compressor._request(chain_input)], self.top_n)
        return self._documents(chain_input, ranking)

    async def _abest(self, chain_input: dict[str, Any]) -> list[Document]:
        ranking = await self.compressor._arank(self.compressor._request(chain_input), self.top_n)
        return self._documents(chain_input, ranking)

    def _best_of_all(self, inputs: list[dict[str, Any]]) -> list[Exception | list[Document]]:
        requests = [self.compressor._request(chain_input) for chain_input in inputs]
        rankings = self.compressor._rank(requests, self.top_n)
        return [self._documents(*pair) for pair in zip(inputs, rankings, strict=True)]

    def _documents(self, chain_input: dict[str, Any], ranking: Ranking) -> list[Document]:
        documents = chain_input["documents"]
        return [self.compressor._scored(documents[index], score) for index, score in ranking]


class RerankRetriever(BaseRetriever):
    """Retrieves with another retriever and keeps the best documents.

    Further arguments of a call, `retriever.invoke(query, k=3, filter=…)`, go to that retriever.
    """

    model_config = ConfigDict(extra="forbid")

    base_retriever: RetrieverLike = Field(description="finds the documents")
    compressor: RerankCompressor = Field(description="ranks them")
    k: Kept = Field(
        default=None, ge=1, description="the number of documents at most; default: top_n"
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
        return self.compressor._step(whole_number("k", k) or self.k)


class RerankCrossEncoder(BaseCrossEncoder, ModelSettings):
    """A cross-encoder for code that takes LangChain's, such as `CrossEncoderReranker`."""

    model_config = ConfigDict(extra="forbid")

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return the scores of (query, text) pairs in their order; blank texts get the lowest."""
        pairs = list(text_pairs)
        return self.reranker.score(pairs, **self._call).tolist() if pairs else []


def step_input(query: str, documents: Sequence[Document]) -> dict[str, Any]:
    """Return the input of a step."""
    return {"query": query, "documents": document_list(documents)}


def has_work(chain_input: dict[str, Any]) -> bool:
    """Return whether there are documents to rank; the query must not be blank."""
    checked_query(chain_input["query"])
    return bool(chain_input["documents"])


def metadata_text(value: Any) -> str:
    """Return the text of a metadata value: the items of a list or mapping, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        texts: Iterable[str] = (
            f"{key}: {metadata_text(element)}" for key, element in value.items()
        )
    elif isinstance(value, list | tuple):
        texts = map(metadata_text, value)
    elif isinstance(value, Set):
        texts = sorted(map(metadata_text, value))  # a set has no order, and scores depend on it
    else:
        return str(value)
    return ", ".join(filter(None, texts))
