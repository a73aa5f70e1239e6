"""The LlamaIndex adapter in LlamaIndex's own compositions, and features that only it has."""

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index_instrumentation import get_dispatcher
from pydantic import PrivateAttr

from rerank_plugin import Reranker
from rerank_plugin.integrations.llama_index import RerankPostprocessor

from ..factories import sample_texts

TEXTS = sample_texts()[:40]
QUERY = "when does the ferry sail"


class MiniLM(BaseEmbedding):
    _embed: Callable[[list[str]], list[list[float]]] = PrivateAttr()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed([query])[0]


class Events(BaseEventHandler):
    """Record all events of reranking."""

    seen: list[BaseEvent] = []  # noqa: RUF012 - a field

    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.seen.append(event)


class RerankCallbacks(BaseCallbackHandler):
    """Record all callbacks of reranking."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.seen: list[tuple[str, str, Any]] = []

    def on_event_start(
        self, event_type: Any, payload: Any = None, event_id: str = "", *_: Any, **__: Any
    ) -> str:
        if event_type == CBEventType.RERANKING:
            self.seen.append(("start", event_id, payload))
        return event_id

    def on_event_end(
        self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any
    ) -> None:
        if event_type == CBEventType.RERANKING:
            self.seen.append(("end", event_id, payload))

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, *_: Any, **__: Any) -> None: ...


@pytest.fixture
def events() -> Iterator[Events]:
    handler, dispatcher = Events(seen=[]), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    handler, dispatcher = SimpleSpanHandler(), get_dispatcher()
    dispatcher.add_span_handler(handler)
    yield handler
    dispatcher.span_handlers.remove(handler)


@pytest.fixture(scope="module")
def reranker(tiny_model: Path) -> Reranker:
    return Reranker(tiny_model, dtype="float32")


@pytest.fixture
def postprocessor(reranker: Reranker) -> RerankPostprocessor:
    return RerankPostprocessor(model=reranker)


@pytest.fixture(scope="module")
def index(minilm: Callable[[list[str]], list[list[float]]]) -> VectorStoreIndex:
    embedding = MiniLM(model_name="minilm")
    embedding._embed = minilm
    nodes = [TextNode(id_=f"n{i}", text=text) for i, text in enumerate(TEXTS)]
    return VectorStoreIndex(nodes, embed_model=embedding)


def nodes(count: int = 6) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(id_=f"n{i}", text=text, metadata={"title": f"page {i}"}), score=i / 10
        )
        for i, text in enumerate(TEXTS[:count])
    ]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def wanted(
    reranker: Reranker, candidates: list[NodeWithScore], top_n: int | None = 2, query: str = QUERY
) -> list[str]:
    texts = [node.node.get_content(MetadataMode.EMBED) for node in candidates]
    return [candidates[result.index].node_id for result in reranker.rank(query, texts, top_n)]


def test_new_scores_on_the_same_nodes(postprocessor: RerankPostprocessor) -> None:
    candidates = nodes()
    before = [node.to_dict() for node in candidates]
    for reranked in (
        postprocessor.postprocess_nodes(candidates, query_str=QUERY),
        postprocessor.postprocess_nodes(candidates, QueryBundle(QUERY)),
        asyncio.run(postprocessor.apostprocess_nodes(candidates, query_str=QUERY)),
        postprocessor.postprocess_many([(QUERY, candidates)])[0],
    ):
        assert ids(reranked) == wanted(postprocessor.reranker, candidates)
        for node in reranked:
            (same,) = (other for other in candidates if other.node_id == node.node_id)
            assert node is not same
            assert node.node is same.node
            assert type(node.score) is float
        json.dumps([node.to_dict() for node in reranked])
    assert [node.to_dict() for node in candidates] == before


def test_the_retrieval_score_is_kept_in_metadata_that_no_model_reads(reranker: Reranker) -> None:
    keeping = RerankPostprocessor(model=reranker, keep_retrieval_score=True, top_n=None)
    candidates = [*nodes(4), NodeWithScore(node=TextNode(id_="none", text="no score"))]
    candidates[0].node.excluded_llm_metadata_keys = ["retrieval_score", "title"]
    before = [candidate.to_dict() for candidate in candidates]
    kept = {
        candidate.node_id: candidate.node
        for candidate in keeping.postprocess_nodes(candidates, query_str=QUERY)
    }
    assert [candidate.to_dict() for candidate in candidates] == before
    for candidate in candidates[:4]:
        node = kept[candidate.node_id]
        assert node.metadata == {**candidate.node.metadata, "retrieval_score": candidate.score}
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert node.get_content(mode) == candidate.node.get_content(mode)
        assert node.excluded_llm_metadata_keys.count("retrieval_score") == 1
    assert kept["none"] is candidates[4].node
    # And again: the score just before is the one that counts.
    again = keeping.postprocess_nodes(
        keeping.postprocess_nodes(candidates, query_str=QUERY), query_str=QUERY
    )
    assert again[0].node.metadata["retrieval_score"] == again[0].score


def test_the_text_that_is_scored(reranker: Reranker) -> None:
    candidates = nodes()
    candidates[1].node.excluded_embed_metadata_keys = ["title"]
    for mode in MetadataMode:
        texts = [result.node.get_content(mode) for result in candidates]
        reranked = RerankPostprocessor(
            model=reranker, metadata_mode=mode, top_n=None
        ).postprocess_nodes(candidates, query_str=QUERY)
        expected = reranker.rank(QUERY, texts)
        assert [result.score for result in reranked] == [result.score for result in expected]
    pictures = [NodeWithScore(node=ImageNode(image_url="a.png", id_="i")), *nodes(2)]
    last = RerankPostprocessor(model=reranker, top_n=None).postprocess_nodes(
        pictures, query_str=QUERY
    )[-1]
    assert (last.node_id, last.score) == ("i", 0.0)


def test_nodes_of_every_kind_and_score_are_returned(reranker: Reranker) -> None:
    candidates = [
        NodeWithScore(node=ImageNode(image_url="a.png", id_="image")),
        NodeWithScore(node=IndexNode(text="a dog", index_id="x", id_="index"), score=None),
        NodeWithScore(node=Node(id_="empty"), score=float("inf")),
        NodeWithScore(node=TextNode(text="a cabin", id_="text"), score=0.5),
        NodeWithScore.model_construct(node=TextNode(text="a cat", id_="odd"), score="high"),
    ]
    candidates[1].node.metadata = {"nested": {"list": [None, "x"]}, "none": None}
    keeping = RerankPostprocessor(model=reranker, top_n=None, keep_retrieval_score=True)
    reranked = keeping.postprocess_nodes(candidates, query_str=QUERY)
    assert {node.node_id for node in reranked} == {"image", "index", "empty", "text", "odd"}
    assert [node.node_id for node in reranked[-2:]] == ["image", "empty"]
    kept = {node.node_id: node.node.metadata.get("retrieval_score") for node in reranked}
    assert kept == {
        "image": None,
        "index": None,
        "empty": float("inf"),
        "text": 0.5,
        "odd": "high",
    }


def test_half_a_surrogate_pair_names_its_node(reranker: Reranker) -> None:
    candidates = [*nodes(3), NodeWithScore(node=TextNode(text="a", metadata={"title": "\ud83d"}))]
    postprocessor = RerankPostprocessor(model=reranker)
    with pytest.raises(ValueError, match=r"documents\[3\]: not valid Unicode"):
        postprocessor.postprocess_nodes(candidates, query_str=QUERY)
    with pytest.raises(ValueError, match=r"requests\[1\]: documents\[3\]: not valid Unicode"):
        postprocessor.postprocess_many([(QUERY, nodes(2)), (QUERY, candidates)])


def test_the_query_is_the_bundles_string(postprocessor: RerankPostprocessor) -> None:
    bundle = QueryBundle(QUERY, custom_embedding_strs=["something else"], embedding=[0.1])
    expected = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    assert ids(postprocessor.postprocess_nodes(nodes(), bundle)) == ids(expected)
    query: Any
    for query in (3, b"query", QueryBundle(None)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="query: expected a text"):
            postprocessor.postprocess_many([(query, nodes())])


def test_a_query_is_needed(postprocessor: RerankPostprocessor, events: Events) -> None:
    for candidates in (nodes(), []):
        with pytest.raises(ValueError, match=r"^Missing query bundle in extra info\.$"):
            postprocessor.postprocess_nodes(candidates)
        with pytest.raises(ValueError, match=r"^Missing query bundle in extra info\.$"):
            asyncio.run(postprocessor.apostprocess_nodes(candidates))
    with pytest.raises(ValueError, match="query"):
        postprocessor.postprocess_nodes(nodes(), query_str=" ")
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    assert events.seen == []


def test_events_and_callbacks_are_sent_in_pairs(reranker: Reranker, events: Events) -> None:
    callbacks = RerankCallbacks()
    candidates = nodes()
    for top_n in (2, None):
        postprocessor = RerankPostprocessor(
            model=reranker, top_n=top_n, callback_manager=CallbackManager([callbacks])
        )
        for reranked in (
            postprocessor.postprocess_nodes(candidates, query_str=QUERY),
            asyncio.run(postprocessor.apostprocess_nodes(candidates, query_str=QUERY)),
        ):
            start, end = events.seen[-2:]
            assert isinstance(start, ReRankStartEvent)
            assert isinstance(end, ReRankEndEvent)
            assert start.top_n == (top_n or len(candidates))
            assert (start.nodes, end.nodes) == (candidates, reranked)
            assert isinstance(start.query, QueryBundle)
            assert start.model_name == reranker.source
            (began, first, asked), (ended, last, answer) = callbacks.seen[-2:]
            assert (began, ended, first) == ("start", "end", last)
            assert asked[EventPayload.TOP_K] == (top_n or len(candidates))
            assert asked[EventPayload.QUERY_STR] == QUERY
            assert type(asked[EventPayload.MODEL_NAME]) is str
            assert answer == {EventPayload.NODES: reranked}
    assert len(events.seen) == len(callbacks.seen) == 8


def test_a_failing_call_sends_its_end_events(tmp_path: Path, events: Events) -> None:
    callbacks = RerankCallbacks()
    failing = RerankPostprocessor(
        model=str(tmp_path / "none"), callback_manager=CallbackManager([callbacks])
    )
    with pytest.raises(ValueError, match="no such model folder"):
        failing.postprocess_nodes(nodes(), query_str=QUERY)
    with pytest.raises(ValueError, match="no such model folder"):
        asyncio.run(failing.apostprocess_nodes(nodes(), query_str=QUERY))
    assert [type(event) for event in events.seen] == [ReRankStartEvent, ReRankEndEvent] * 2
    assert [kind for kind, _, _ in callbacks.seen] == ["start", "end"] * 2


def test_many_queries_send_events_for_each(
    postprocessor: RerankPostprocessor, events: Events
) -> None:
    reranked = postprocessor.postprocess_many(
        [(QUERY, nodes()), ("a", []), (QueryBundle("b"), nodes())]
    )
    assert [len(nodes) for nodes in reranked] == [2, 0, 2]
    kinds = [type(event) for event in events.seen]
    assert kinds.count(ReRankStartEvent) == kinds.count(ReRankEndEvent) == 2


def test_spans_survive(postprocessor: RerankPostprocessor, spans: SimpleSpanHandler) -> None:
    postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    asyncio.run(postprocessor.apostprocess_nodes(nodes(), query_str=QUERY))
    with pytest.raises(ValueError, match="Missing"):
        asyncio.run(postprocessor.apostprocess_nodes(nodes()))
    done: list[SimpleSpan] = spans.completed_spans
    names = [span.id_.partition("-")[0] for span in done]
    assert names == [
        "RerankPostprocessor._postprocess_nodes",
        "RerankPostprocessor._apostprocess_nodes",
    ]
    assert spans.open_spans == {}
    assert len(spans.dropped_spans) == 1


def test_every_setting_survives_a_round_trip(tiny_model: Path) -> None:
    one = RerankPostprocessor(
        model=tiny_model,
        top_n=None,
        device="cpu",
        dtype="float32",
        max_length=32,
        long_documents="windows",
        normalize="none",
        score_threshold=-5.0,
        keep_retrieval_score=True,
        metadata_mode=MetadataMode.NONE,
    )
    copies = (
        RerankPostprocessor.from_dict(one.to_dict()),
        RerankPostprocessor.from_json(one.to_json()),
        pickle.loads(pickle.dumps(one)),
    )
    for other in copies:
        assert other == one
        assert other.device == "cpu"
        assert other.metadata_mode is MetadataMode.NONE
    assert one.class_name() == one.to_dict()["class_name"] == "RerankPostprocessor"


def test_the_callback_manager_can_be_set(postprocessor: RerankPostprocessor) -> None:
    manager = CallbackManager([])
    postprocessor.callback_manager = manager
    assert postprocessor.callback_manager is manager
    with pytest.raises(ValueError, match="no_such"):
        setattr(postprocessor, "no_such", 3)  # noqa: B010 - mypy knows that it has none


async def test_a_query_engine(index: VectorStoreIndex, reranker: Reranker, events: Events) -> None:
    retrieved = index.as_retriever(similarity_top_k=8).retrieve(QUERY)
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=8,
        node_postprocessors=[RerankPostprocessor(model=reranker, top_n=3)],
    )
    expected = wanted(reranker, retrieved, 3)
    for answer in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert ids(answer.source_nodes) == expected
        assert all(text in str(answer) for text in [n.node.text for n in answer.source_nodes])  # type: ignore[attr-defined]
    assert [type(event) for event in events.seen] == [ReRankStartEvent, ReRankEndEvent] * 2


async def test_a_retriever_evaluator(index: VectorStoreIndex, reranker: Reranker) -> None:
    retrieved = index.as_retriever(similarity_top_k=8).retrieve(QUERY)
    best = wanted(reranker, retrieved, 1)
    evaluator = RetrieverEvaluator.from_metric_names(
        ["mrr", "hit_rate"],
        retriever=index.as_retriever(similarity_top_k=8),
        node_postprocessors=[RerankPostprocessor(model=reranker)],
    )
    for result in (
        evaluator.evaluate(QUERY, expected_ids=best),
        await evaluator.aevaluate(QUERY, expected_ids=best),
    ):
        assert result.metric_vals_dict == {"mrr": 1.0, "hit_rate": 1.0}
        assert len(result.retrieved_ids) == 2


async def test_a_step_of_a_workflow(index: VectorStoreIndex, reranker: Reranker) -> None:
    class Retrieval(Workflow):
        @step
        async def rerank(self, event: StartEvent) -> StopEvent:
            retrieved = await index.as_retriever(similarity_top_k=8).aretrieve(event.query)
            postprocessor = RerankPostprocessor(model=reranker)
            return StopEvent(
                await postprocessor.apostprocess_nodes(retrieved, query_str=event.query)
            )

    retrieved = index.as_retriever(similarity_top_k=8).retrieve(QUERY)
    workflow = Retrieval(timeout=60)
    results = await asyncio.gather(*(workflow.run(query=QUERY) for _ in range(4)))
    assert [ids(result) for result in results] == [wanted(reranker, retrieved)] * 4
