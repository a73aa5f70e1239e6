"""Tevatron's training data, the format of MIRACL, Mr. TyDi and MS MARCO on the hub.

A record has `query`, `positive_passages` and `negative_passages`: objects with `text`, and perhaps
`title` and `docid`.
"""

from collections.abc import Iterator

from rerank_plugin.io.jsonl import DataPath, json_type

from ..data.reason_counts import ReasonCounts
from .labelled_query import LabelledQuery, Passage, id_text
from .rows import Row, read_rows

#: The fields of a record that are read, and of its passages.
TEVATRON_FIELDS = ("query", "query_id", "positive_passages", "negative_passages")
PASSAGE_FIELDS = ("docid", "title", "text")


def read_tevatron(data_path: DataPath, counts: ReasonCounts) -> Iterator[LabelledQuery]:
    """Yield one record a row, title and text joined by a space. Other fields are counted."""
    for row in read_rows(data_path):
        row.count_others(TEVATRON_FIELDS, counts)
        pos, neg = (
            titled_passages(row, f"{name}_passages", counts) for name in ("positive", "negative")
        )
        id = id_text(row.values.get("query_id"))
        yield LabelledQuery(row.text("query"), pos, neg, id, row.where, row.instruction)


def titled_passages(row: Row, column: str, counts: ReasonCounts) -> list[Passage]:
    """Return the passages of one side; a test set may have none."""
    values = row.values.get(column)
    if values is None and column in row.values:
        return []
    if not isinstance(values, list):
        expected = "expected a list of objects with 'text' and perhaps 'title'"
        actual = json_type(values) if column in row.values else "missing"
        raise row.error(f"column {column!r} is {actual}, {expected}")
    return [passage(row, f"{column}[{i}]", value, counts) for i, value in enumerate(values)]


def passage(row: Row, where: str, value: object, counts: ReasonCounts) -> Passage:
    """Return one passage; without a text it is blank."""
    if not isinstance(value, dict):
        raise row.error(f"{where} is {json_type(value)}, expected an object with 'text'")
    for name in sorted(value.keys() - PASSAGE_FIELDS):
        counts.add(f"fields {name!r} of passages, left out")
    texts = []
    for name in ("title", "text"):
        text = value.get(name)
        if text is not None and not isinstance(text, str):
            raise row.error(f"{name!r} of {where} is {json_type(text)}, expected a text")
        texts.append(text or "")
    return Passage(" ".join(filter(str.strip, texts)))
