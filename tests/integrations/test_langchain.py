"""The LangChain adapter in LangChain's own compositions, and features that only it has."""

import asyncio
import json
import pickle
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests

from rerank_plugin import Reranker
from rerank_plugin.integrations.langchain import (
    RerankCompressor,
    RerankCrossEncoder,
    RerankRetriever,
)

from ..factories import sample_texts

TEXTS = sample_texts()
QUERY = "when does the ferry sail"


class MiniLM(Embeddings):
    def __init__(self, embed: Callable[[list[str]], list[list[float]]]) -> None:
        self.embed = embed

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed(texts)

    def embed_query(self, text: str) -> list[float]:
        return self.embed([text])[0]


class Special(Document):
    page: int = 0


class Runs(BaseCallbackHandler):
    """Record the runs that begin, their parents, and their outputs."""

    def __init__(self) -> None:
        self.began: dict[UUID, tuple[str, UUID | None, Any]] = {}
        self.ended: dict[UUID, Any] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, **about: Any) -> None:
        self.began[about["run_id"]] = about["name"], about["parent_run_id"], inputs

    def on_retriever_start(self, serialized: Any, query: Any, **about: Any) -> None:
        self.began[about["run_id"]] = about["name"], about["parent_run_id"], query

    def on_chain_end(self, outputs: Any, **about: Any) -> None:
        self.ended[about["run_id"]] = outputs

    def on_retriever_end(self, documents: Any, **about: Any) -> None:
        self.ended[about["run_id"]] = documents

    def on_chain_error(self, error: BaseException, **about: Any) -> None:
        self.ended[about["run_id"]] = error

    def on_retriever_error(self, error: BaseException, **about: Any) -> None:
        self.ended[about["run_id"]] = error

    def of(self, name: str) -> list[tuple[str | None, Any, Any]]:
        """Return the parent's name, the inputs and the outputs of every run of a name."""
        assert self.began.keys() == self.ended.keys(), "every run that begins ends"
        return [
            (self.began[parent][0] if parent in self.began else None, inputs, self.ended[run])
            for run, (run_name, parent, inputs) in self.began.items()
            if run_name == name
        ]


@pytest.fixture(scope="module")
def reranker(tiny_model: Path) -> Reranker:
    return Reranker(tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def store(minilm: Callable[[list[str]], list[list[float]]]) -> VectorStore:
    pytest.importorskip("faiss")
    from langchain_community.vectorstores import FAISS

    metadatas = [{"index": i} for i in range(len(TEXTS))]
    return FAISS.from_texts(TEXTS, MiniLM(minilm), metadatas)


@pytest.fixture
def compressor(reranker: Reranker) -> RerankCompressor:
    return RerankCompressor(model=reranker)


def documents(count: int = 6) -> list[Document]:
    return [Document(page_content=t, id=f"d{i}") for i, t in enumerate(TEXTS[:count])]


def wanted(reranker: Reranker, candidates: list[Document], top_n: int | None) -> list[str]:
    ranked = reranker.rank(QUERY, [document.page_content for document in candidates], top_n)
    return [result.document for result in ranked]


def contents(retrieved: Any) -> list[str]:
    return [document.page_content for document in retrieved]


def test_documents_are_copied_with_id_class_and_metadata(compressor: RerankCompressor) -> None:
    candidates = [
        Special(page_content=TEXTS[0], id="a", page=7, metadata={"x": [1]}),
        *documents(4),
    ]
    before = pickle.dumps(candidates)
    compressor.top_n = None
    for reranked in (
        compressor.compress_documents(candidates, QUERY),
        asyncio.run(compressor.acompress_documents(candidates, QUERY)),
        compressor.compress_many([(QUERY, candidates)])[0],
    ):
        special = next(document for document in reranked if document.id == "a")
        assert isinstance(special, Special)
        assert special.page == 7
        assert special.metadata.keys() == {"x", "relevance_score"}
        assert {document.id for document in reranked} == {"a", "d0", "d1", "d2", "d3"}
        assert all(document is not other for document in reranked for other in candidates)
        json.dumps([document.metadata for document in reranked])
    assert pickle.dumps(candidates) == before


def test_the_retrieval_score_is_kept_on_request(reranker: Reranker) -> None:
    import numpy as np

    candidates = documents(3)
    candidates[0].metadata["relevance_score"] = np.float32(0.25)
    candidates[1].metadata["score"] = 3
    keeping = RerankCompressor(model=reranker, keep_retrieval_score=True)
    metadata = {
        document.id: document.metadata for document in keeping.compress_documents(candidates, QUERY)
    }
    assert metadata["d0"]["retrieval_score"] == 0.25
    assert metadata["d1"]["retrieval_score"] == 3.0
    assert "retrieval_score" not in metadata["d2"]
    json.dumps(metadata)
    plain = RerankCompressor(model=reranker).compress_documents(candidates, QUERY)
    assert not any("retrieval_score" in document.metadata for document in plain)


@pytest.mark.parametrize(
    ("earlier", "kept"),
    [
        ("0.8", "0.8"),
        ("high", "high"),
        (Decimal("0.25"), 0.25),
        (torch.tensor(0.25), 0.25),
        (np.float16(0.25), 0.25),
        (7, 7.0),
        (True, True),
        ({"bm25": [1, 2]}, {"bm25": [1, 2]}),
        ([0.5], [0.5]),
        (10**400, 10**400),
    ],
    ids=str,
)
def test_an_earlier_score_may_be_anything(reranker: Reranker, earlier: Any, kept: Any) -> None:
    candidates = [Document(page_content=TEXTS[0], metadata={"score": earlier})]
    keeping = RerankCompressor(model=reranker, keep_retrieval_score=True)
    (reranked,) = keeping.compress_documents(candidates, QUERY)
    assert reranked.metadata["retrieval_score"] == kept
    assert type(reranked.metadata["retrieval_score"]) is type(kept)
    assert candidates[0].metadata == {"score": earlier}


def test_no_earlier_score_is_none(reranker: Reranker) -> None:
    candidates = [Document(page_content="a", metadata={"relevance_score": None, "score": 0.5})]
    candidates += [Document(page_content="b", metadata={"relevance_score": None})]
    keeping = RerankCompressor(model=reranker, keep_retrieval_score=True)
    metadata = {
        document.page_content: document.metadata
        for document in keeping.compress_documents(candidates, QUERY)
    }
    assert metadata["a"]["retrieval_score"] == 0.5
    assert "retrieval_score" not in metadata["b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "content"),
        ("", "content"),
        (3.5, "3.5\ncontent"),
        (["a", None, 2], "a, 2\ncontent"),
        pytest.param({"z", "y", "x"}, "x, y, z\ncontent", id="set"),
        ({"by": ["a", "b"], "of": {"year": 7}}, "by: a, b, of: year: 7\ncontent"),
    ],
    ids=str,
)
def test_metadata_of_any_type_is_scored(reranker: Reranker, value: Any, text: str) -> None:
    candidates = [Document(page_content="content", metadata={"key": value})]
    compressor = RerankCompressor(model=reranker, metadata_keys=["key"])
    (reranked,) = compressor.compress_documents(candidates, QUERY)
    assert reranked.metadata["relevance_score"] == reranker.rank(QUERY, [text])[0].score


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (None, "documents: expected a list of texts, not None"),
        ("text", "documents: expected a list of texts, not a single text"),
        (["text"], r"documents\[0\]: expected a Document, not str"),
        (
            [Document(page_content="a"), {"page_content": "b"}],
            r"documents\[1\]: expected a Document",
        ),
    ],
    ids=str,
)
def test_inputs_that_are_not_documents_are_errors(
    reranker: Reranker, candidates: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RerankCompressor(model=reranker).compress_documents(candidates, QUERY)
    with pytest.raises(ValueError, match=message):
        asyncio.run(RerankCompressor(model=reranker).acompress_documents(candidates, QUERY))


def test_unusual_ids_and_metadata_are_kept(reranker: Reranker) -> None:
    candidates = [
        Document.model_construct(page_content=TEXTS[0], id=7, metadata={}),
        Document(page_content=TEXTS[1], id=None, metadata={"nested": {"list": [None]}}),
    ]
    reranked = RerankCompressor(model=reranker).compress_documents(iter(candidates), QUERY)  # type: ignore[arg-type]
    ids: set[Any] = {document.id for document in reranked}
    assert ids == {7, None}


def test_a_text_function_must_give_texts(reranker: Reranker) -> None:
    compressor = RerankCompressor(model=reranker, text_fn=lambda document: document.id)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"documents\[1\]: expected a text .* not None"):
        compressor.compress_documents(
            [Document(page_content="a", id="a"), Document(page_content="b")], QUERY
        )


def test_a_step_follows_its_compressor(compressor: RerankCompressor) -> None:
    step, retriever = (
        compressor.as_runnable(),
        RerankRetriever(base_retriever=InMemoryRetriever(), compressor=compressor),
    )
    for top_n in (1, 4, None):
        compressor.top_n = top_n
        wanted = top_n or 6
        assert len(step.invoke({"query": QUERY, "documents": documents()})) == wanted
        assert len(retriever.invoke(QUERY)) == wanted


class InMemoryRetriever(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return documents()


def shouted(document: Document) -> str:
    return document.page_content.upper()


def test_the_text_that_is_scored(reranker: Reranker) -> None:
    candidates = documents(5)
    for number, document in enumerate(candidates):
        document.metadata |= {"title": f"title {number % 2}", "year": None}
    titled = RerankCompressor(model=reranker, metadata_keys=["title", "year", "no"], top_n=None)
    loud = RerankCompressor(model=reranker, text_fn=shouted, top_n=None)
    for compressor, texts in (
        (titled, [f"title {i % 2}\n{d.page_content}" for i, d in enumerate(candidates)]),
        (loud, [d.page_content.upper() for d in candidates]),
        (pickle.loads(pickle.dumps(loud)), [d.page_content.upper() for d in candidates]),
    ):
        reranked = compressor.compress_documents(candidates, QUERY)
        expected = reranker.rank(QUERY, texts)
        assert [document.id for document in reranked] == [
            candidates[result.index].id for result in expected
        ]
        scores = [document.metadata["relevance_score"] for document in reranked]
        assert scores == [result.score for result in expected]
    with pytest.raises(ValueError, match="text_fn and metadata_keys both"):
        RerankCompressor(model=reranker, text_fn=shouted, metadata_keys=["title"])


def test_a_run_is_traced(compressor: RerankCompressor) -> None:
    runs, candidates = Runs(), documents()
    direct = compressor.compress_documents(candidates, QUERY, callbacks=[runs])
    later = asyncio.run(compressor.acompress_documents(candidates, QUERY, callbacks=[runs]))
    many = compressor.compress_many(
        [(QUERY, candidates), ("a", []), ("b", candidates)], callbacks=[runs]
    )
    compressions = runs.of("RerankCompressor")
    inputs = {"query": QUERY, "documents": candidates}
    assert compressions[:3] == [(None, inputs, kept) for kept in (direct, later, many[0])]
    assert len(compressions) == 4
    assert all(
        "relevance_score" in document.metadata for _, _, kept in compressions for document in kept
    )


def test_nothing_is_traced_where_nothing_is_done(reranker: Reranker, tmp_path: Path) -> None:
    runs = Runs()
    compressor = RerankCompressor(model=reranker)
    assert compressor.compress_documents([], QUERY, callbacks=[runs]) == []
    assert asyncio.run(compressor.acompress_documents([], QUERY, callbacks=[runs])) == []
    with pytest.raises(ValueError, match="query"):
        compressor.compress_documents(documents(), " ", callbacks=[runs])
    assert runs.began == {}
    failing = RerankCompressor(model=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no such model folder"):
        failing.compress_documents(documents(), QUERY, callbacks=[runs])
    ((_, _, error),) = runs.of("RerankCompressor")
    assert "no such model folder" in str(error)


def test_contextual_compression(
    store: VectorStore, compressor: RerankCompressor, reranker: Reranker
) -> None:
    from langchain_classic.retrievers import ContextualCompressionRetriever

    runs, base = Runs(), store.as_retriever(search_kwargs={"k": 8})
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=base)
    expected = wanted(reranker, base.invoke(QUERY), 3)
    assert contents(retriever.invoke(QUERY, {"callbacks": [runs]})) == expected
    assert contents(asyncio.run(retriever.ainvoke(QUERY, {"callbacks": [runs]}))) == expected
    parents = [parent for parent, _, _ in runs.of("RerankCompressor")]
    assert parents == ["ContextualCompressionRetriever"] * 2


def test_compressor_pipeline(
    store: VectorStore, compressor: RerankCompressor, reranker: Reranker
) -> None:
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
    from langchain_text_splitters import CharacterTextSplitter

    splitter = CharacterTextSplitter(separator=". ", chunk_size=60, chunk_overlap=0)
    pipeline = DocumentCompressorPipeline(transformers=[splitter, compressor])
    base = store.as_retriever(search_kwargs={"k": 4})
    retriever = ContextualCompressionRetriever(base_compressor=pipeline, base_retriever=base)
    chunks = list(splitter.transform_documents(base.invoke(QUERY)))
    assert len(chunks) > 4
    assert contents(retriever.invoke(QUERY)) == wanted(reranker, chunks, 3)
    assert contents(asyncio.run(retriever.ainvoke(QUERY))) == wanted(reranker, chunks, 3)


def test_an_ensemble_with_bm25(store: VectorStore, compressor: RerankCompressor) -> None:
    pytest.importorskip("rank_bm25")
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_community.retrievers import BM25Retriever

    lexical = BM25Retriever.from_texts(TEXTS, k=5)
    base = EnsembleRetriever(retrievers=[store.as_retriever(), lexical], weights=[0.5, 0.5])
    union = base.invoke(QUERY)
    assert len(union) > 5
    retriever = RerankRetriever(base_retriever=base, compressor=compressor, k=5)
    expected = wanted(compressor.reranker, union, 5)
    assert contents(retriever.invoke(QUERY)) == expected
    # And the other way round: what is reranked is one of the ensemble.
    outer = EnsembleRetriever(retrievers=[retriever, lexical], weights=[0.9, 0.1])
    assert set(expected) <= set(contents(asyncio.run(outer.ainvoke(QUERY))))


async def test_a_retrieval_chain(store: VectorStore, compressor: RerankCompressor) -> None:
    from langchain_classic.chains import create_retrieval_chain
    from langchain_classic.chains.combine_documents import create_stuff_documents_chain

    prompt = ChatPromptTemplate.from_template("{context}\n\n{input}")
    model = FakeListChatModel(responses=["At noon."])
    retriever = RerankRetriever(base_retriever=store.as_retriever(), compressor=compressor, k=2)
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(model, prompt))
    for answer in (chain.invoke({"input": QUERY}), await chain.ainvoke({"input": QUERY})):
        assert answer["answer"] == "At noon."
        assert contents(answer["context"]) == contents(retriever.invoke(QUERY))


async def test_an_lcel_chain(
    store: VectorStore, compressor: RerankCompressor, reranker: Reranker
) -> None:
    base = store.as_retriever(search_kwargs={"k": 8})
    chain = (
        {"query": RunnablePassthrough(), "documents": base}
        | compressor.as_runnable()
        | RunnableLambda(lambda reranked: {"context": contents(reranked)})
        | ChatPromptTemplate.from_template("{context}")
        | FakeListChatModel(responses=["At noon."])
        | StrOutputParser()
    )
    runs = Runs()
    assert chain.invoke(QUERY, {"callbacks": [runs]}) == "At noon."
    assert await chain.ainvoke(QUERY, {"callbacks": [runs]}) == "At noon."
    assert chain.batch([QUERY] * 3) == ["At noon."] * 3
    compressions = runs.of("RerankCompressor")
    assert [parent for parent, _, _ in compressions] == ["RunnableSequence"] * 2
    expected = wanted(reranker, base.invoke(QUERY), 3)
    assert [contents(kept) for _, _, kept in compressions] == [expected] * 2
    names = [event["name"] async for event in chain.astream_events(QUERY, version="v2")]
    assert names.count("RerankCompressor") >= 2


def test_a_step_in_batches(compressor: RerankCompressor) -> None:
    step, runs = compressor.as_runnable(), Runs()
    inputs: list[dict[str, Any]] = [
        {"query": f"question {i}", "documents": documents(i)} for i in range(5)
    ]
    expected = [contents(step.invoke(request)) for request in inputs]
    assert [
        contents(reranked) for reranked in step.batch(inputs, {"callbacks": [runs]})
    ] == expected
    assert [contents(reranked) for reranked in asyncio.run(step.abatch(inputs))] == expected
    assert len(runs.of("RerankCompressor")) == 4
    inputs[2]["query"] = " "
    with pytest.raises(ValueError, match="query"):
        step.batch(inputs)
    outputs: list[Any] = step.batch(inputs, return_exceptions=True)
    assert isinstance(outputs[2], ValueError)
    assert contents(outputs[4]) == expected[4]


def test_a_run_inside_a_runnable_is_its_child(compressor: RerankCompressor) -> None:
    runs = Runs()

    def ranked(query: str) -> list[Document]:
        return compressor.compress_documents(documents(), query)

    outer = RunnableLambda(ranked, name="outer")
    outer.invoke(QUERY, {"callbacks": [runs]})
    assert [parent for parent, _, _ in runs.of("RerankCompressor")] == ["outer"]


def test_a_retriever_takes_arguments_by_the_call(
    store: VectorStore, compressor: RerankCompressor
) -> None:
    retriever = RerankRetriever(base_retriever=store.as_retriever(), compressor=compressor)
    assert len(retriever.invoke(QUERY)) == 3
    assert len(retriever.invoke(QUERY, k=1)) == 1
    (only,) = retriever.invoke(QUERY, k=2, filter={"index": 5}, fetch_k=len(TEXTS))
    assert only.metadata["index"] == 5
    (only,) = asyncio.run(retriever.ainvoke(QUERY, k=2, filter={"index": 5}, fetch_k=len(TEXTS)))
    assert only.metadata["index"] == 5
    with pytest.raises(ValueError, match="k: must be at least 1, not 0"):
        retriever.invoke(QUERY, k=0)
    with pytest.raises(ValueError, match="top_k"):
        RerankRetriever(
            base_retriever=store.as_retriever(),
            compressor=compressor,
            top_k=3,  # type: ignore[call-arg]
        )


def test_a_cross_encoder_for_code_that_is_there(reranker: Reranker) -> None:
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker

    encoder = RerankCrossEncoder(model=reranker)
    pairs = [(QUERY, text) for text in ("", *TEXTS[:4])]
    scores = encoder.score(pairs)
    assert scores[0] == 0.0
    assert scores[1:] == reranker.score(pairs[1:]).tolist()
    assert {type(score) for score in scores} == {float}
    assert encoder.score([]) == []
    with pytest.raises(ValueError, match="query"):
        encoder.score([(" ", "a")])
    reranked = CrossEncoderReranker(model=encoder, top_n=2).compress_documents(documents(), QUERY)
    assert contents(reranked) == wanted(reranker, documents(), 2)
    with pytest.raises(ValueError, match="top_n"):
        RerankCrossEncoder(model=reranker, top_n=3)  # type: ignore[call-arg]


class Counting(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.events: list[str] = []

    async def on_chain_start(self, *_: Any, **about: Any) -> None:
        self.events.append("start")

    async def on_chain_end(self, *_: Any, **about: Any) -> None:
        self.events.append("end")


async def test_asynchronous_handlers_see_runs_too(compressor: RerankCompressor) -> None:
    counting = Counting()
    await compressor.acompress_documents(documents(), QUERY, callbacks=[counting])
    assert counting.events == ["start", "end"]


class TestStandard(RetrieversIntegrationTests):
    """LangChain's own suite for retrievers."""

    compressor: RerankCompressor
    base: BaseRetriever

    @pytest.fixture(autouse=True)
    def parts(self, compressor: RerankCompressor, minilm: Any) -> None:
        type(self).compressor = compressor
        store = InMemoryVectorStore.from_texts(TEXTS[:20], MiniLM(minilm))
        type(self).base = store.as_retriever()

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RerankRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_retriever": self.base, "compressor": self.compressor}

    @property
    def retriever_query_example(self) -> str:
        return QUERY
