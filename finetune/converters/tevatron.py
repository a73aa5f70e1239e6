"""Tevatron's training data, as MIRACL, Mr. TyDi and MS MARCO come on the hub.

A record has `query`, `positive_passages` and `negative_passages`: objects with `text`, and perhaps
`title` and `docid`.
"""

from collections.abc import Iterator

from rerank_plugin.io.jsonl import DataPath, json_type

from ..data.reason_counts import ReasonCounts
from .labelled_query import LabelledQuery, Passage, id_text
from .rows import Row, read_rows

#: What is read of a record, and of its passages.
FIELDS = ("query", "query_id", "positive_passages", "negative_passages")
PASSAGE_FIELDS = ("docid", "title", "text")


def read(data_path: DataPath, counts: ReasonCounts) -> Iterator[LabelledQuery]:
    """One record a row; title and text are joined by a space. Other fields are counted."""
    for row in read_rows(data_path):
        row.count_others(FIELDS, counts)
        pos, neg = (side(row, f"{name}_passages", counts) for name in ("positive", "negative"))
        id = id_text(row.values.get("query_id"))
        yield LabelledQuery(row.text("query"), pos, neg, id, row.where)


def side(row: Row, column: str, counts: ReasonCounts) -> list[Passage]:
    """The passages of one side; a test set may have none."""
    found = row.values.get(column)
    if found is None and column in row.values:
        return []
    if not isinstance(found, list):
        expected = "expected a list of objects with 'text' and perhaps 'title'"
        found = json_type(found) if column in row.values else "missing"
        raise row.error(f"column {column!r} is {found}, {expected}")
    return [passage(row, f"{column}[{place}]", item, counts) for place, item in enumerate(found)]


def passage(row: Row, where: str, found: object, counts: ReasonCounts) -> Passage:
    """One passage; without a text it is blank."""
    if not isinstance(found, dict):
        raise row.error(f"{where} is {json_type(found)}, expected an object with 'text'")
    for name in sorted(found.keys() - PASSAGE_FIELDS):
        counts.add(f"fields {name!r} of passages, left out")
    parts = []
    for name in ("title", "text"):
        text = found.get(name)
        if text is not None and not isinstance(text, str):
            raise row.error(f"{name!r} of {where} is {json_type(text)}, expected a text")
        parts.append(text or "")
    return Passage(" ".join(filter(str.strip, parts)))
