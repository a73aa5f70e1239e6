"""Both adapters count the scores of retrieval for a model that was fused with its retriever."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_plugin import Reranker
from rerank_plugin.integrations.langchain import RerankCompressor
from rerank_plugin.integrations.llama_index import RerankPostprocessor

from ..factories import sample_texts
from ..test_fusion import settings_with

QUERY = "when does the ferry sail"
TEXTS = sample_texts()[:6]
FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Adapter = Callable[[list[Any], bool], list[str]]


@pytest.fixture(scope="module")
def reranker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    """A model beside which the retriever counts far more."""
    folder = tmp_path_factory.mktemp("fused") / "model"
    shutil.copytree(tiny_model, folder)
    settings_with(score=1e6, rank=1e6).write(folder)
    return Reranker(folder, dtype="float32", max_length=48)


@pytest.fixture(params=["langchain", "llama_index"])
def ranked(request: pytest.FixtureRequest, reranker: Reranker) -> Adapter:
    """Rank `TEXTS` with retrieval scores, at once and asynchronously."""

    def langchain(scores: list[Any], fuse: bool) -> list[str]:
        compressor = RerankCompressor(model=reranker, top_n=None, fuse=fuse)
        documents = [
            Document(text, metadata={} if score is None else {"_score": score})
            for text, score in zip(TEXTS, scores, strict=True)
        ]
        found = compressor.compress_documents(documents, QUERY)
        assert asyncio.run(compressor.acompress_documents(documents, QUERY)) == found
        return [document.page_content for document in found]

    def llama_index(scores: list[Any], fuse: bool) -> list[str]:
        processor = RerankPostprocessor(model=reranker, top_n=None, fuse=fuse)
        nodes = [
            NodeWithScore.model_construct(node=TextNode(text=text), score=score)
            for text, score in zip(TEXTS, scores, strict=True)
        ]
        found = processor.postprocess_nodes(nodes, query_str=QUERY)
        again = asyncio.run(processor.apostprocess_nodes(nodes, query_str=QUERY))
        assert [node.score for node in again] == [node.score for node in found]
        return [node.node.get_content() for node in found]

    return {"langchain": langchain, "llama_index": llama_index}[request.param]


def test_scores_order_and_option(ranked: Adapter, reranker: Reranker) -> None:
    scores = [0.4, 0.9, 0.1, 0.8, 0.5, 0.2]
    best_first = sorted(range(6), key=lambda index: -scores[index])
    assert ranked([*scores], True) == [TEXTS[index] for index in best_first]
    assert ranked([None] * 6, True) == TEXTS
    assert ranked(["high", *scores[1:]], True) == TEXTS
    plain = [result.document for result in reranker.rank(QUERY, TEXTS, fuse=False)]
    assert ranked([*scores], False) == plain


@FEW
@given(scores=st.lists(st.none() | st.floats() | st.integers(-3, 3), min_size=6, max_size=6))
def test_nothing_is_lost(ranked: Adapter, scores: list[Any]) -> None:
    assert sorted(ranked(scores, True)) == sorted(TEXTS)


def test_the_key_of_scores_can_be_named(reranker: Reranker) -> None:
    documents = [
        Document(text, metadata={"score": index % 4, "similarity": -index})
        for index, text in enumerate(TEXTS)
    ]
    compressor = RerankCompressor(model=reranker, score_key="similarity", keep_retrieval_score=True)
    found = compressor.compress_documents(documents, QUERY)
    assert [document.page_content for document in found] == TEXTS[:3]
    assert [document.metadata["retrieval_score"] for document in found] == [0, -1, -2]
