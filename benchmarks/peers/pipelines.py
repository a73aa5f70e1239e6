"""This project's adapters and what they replace, each called as its framework calls it."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from shared.machine import PRECISIONS
from shared.models import MAX_LENGTH
from shared.texts import Request

from peers.scorers import OURS, weights_precision

#: How many documents are kept.
TOP_N = 3

#: How often the event loop is looked after, in seconds.
TICK = 0.001


class Pipeline(ABC):
    """A reranker inside its framework, loaded on the CPU.

    Args:
        folder: The model folder.
        precision: `float32`, `bfloat16`, or None for the library's own default.
    """

    #: The precisions that it is measured at.
    precisions = PRECISIONS

    #: The precision that its weights turned out to have.
    precision: str

    @abstractmethod
    def __init__(self, folder: str, precision: str | None) -> None: ...

    @abstractmethod
    def inputs(self, documents: Sequence[str]) -> list[Any]:
        """Return the framework's objects for some texts."""

    @abstractmethod
    async def rerank(self, query: str, inputs: list[Any]) -> list[str]:
        """Return the texts that are kept, the best one first."""

    def together(self, requests: Sequence[Request]) -> list[float]:
        """Return the seconds of every query, all asked at once; last, the loop's longest pause."""
        inputs = [(query, self.inputs(documents)) for query, documents in requests]
        return self._runner().run(together(self, inputs))

    def kept(self, requests: Sequence[Request]) -> list[str]:
        """Return the texts that are kept for some queries, one after the other."""
        texts = []
        for query, documents in requests:
            texts += self._runner().run(self.rerank(query, self.inputs(documents)))
        return texts

    def _runner(self) -> asyncio.Runner:
        # One event loop and its threads for all rounds, as a server has.
        if not hasattr(self, "_loop"):
            self._loop = asyncio.Runner()
        return self._loop


async def together(pipeline: Pipeline, requests: Sequence[tuple[str, list[Any]]]) -> list[float]:
    pauses = [0.0]

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(TICK)
            pauses.append(time.perf_counter() - start - TICK)

    start = time.perf_counter()

    async def timed(query: str, inputs: list[Any]) -> float:
        await pipeline.rerank(query, inputs)
        return time.perf_counter() - start

    watching = asyncio.create_task(watch())
    seconds = await asyncio.gather(*(timed(*request) for request in requests))
    watching.cancel()
    return [*seconds, max(pauses)]


class LangChain(Pipeline):
    """LangChain's documents."""

    compressor: Any

    def inputs(self, documents: Sequence[str]) -> list[Any]:
        """Documents of LangChain."""
        from langchain_core.documents import Document

        return [Document(page_content=text) for text in documents]

    async def rerank(self, query: str, inputs: list[Any]) -> list[str]:
        """Return the texts that are kept, the best one first."""
        kept = await self.compressor.acompress_documents(inputs, query)
        return [document.page_content for document in kept]


class LlamaIndex(Pipeline):
    """LlamaIndex's nodes."""

    postprocessor: Any

    def inputs(self, documents: Sequence[str]) -> list[Any]:
        """Nodes of LlamaIndex."""
        from llama_index.core.schema import NodeWithScore, TextNode

        return [NodeWithScore(node=TextNode(text=text)) for text in documents]

    async def rerank(self, query: str, inputs: list[Any]) -> list[str]:
        """Return the texts that are kept, the best one first."""
        kept = await self.postprocessor.apostprocess_nodes(inputs, query_str=query)
        return [node.node.get_content() for node in kept]


def our_settings(folder: str, precision: str | None) -> dict[str, Any]:
    return {
        "model": folder,
        "top_n": TOP_N,
        "device": "cpu",
        "dtype": precision or "auto",
        "max_length": MAX_LENGTH,
    }


class OurCompressor(LangChain):
    """`RerankCompressor` of this project."""

    def __init__(self, folder: str, precision: str | None) -> None:
        from rerank_plugin.integrations.langchain import RerankCompressor

        self.compressor = RerankCompressor(**our_settings(folder, precision))
        self.precision = str(self.compressor.reranker.dtype).removeprefix("torch.")

    def overhead(self, requests: Sequence[Request]) -> list[float]:
        """Seconds of each request, bare and through the adapter, in turns."""
        seconds = []
        for query, documents in requests:
            inputs = self.inputs(documents)
            start = time.perf_counter()
            self.compressor.reranker.rank(query, documents, TOP_N)
            middle = time.perf_counter()
            self.compressor.compress_documents(inputs, query)
            seconds += [middle - start, time.perf_counter() - middle]
        return seconds


class OurPostprocessor(LlamaIndex):
    """`RerankPostprocessor` of this project."""

    def __init__(self, folder: str, precision: str | None) -> None:
        from rerank_plugin.integrations.llama_index import RerankPostprocessor

        self.postprocessor = RerankPostprocessor(**our_settings(folder, precision))
        self.precision = str(self.postprocessor.reranker.dtype).removeprefix("torch.")

    def overhead(self, requests: Sequence[Request]) -> list[float]:
        """Seconds of each request, bare and through the adapter, in turns."""
        seconds = []
        for query, documents in requests:
            inputs = self.inputs(documents)
            start = time.perf_counter()
            self.postprocessor.reranker.rank(query, documents, TOP_N)
            middle = time.perf_counter()
            self.postprocessor.postprocess_nodes(inputs, query_str=query)
            seconds += [middle - start, time.perf_counter() - middle]
        return seconds


class CrossEncoderReranker(LangChain):
    """`CrossEncoderReranker` of langchain-classic with langchain-community's cross-encoder."""

    def __init__(self, folder: str, precision: str | None) -> None:
        import torch
        from langchain_classic.retrievers import document_compressors
        from langchain_community.cross_encoders import HuggingFaceCrossEncoder

        options: dict[str, Any] = {"device": "cpu", "max_length": MAX_LENGTH}
        if precision:
            options["model_kwargs"] = {"dtype": getattr(torch, precision)}
        model = HuggingFaceCrossEncoder(model_name=folder, model_kwargs=options)
        self.compressor = document_compressors.CrossEncoderReranker(model=model, top_n=TOP_N)
        self.precision = weights_precision(model.client)


class SentenceTransformerRerank(LlamaIndex):
    """`SentenceTransformerRerank` of LlamaIndex."""

    def __init__(self, folder: str, precision: str | None) -> None:
        import torch
        from llama_index.core.postprocessor import SentenceTransformerRerank as Postprocessor

        self.postprocessor = Postprocessor(model=folder, top_n=TOP_N, device="cpu")
        if precision:
            # It has no option for it: what is left to its users is to cast the model it holds.
            self.postprocessor._model.to(getattr(torch, precision))
        self.precision = weights_precision(self.postprocessor._model)


#: By framework: this project, and what it replaces.
PIPELINES: dict[str, dict[str, type[Pipeline]]] = {
    "langchain": {
        f"{OURS} in LangChain": OurCompressor,
        "CrossEncoderReranker": CrossEncoderReranker,
    },
    "llama_index": {
        f"{OURS} in LlamaIndex": OurPostprocessor,
        "SentenceTransformerRerank": SentenceTransformerRerank,
    },
}
