"""Reranking in LlamaIndex: a node postprocessor."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rerank_plugin.extras import MissingPackageError

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from llama_index_instrumentation import get_dispatcher
    from pydantic import ConfigDict, Field, model_validator
except ModuleNotFoundError as error:
    raise MissingPackageError("llama_index") from error

from rerank_plugin.inputs import checked_query

from .base import (
    Ranking,
    RankingInput,
    RankingSettings,
    TopN,
    earlier_score,
    retrieval_score,
)

dispatcher = get_dispatcher(__name__)

RETRIEVAL_SCORE = "retrieval_score"


class RerankPostprocessor(BaseNodePostprocessor, RankingSettings):
    """Keeps the best nodes, with their new scores.

    The original nodes are not changed. Equal scores keep the order of the input, blank nodes
    come last. A model that was fused with its retriever counts the scores of the nodes, or their
    order if one has none.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: TopN = Field(default=2, ge=1, description="the number of nodes at most; None for all")
    keep_retrieval_score: bool = Field(
        default=False,
        description="keep an earlier score of a node as metadata `retrieval_score`, hidden from "
        "language models and embedders",
    )
    metadata_mode: MetadataMode = Field(
        default=MetadataMode.EMBED, description="the metadata that is scored with the content"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, values: Any) -> Any:
        """Accept the output of `model_dump`."""
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if name != "class_name"}

    @classmethod
    def class_name(cls) -> str:
        """Return the name in serialised components."""
        return "RerankPostprocessor"

    def postprocess_many(
        self, requests: Sequence[tuple[str | QueryBundle, list[NodeWithScore]]]
    ) -> list[list[NodeWithScore]]:
        """Rank the nodes of many queries at once; faster than one after the other."""
        checked = [(checked_bundle(query), nodes) for query, nodes in requests]
        asked = [(query, nodes) for query, nodes in checked if nodes]
        with ExitStack() as stack:
            kept = [stack.enter_context(self._events(query, nodes)) for query, nodes in asked]
            rankings = self._rank([self._request(*request) for request in asked], self.top_n)
            for index, (_, nodes) in enumerate(asked):
                kept[index] += self._nodes(nodes, rankings[index])
        ranked = iter(kept)
        return [next(ranked) if nodes else [] for _, nodes in checked]

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        bundle = checked_bundle(query_bundle)
        return self.postprocess_many([(bundle, nodes)])[0]

    # The mixin that gives spans sees what a base leaves open, which is the other one.
    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        bundle = checked_bundle(query_bundle)
        if not nodes:
            return []
        with self._events(bundle, nodes) as kept:
            ranking = await self._arank(self._request(bundle, nodes), self.top_n)
            kept += self._nodes(nodes, ranking)
        return kept

    @contextmanager
    def _events(
        self, query: QueryBundle, nodes: list[NodeWithScore]
    ) -> Iterator[list[NodeWithScore]]:
        """Send the events of a reranking; the last one has the nodes in the yielded list."""
        kept: list[NodeWithScore] = []
        top_n, name = self.top_n or len(nodes), str(self.model)
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=name))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield kept
                event.on_end(payload={EventPayload.NODES: kept})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=kept))

    def _request(self, query: QueryBundle, nodes: list[NodeWithScore]) -> RankingInput:
        texts = [node.node.get_content(metadata_mode=self.metadata_mode) for node in nodes]
        return query.query_str, texts, [retrieval_score(node.score) for node in nodes]

    def _nodes(self, nodes: list[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        return [self._scored(nodes[index], score) for index, score in ranking]

    def _scored(self, retrieved: NodeWithScore, score: float) -> NodeWithScore:
        node = retrieved.node
        if self.keep_retrieval_score and retrieved.score is not None:
            hidden = [
                [*keys, *({RETRIEVAL_SCORE} - set(keys))]
                for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys)
            ]
            node = node.model_copy(
                update={
                    "metadata": {**node.metadata, RETRIEVAL_SCORE: earlier_score(retrieved.score)},
                    "excluded_embed_metadata_keys": hidden[0],
                    "excluded_llm_metadata_keys": hidden[1],
                }
            )
        return NodeWithScore(node=node, score=score)


def checked_bundle(query: str | QueryBundle | None) -> QueryBundle:
    """Return a query that is not blank."""
    if query is None:
        raise ValueError("Missing query bundle in extra info.")
    bundle = query if isinstance(query, QueryBundle) else QueryBundle(checked_query(query))
    checked_query(bundle.query_str)
    return bundle
