"""The formats that can be converted, and their readers."""

from collections.abc import Callable, Iterator

from rerank_plugin.io.jsonl import DataPath

from ..data.reason_counts import ReasonCounts
from . import flagembedding, labelled_table, msmarco, sentence_transformers, tevatron
from .labelled_query import LabelledQuery

#: Readers of files by format.
READERS: dict[str, Callable[[DataPath, ReasonCounts], Iterator[LabelledQuery]]] = {
    "tevatron": tevatron.read,
    "flagembedding": flagembedding.read,
    "msmarco": msmarco.read,
}

#: Readers of formats that can have labels, which a threshold separates.
LABELLED: dict[str, Callable[..., Iterator[LabelledQuery]]] = {
    "sentence-transformers": sentence_transformers.read,
    "table": labelled_table.read,
}

SOURCES = ("beir", *READERS, *LABELLED, "groups")
