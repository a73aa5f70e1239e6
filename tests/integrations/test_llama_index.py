"""The LlamaIndex adapter in LlamaIndex's own compositions, and what only it does."""

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
    """All events of reranking."""

    seen: list[BaseEvent] = []  # noqa: RUF012 - a field

    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.seen.append(event)


class Told(BaseCallbackHandler):
    """All callbacks of reranking."""

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


def ids(found: list[NodeWithScore]) -> list[str]:
    return [item.node_id for item in found]


def wanted(
    reranker: Reranker, found: list[NodeWithScore], top_n: int | None = 2, query: str = QUERY
) -> list[str]:
    texts = [item.node.get_content(MetadataMode.EMBED) for item in found]
    return [found[item.index].node_id for item in reranker.rank(query, texts, top_n)]


def test_new_scores_on_the_same_nodes(postprocessor: RerankPostprocessor) -> None:
    given = nodes()
    before = [item.to_dict() for item in given]
    for found in (
        postprocessor.postprocess_nodes(given, query_str=QUERY),
        postprocessor.postprocess_nodes(given, QueryBundle(QUERY)),
        asyncio.run(postprocessor.apostprocess_nodes(given, query_str=QUERY)),
        postprocessor.postprocess_many([(QUERY, given)])[0],
    ):
        assert ids(found) == wanted(postprocessor.reranker, given)
        for item in found:
            (same,) = (other for other in given if other.node_id == item.node_id)
            assert item is not same
            assert item.node is same.node
            assert type(item.score) is float
        json.dumps([item.to_dict() for item in found])
    assert [item.to_dict() for item in given] == before


def test_the_retrieval_score_is_kept_where_nobody_reads_it(reranker: Reranker) -> None:
    keeping = RerankPostprocessor(model=reranker, keep_retrieval_score=True, top_n=None)
    given = [*nodes(4), NodeWithScore(node=TextNode(id_="none", text="no score"))]
    given[0].node.excluded_llm_metadata_keys = ["retrieval_score", "title"]
    before = [item.to_dict() for item in given]
    found = {item.node_id: item.node for item in keeping.postprocess_nodes(given, query_str=QUERY)}
    assert [item.to_dict() for item in given] == before
    for item in given[:4]:
        node = found[item.node_id]
        assert node.metadata == {**item.node.metadata, "retrieval_score": item.score}
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert node.get_content(mode) == item.node.get_content(mode)
        assert node.excluded_llm_metadata_keys.count("retrieval_score") == 1
    assert found["none"] is given[4].node
    # And again: the score just before is the one that counts.
    again = keeping.postprocess_nodes(
        keeping.postprocess_nodes(given, query_str=QUERY), query_str=QUERY
    )
    assert again[0].node.metadata["retrieval_score"] == again[0].score


def test_the_text_that_is_scored(reranker: Reranker) -> None:
    given = nodes()
    given[1].node.excluded_embed_metadata_keys = ["title"]
    for mode in MetadataMode:
        texts = [item.node.get_content(mode) for item in given]
        found = RerankPostprocessor(
            model=reranker, metadata_mode=mode, top_n=None
        ).postprocess_nodes(given, query_str=QUERY)
        expected = reranker.rank(QUERY, texts)
        assert [item.score for item in found] == [item.score for item in expected]
    pictures = [NodeWithScore(node=ImageNode(image_url="a.png", id_="i")), *nodes(2)]
    last = RerankPostprocessor(model=reranker, top_n=None).postprocess_nodes(
        pictures, query_str=QUERY
    )[-1]
    assert (last.node_id, last.score) == ("i", 0.0)


def test_nodes_of_every_kind_and_score_come_back(reranker: Reranker) -> None:
    given = [
        NodeWithScore(node=ImageNode(image_url="a.png", id_="image")),
        NodeWithScore(node=IndexNode(text="a dog", index_id="x", id_="index"), score=None),
        NodeWithScore(node=Node(id_="empty"), score=float("inf")),
        NodeWithScore(node=TextNode(text="a cabin", id_="text"), score=0.5),
        NodeWithScore.model_construct(node=TextNode(text="a cat", id_="odd"), score="high"),
    ]
    given[1].node.metadata = {"nested": {"list": [None, "x"]}, "none": None}
    keeping = RerankPostprocessor(model=reranker, top_n=None, keep_retrieval_score=True)
    found = keeping.postprocess_nodes(given, query_str=QUERY)
    assert {item.node_id for item in found} == {"image", "index", "empty", "text", "odd"}
    assert [item.node_id for item in found[-2:]] == ["image", "empty"]
    kept = {item.node_id: item.node.metadata.get("retrieval_score") for item in found}
    assert kept == {
        "image": None,
        "index": None,
        "empty": float("inf"),
        "text": 0.5,
        "odd": "high",
    }


def test_half_a_surrogate_pair_names_its_node(reranker: Reranker) -> None:
    given = [*nodes(3), NodeWithScore(node=TextNode(text="a", metadata={"title": "\ud83d"}))]
    postprocessor = RerankPostprocessor(model=reranker)
    with pytest.raises(ValueError, match=r"documents\[3\]: not valid Unicode"):
        postprocessor.postprocess_nodes(given, query_str=QUERY)
    with pytest.raises(ValueError, match=r"requests\[1\]: documents\[3\]: not valid Unicode"):
        postprocessor.postprocess_many([(QUERY, nodes(2)), (QUERY, given)])


def test_the_query_is_the_bundles_string(postprocessor: RerankPostprocessor) -> None:
    bundle = QueryBundle(QUERY, custom_embedding_strs=["something else"], embedding=[0.1])
    expected = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    assert ids(postprocessor.postprocess_nodes(nodes(), bundle)) == ids(expected)
    wrong: Any
    for wrong in (3, b"query", QueryBundle(None)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="query: expected a text"):
            postprocessor.postprocess_many([(wrong, nodes())])


def test_a_query_is_needed(postprocessor: RerankPostprocessor, events: Events) -> None:
    for given in (nodes(), []):
        with pytest.raises(ValueError, match=r"^Missing query bundle in extra info\.$"):
            postprocessor.postprocess_nodes(given)
        with pytest.raises(ValueError, match=r"^Missing query bundle in extra info\.$"):
            asyncio.run(postprocessor.apostprocess_nodes(given))
    with pytest.raises(ValueError, match="query"):
        postprocessor.postprocess_nodes(nodes(), query_str=" ")
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    assert events.seen == []


def test_events_and_callbacks_come_in_pairs(reranker: Reranker, events: Events) -> None:
    told = Told()
    given = nodes()
    for top_n in (2, None):
        postprocessor = RerankPostprocessor(
            model=reranker, top_n=top_n, callback_manager=CallbackManager([told])
        )
        for found in (
            postprocessor.postprocess_nodes(given, query_str=QUERY),
            asyncio.run(postprocessor.apostprocess_nodes(given, query_str=QUERY)),
        ):
            start, end = events.seen[-2:]
            assert isinstance(start, ReRankStartEvent)
            assert isinstance(end, ReRankEndEvent)
            assert start.top_n == (top_n or len(given))
            assert (start.nodes, end.nodes) == (given, found)
            assert isinstance(start.query, QueryBundle)
            assert start.model_name == reranker.source
            (began, first, asked), (ended, last, answer) = told.seen[-2:]
            assert (began, ended, first) == ("start", "end", last)
            assert asked[EventPayload.TOP_K] == (top_n or len(given))
            assert asked[EventPayload.QUERY_STR] == QUERY
            assert type(asked[EventPayload.MODEL_NAME]) is str
            assert answer == {EventPayload.NODES: found}
    assert len(events.seen) == len(told.seen) == 8


def test_what_fails_ends_its_events_too(tmp_path: Path, events: Events) -> None:
    told = Told()
    failing = RerankPostprocessor(
        model=str(tmp_path / "none"), callback_manager=CallbackManager([told])
    )
    with pytest.raises(ValueError, match="no such model folder"):
        failing.postprocess_nodes(nodes(), query_str=QUERY)
    with pytest.raises(ValueError, match="no such model folder"):
        asyncio.run(failing.apostprocess_nodes(nodes(), query_str=QUERY))
    assert [type(event) for event in events.seen] == [ReRankStartEvent, ReRankEndEvent] * 2
    assert [kind for kind, _, _ in told.seen] == ["start", "end"] * 2


def test_many_queries_tell_of_each(postprocessor: RerankPostprocessor, events: Events) -> None:
    found = postprocessor.postprocess_many(
        [(QUERY, nodes()), ("a", []), (QueryBundle("b"), nodes())]
    )
    assert [len(part) for part in found] == [2, 0, 2]
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
    found = index.as_retriever(similarity_top_k=8).retrieve(QUERY)
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=8,
        node_postprocessors=[RerankPostprocessor(model=reranker, top_n=3)],
    )
    expected = wanted(reranker, found, 3)
    for answer in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert ids(answer.source_nodes) == expected
        assert all(text in str(answer) for text in [n.node.text for n in answer.source_nodes])  # type: ignore[attr-defined]
    assert [type(event) for event in events.seen] == [ReRankStartEvent, ReRankEndEvent] * 2


async def test_a_retriever_evaluator(index: VectorStoreIndex, reranker: Reranker) -> None:
    found = index.as_retriever(similarity_top_k=8).retrieve(QUERY)
    best = wanted(reranker, found, 1)
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
            found = await index.as_retriever(similarity_top_k=8).aretrieve(event.query)
            postprocessor = RerankPostprocessor(model=reranker)
            return StopEvent(await postprocessor.apostprocess_nodes(found, query_str=event.query))

    found = index.as_retriever(similarity_top_k=8).retrieve(QUERY)
    workflow = Retrieval(timeout=60)
    results = await asyncio.gather(*(workflow.run(query=QUERY) for _ in range(4)))
    assert [ids(result) for result in results] == [wanted(reranker, found)] * 4
