"""Tables of (query, passage, label), as CSV, TSV, Parquet or JSON Lines."""

from collections.abc import Iterator

from rerank_plugin.jsonl import DataPath

from .judged import Judged, judged
from .rows import first_of, read_rows

#: What columns are usually called, the likeliest first.
QUERIES = ("query", "question", "anchor", "sentence1", "text1", "q")
PASSAGES = ("passage", "document", "doc", "text", "context", "answer", "sentence2", "text2", "p")
LABELS = ("label", "relevance", "score", "grade", "is_selected", "is_relevant")


def read(data_path: DataPath, *, threshold: float) -> Iterator[Judged]:
    """One judgement a row; right is a label of at least `threshold`."""
    for row in read_rows(data_path):
        query = row.text(first_of(row, QUERIES, "query"))
        passage = row.text(first_of(row, PASSAGES, "passage"))
        label = row.number(first_of(row, LABELS, "label"))
        yield judged(query, [(passage, label >= threshold)])
