"""The formats that can be converted, and their readers."""

from collections.abc import Callable, Iterator

from rerank_plugin.io.jsonl import DataPath

from ..data.reason_counts import ReasonCounts
from .flagembedding import read_flagembedding
from .labelled_query import LabelledQuery
from .labelled_table import read_labelled_table
from .msmarco import read_msmarco
from .sentence_transformers import read_sentence_transformers
from .tevatron import read_tevatron

#: Readers of files by format.
READERS: dict[str, Callable[[DataPath, ReasonCounts], Iterator[LabelledQuery]]] = {
    "tevatron": read_tevatron,
    "flagembedding": read_flagembedding,
    "msmarco": read_msmarco,
}

#: Readers of formats that can have labels, which a threshold separates.
LABELLED: dict[str, Callable[..., Iterator[LabelledQuery]]] = {
    "sentence-transformers": read_sentence_transformers,
    "table": read_labelled_table,
}

SOURCES = ("beir", *READERS, *LABELLED, "groups")
