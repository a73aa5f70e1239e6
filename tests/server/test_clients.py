"""Clients of other services, unmodified, over a real socket: they get the scores of the model."""

import json
import os
import subprocess
import sys
from typing import Any

import cohere
import pytest
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor import cohere_rerank, tei_rerank
from pydantic import SecretStr

from .conftest import QUERY, TEXTS, Served

NODES = [NodeWithScore(node=TextNode(id_=str(i), text=t)) for i, t in enumerate(TEXTS)]

Ranking = list[tuple[int, float]]


def ranked(served: Served, top_n: int | None = None, adapter: str | None = None) -> Ranking:
    ranking = served.reranker.rank(QUERY, TEXTS, top_n, adapter=adapter)
    return [(result.index, result.score) for result in ranking]


def pairs(reply: Any) -> Ranking:
    return [(result.index, result.relevance_score) for result in reply.results]


def of_nodes(nodes: list[NodeWithScore]) -> Ranking:
    return [(int(node.node.id_), float(node.score or 0)) for node in nodes]


def test_cohere_version_2(served: Served) -> None:
    client = cohere.ClientV2(api_key="none", base_url=served.url)
    request: dict[str, Any] = {"query": QUERY, "documents": TEXTS, "top_n": 4}
    reply = client.rerank(model="legal", **request)
    assert pairs(reply) == ranked(served, 4, "legal")
    assert reply.meta and reply.meta.api_version and reply.meta.api_version.version == "2"
    with pytest.raises(cohere.NotFoundError, match="unknown name; use tiny, legal, medical"):
        client.rerank(model="rerank-v3.5", **request)
    with pytest.raises(cohere.BadRequestError, match="the list must not be empty"):
        client.rerank(model="legal", query=QUERY, documents=[])


async def test_cohere_version_2_on_an_event_loop(served: Served) -> None:
    client = cohere.AsyncClientV2(api_key="none", base_url=served.url)
    reply = await client.rerank(model="tiny", query=QUERY, documents=TEXTS)
    assert pairs(reply) == ranked(served)


def test_cohere_version_1(served: Served) -> None:
    client = cohere.Client(api_key="none", base_url=served.url)
    documents: list[Any] = [{"text": text} for text in TEXTS]
    reply = client.rerank(model="tiny", query=QUERY, documents=documents, return_documents=True)
    assert pairs(reply) == ranked(served)
    texts = [result.document.text for result in reply.results if result.document]
    assert texts == [TEXTS[result.index] for result in reply.results]


def test_langchain(served: Served) -> None:
    compressor = CohereRerank(
        base_url=served.url, cohere_api_key=SecretStr("none"), model="medical", top_n=3
    )
    documents = [Document(text, metadata={"index": i}) for i, text in enumerate(TEXTS)]
    compressed = compressor.compress_documents(documents, QUERY)
    assert [(d.metadata["index"], d.metadata["relevance_score"]) for d in compressed] == ranked(
        served, 3, "medical"
    )


def test_llama_index_cohere(served: Served) -> None:
    postprocessor = cohere_rerank.CohereRerank(
        base_url=served.url, api_key="none", model="tiny", top_n=5
    )
    nodes = postprocessor.postprocess_nodes(NODES, QueryBundle(QUERY))
    assert of_nodes(nodes) == ranked(served, 5)


def test_llama_index_text_embeddings_inference(served: Served) -> None:
    postprocessor = tei_rerank.TextEmbeddingInference(base_url=served.url, top_n=5)
    nodes = postprocessor.postprocess_nodes([n.model_copy() for n in NODES], QueryBundle(QUERY))
    assert of_nodes(nodes) == ranked(served, 5)


#: litellm changes global settings of other libraries when it is imported.
LITELLM = """
import json, sys, litellm
url, query, *documents = sys.argv[1:]
for provider in ("jina_ai", "cohere", "hosted_vllm"):
    reply = litellm.rerank(
        model=f"{provider}/legal",
        query=query,
        documents=documents,
        top_n=4,
        api_base=url,
        api_key="none",
    )
    print(json.dumps([[result["index"], result["relevance_score"]] for result in reply.results]))
"""


def test_litellm(served: Served) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, "-c", LITELLM, served.url, QUERY, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rankings = [json.loads(line) for line in done.stdout.splitlines()]
    assert rankings == [[list(pair) for pair in ranked(served, 4, "legal")]] * 3
