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

from .settings import Ranking, RankingSettings, Request, TopN, earlier_score

dispatcher = get_dispatcher(__name__)

RETRIEVAL_SCORE = "retrieval_score"


class RerankPostprocessor(BaseNodePostprocessor, RankingSettings):
    """Keeps the best of some nodes, with their new scores.

    Nodes that are given stay as they are. Equal scores keep the order of the input, blank nodes
    come last.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: TopN = Field(default=2, ge=1, description="how many are kept at most; None for all")
    keep_retrieval_score: bool = Field(
        default=False,
        description="keep the score that a node has already, as metadata `retrieval_score` that "
        "neither a language model nor an embedder gets to read",
    )
    metadata_mode: MetadataMode = Field(
        default=MetadataMode.EMBED, description="which metadata is scored together with the content"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, values: Any) -> Any:
        """Accept what `model_dump` gives."""
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if name != "class_name"}

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised components."""
        return "RerankPostprocessor"

    def postprocess_many(
        self, requests: Sequence[tuple[str | QueryBundle, list[NodeWithScore]]]
    ) -> list[list[NodeWithScore]]:
        """Rank the nodes of many queries at once; faster than one after the other."""
        checked = [(checked_bundle(query), nodes) for query, nodes in requests]
        asked = [(query, nodes) for query, nodes in checked if nodes]
        with ExitStack() as stack:
            kept = [stack.enter_context(self._told(query, nodes)) for query, nodes in asked]
            rankings = self._rank([self._request(*item) for item in asked], self.top_n)
            for place, (_, nodes) in enumerate(asked):
                kept[place] += self._nodes(nodes, rankings[place])
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
        with self._told(bundle, nodes) as kept:
            ranking = await self._arank(self._request(bundle, nodes), self.top_n)
            kept += self._nodes(nodes, ranking)
        return kept

    @contextmanager
    def _told(
        self, query: QueryBundle, nodes: list[NodeWithScore]
    ) -> Iterator[list[NodeWithScore]]:
        """Events around a reranking; the last one tells what was put into the list."""
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

    def _request(self, query: QueryBundle, nodes: list[NodeWithScore]) -> Request:
        texts = [node.node.get_content(metadata_mode=self.metadata_mode) for node in nodes]
        return query.query_str, texts

    def _nodes(self, nodes: list[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        return [self._scored(nodes[place], score) for place, score in ranking]

    def _scored(self, found: NodeWithScore, score: float) -> NodeWithScore:
        node = found.node
        if self.keep_retrieval_score and found.score is not None:
            hidden = [
                [*keys, *({RETRIEVAL_SCORE} - set(keys))]
                for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys)
            ]
            node = node.model_copy(
                update={
                    "metadata": {**node.metadata, RETRIEVAL_SCORE: earlier_score(found.score)},
                    "excluded_embed_metadata_keys": hidden[0],
                    "excluded_llm_metadata_keys": hidden[1],
                }
            )
        return NodeWithScore(node=node, score=score)


def checked_bundle(query: str | QueryBundle | None) -> QueryBundle:
    """A query that has something to look for."""
    if query is None:
        raise ValueError("Missing query bundle in extra info.")
    bundle = query if isinstance(query, QueryBundle) else QueryBundle(checked_query(query))
    checked_query(bundle.query_str)
    return bundle
