"""MS MARCO: triples of texts, and records whose passages have `is_selected`.

Records come as the original JSON Lines (a list of passages), as the Hugging Face data set (lists
by field; JSON Lines or Parquet), as v2's one JSON object of columns, and as CSV, where the passages
are JSON or a literal of Python.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerank_plugin.io.jsonl import DataPath, is_unicode

from ..data.reason_counts import ReasonCounts
from .labelled_query import LabelledQuery, Passage, from_labels
from .rows import JSON, Row, plain_rows, read_rows, table_files

#: What is read of a record.
FIELDS = ("query", "passages", "query_id")

#: In the place of a text that is not even null.
MISSING = object()


def read(data_path: DataPath, counts: ReasonCounts) -> Iterator[LabelledQuery]:
    """Files ending in `.tsv` are triples, all others have records.

    Fields of records that are left out are counted.
    """
    for path in table_files(data_path, JSON):
        name = path.name.removesuffix(".gz")
        if name.endswith(".tsv"):
            yield from read_triples(path)
        else:
            yield from (record(row, counts) for row in read_rows(path))


def read_triples(path: Path) -> Iterator[LabelledQuery]:
    """A query, a positive and a negative a line, as in `triples.train.small.tsv`."""
    for place, row in enumerate(plain_rows(path)):
        if place == 0 and is_header(row):
            continue
        if len(row.values) != 3:
            raise row.error(f"expected query, positive and negative, has {len(row.values)} parts")
        query, right, wrong = (row.text(column) for column in ("0", "1", "2"))
        if query.isdecimal() and right.isdecimal() and wrong.isdecimal():
            raise row.error("these are ids: the triples of texts are needed")
        yield LabelledQuery(query, [Passage(right)], [Passage(wrong)], where=row.where)


def is_header(row: Row) -> bool:
    """Whether a row of triples has the names of its columns."""
    names = [str(name).lower() for name in row.values.values()]
    begins = zip(names, ("query", "pos", "neg"), strict=False)
    return len(names) == 3 and all(
        name.startswith(begin) and " " not in name for name, begin in begins
    )


def record(row: Row, counts: ReasonCounts) -> LabelledQuery:
    """A query with its passages."""
    row.count_others(FIELDS, counts)
    passages = row.values.get("passages")
    if isinstance(passages, str):
        passages = parse(row, passages)
    texts: Any = None
    selected: Any = None
    for name in sorted(fields_of(passages) - {"passage_text", "is_selected"}):
        counts.add(f"fields {name!r} of passages, left out")
    if isinstance(passages, dict):
        texts, selected = passages.get("passage_text"), passages.get("is_selected")
    elif isinstance(passages, list) and all(isinstance(item, dict) for item in passages):
        texts = [item.get("passage_text", MISSING) for item in passages]
        selected = [item.get("is_selected") for item in passages]
    if not (isinstance(texts, list) and isinstance(selected, list) and texts):
        raise row.error("column 'passages' has no 'passage_text' and 'is_selected'")
    # A text that is null is a blank one.
    texts = ["" if text is None else text for text in texts]
    if len(texts) != len(selected) or not all(isinstance(text, str) for text in texts):
        raise row.error("'passages' needs a text and an 'is_selected' for every passage")
    if not all(isinstance(flag, int | float) and flag in (0, 1) for flag in selected):
        raise row.error("'is_selected' is neither 0 nor 1")
    labelled = zip(texts, map(bool, selected), strict=True)
    return from_labels(row.text("query"), labelled, id=row.values.get("query_id"), where=row.where)


def fields_of(passages: object) -> set[str]:
    """The names of the fields that a record's passages have."""
    values = passages if isinstance(passages, list) else [passages]
    return {name for value in values if isinstance(value, dict) for name in value}


def parse(row: Row, text: str) -> Any:
    """Return the passages in a CSV value: JSON, or a literal of Python."""
    try:
        value = json_or_literal(text)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        problem = "column 'passages' is neither JSON nor a Python literal"
        if "array(" in text:
            problem += "; numpy printed it: save the data as Parquet or JSON Lines instead"
        raise row.error(problem) from None
    if not is_unicode(value):
        raise row.error("column 'passages' holds half a surrogate pair (\\ud800 to \\udfff)")
    return value


def json_or_literal(text: str) -> Any:
    """Return the value that a text writes in JSON or in Python; nothing is ever run."""
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text.strip())
