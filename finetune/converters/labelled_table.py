"""Tables of (query, passage, label), as CSV, TSV, Parquet or JSON Lines."""

from collections.abc import Iterator

from rerank_plugin.io.jsonl import DataPath

from ..data.reason_counts import ReasonCounts
from .labelled_query import LabelledQuery, from_labels
from .rows import first_of, positive_label, read_rows

#: The usual names of columns, the likeliest first.
QUERIES = ("query", "question", "anchor", "sentence1", "text1", "q")
PASSAGES = ("passage", "document", "doc", "text", "context", "answer", "sentence2", "text2", "p")
LABELS = ("label", "relevance", "score", "grade", "is_selected", "is_relevant")


def read_labelled_table(
    data_path: DataPath, counts: ReasonCounts, *, threshold: float | None
) -> Iterator[LabelledQuery]:
    """Yield one judgement a row, by `positive_label`; count columns that are left out."""
    for row in read_rows(data_path):
        query = first_of(row, QUERIES, "query")
        passage = first_of(row, PASSAGES, "passage")
        label = first_of(row, LABELS, "label")
        row.count_others((query, passage, label), counts)
        positive = positive_label(row, row.number(label), label, threshold)
        yield from_labels(
            row.text(query),
            [(row.text(passage), positive)],
            where=row.where,
            instruction=row.instruction,
        )
