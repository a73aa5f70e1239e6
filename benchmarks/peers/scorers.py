"""This project and its peers as scorers, each used the way its own documentation shows.

All give raw logits, so that they can be compared, and rank as their users would.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from shared.machine import PRECISIONS, device
from shared.models import MAX_LENGTH
from shared.texts import Request

OURS = "rerank-plugin"


class UnsupportedPrecisionError(Exception):
    """A library does not compute at a precision, or not on this machine."""


class Scorer(ABC):
    """A cross-encoder, loaded on the benchmark's device.

    Args:
        folder: The model folder.
        precision: One of `precisions`, or None for the library's own default.

    Raises:
        UnsupportedPrecisionError: the precision cannot be had here.
    """

    #: The precisions that it is measured at.
    precisions: tuple[str, ...] = PRECISIONS

    #: The precision that its weights turned out to have.
    precision: str

    @abstractmethod
    def __init__(self, folder: str, precision: str | None) -> None: ...

    @abstractmethod
    def score(self, requests: Sequence[Request]) -> list[float]:
        """Return the logits of all pairs, in their order."""

    @abstractmethod
    def rank(self, query: str, documents: list[str]) -> list[int]:
        """Return the indices of the documents, the best one first."""


class RerankPlugin(Scorer):
    """`Reranker` of this project."""

    precisions = (*PRECISIONS, "int8")

    def __init__(self, folder: str, precision: str | None) -> None:
        from rerank_plugin import InputError, Reranker

        try:
            self.model = Reranker(
                folder,
                dtype=precision or "auto",
                max_length=MAX_LENGTH,
                device=device(),
                normalize="none",
            )
        except InputError as error:
            if precision != "int8":
                raise
            raise UnsupportedPrecisionError(error) from error
        self.precision = str(self.model.dtype).removeprefix("torch.")

    def score(self, requests: Sequence[Request]) -> list[float]:
        """Return the logits of all pairs, in their order."""
        scores: list[float] = self.model.score(as_pairs(requests)).tolist()
        return scores

    def rank(self, query: str, documents: list[str]) -> list[int]:
        """Return the indices of the documents, the best one first."""
        return [ranked.index for ranked in self.model.rank(query, documents)]


class SentenceTransformers(Scorer):
    """`CrossEncoder` of sentence-transformers, in its default batches of 32."""

    def __init__(self, folder: str, precision: str | None) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        self.model = CrossEncoder(
            folder,
            max_length=MAX_LENGTH,
            device=device(),
            activation_fn=torch.nn.Identity(),
            model_kwargs={"dtype": getattr(torch, precision)} if precision else None,
        )
        self.precision = weights_precision(self.model)

    def score(self, requests: Sequence[Request]) -> list[float]:
        """Return the logits of all pairs, in their order."""
        scores: list[float] = self.model.predict(as_pairs(requests)).tolist()
        return scores

    def rank(self, query: str, documents: list[str]) -> list[int]:
        """Return the indices of the documents, the best one first."""
        return [int(hit["corpus_id"]) for hit in self.model.rank(query, documents)]


class FlagEmbedding(Scorer):
    """`FlagReranker` of FlagEmbedding, in its default batches of 128."""

    def __init__(self, folder: str, precision: str | None) -> None:
        import torch
        from FlagEmbedding import FlagReranker

        self.model = FlagReranker(folder, max_length=MAX_LENGTH, devices=device())
        if precision:
            # use_fp16 is ignored on a CPU and use_bf16 everywhere: its rerankers have no such
            # option. What is left to its users is to cast the model that it holds.
            self.model.model.to(getattr(torch, precision))
        self.precision = weights_precision(self.model.model)

    def score(self, requests: Sequence[Request]) -> list[float]:
        """Return the logits of all pairs, in their order."""
        scores: list[float] = self.model.compute_score(as_pairs(requests))
        return scores

    def rank(self, query: str, documents: list[str]) -> list[int]:
        """Return the indices of the documents, the best one first."""
        scores = self.score([(query, documents)])
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)


class Rerankers(Scorer):
    """The cross-encoder of rerankers, in its default batches of 16; it takes a query at a time."""

    def __init__(self, folder: str, precision: str | None) -> None:
        from rerankers import Reranker

        # It cuts at the tokenizer's model_max_length, which is MAX_LENGTH in every folder.
        self.model = Reranker(
            folder, model_type="cross-encoder", device=device(), dtype=precision, verbose=0
        )
        self.precision = weights_precision(self.model.model)

    def score(self, requests: Sequence[Request]) -> list[float]:
        """Return the logits of all pairs, in their order."""
        scores = []
        for query, documents in requests:
            results = self.model.rank(query, documents).results
            results.sort(key=lambda result: int(result.document.doc_id))
            scores += [float(result.score) for result in results]
        return scores

    def rank(self, query: str, documents: list[str]) -> list[int]:
        """Return the indices of the documents, the best one first."""
        return [int(result.document.doc_id) for result in self.model.rank(query, documents).results]


def as_pairs(requests: Sequence[Request]) -> list[tuple[str, str]]:
    """Return all (query, document) pairs of some requests."""
    return [(query, document) for query, documents in requests for document in documents]


def weights_precision(module: Any) -> str:
    """Return the precision of most of a torch module's weights."""
    dtypes = [str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters()]
    return max(set(dtypes), key=dtypes.count)
