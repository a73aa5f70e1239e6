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

#: The fields of a record that are read.
MSMARCO_FIELDS = ("query", "passages", "query_id")

#: The value of a text that is missing, not null.
MISSING = object()


def read_msmarco(data_path: DataPath, counts: ReasonCounts) -> Iterator[LabelledQuery]:
    """Yield triples of files ending in `.tsv`, and records of all others.

    Other fields of records are counted.
    """
    for path in table_files(data_path, JSON):
        name = path.name.removesuffix(".gz")
        if name.endswith(".tsv"):
            yield from read_triples(path)
        else:
            yield from (record(row, counts) for row in read_rows(path))


def read_triples(path: Path) -> Iterator[LabelledQuery]:
    """Yield a query, a positive and a negative a line, as in `triples.train.small.tsv`."""
    for index, row in enumerate(plain_rows(path)):
        if index == 0 and is_triple_header(row):
            continue
        if len(row.values) != 3:
            raise row.error(
                f"expected query, positive and negative, found {len(row.values)} columns"
            )
        query, positive, negative = (row.text(column) for column in ("0", "1", "2"))
        if query.isdecimal() and positive.isdecimal() and negative.isdecimal():
            raise row.error("expected texts, found ids: use the file with the triples of texts")
        yield LabelledQuery(query, [Passage(positive)], [Passage(negative)], where=row.where)


def is_triple_header(row: Row) -> bool:
    """Return whether a row of triples has the names of its columns."""
    names = [str(name).lower() for name in row.values.values()]
    begins = zip(names, ("query", "pos", "neg"), strict=False)
    return len(names) == 3 and all(
        name.startswith(begin) and " " not in name for name, begin in begins
    )


def record(row: Row, counts: ReasonCounts) -> LabelledQuery:
    """Return a query with its passages."""
    row.count_others(MSMARCO_FIELDS, counts)
    passages = row.values.get("passages")
    if isinstance(passages, str):
        passages = parse_passages(row, passages)
    texts: Any = None
    selected: Any = None
    for name in sorted(fields_of(passages) - {"passage_text", "is_selected"}):
        counts.add(f"fields {name!r} of passages, left out")
    if isinstance(passages, dict):
        texts, selected = passages.get("passage_text"), passages.get("is_selected")
    elif isinstance(passages, list) and all(isinstance(passage, dict) for passage in passages):
        texts = [passage.get("passage_text", MISSING) for passage in passages]
        selected = [passage.get("is_selected") for passage in passages]
    if not (isinstance(texts, list) and isinstance(selected, list) and texts):
        raise row.error("column 'passages' has no 'passage_text' and 'is_selected'")
    # A null text is blank.
    texts = ["" if text is None else text for text in texts]
    if len(texts) != len(selected) or not all(isinstance(text, str) for text in texts):
        raise row.error("expected a text and an 'is_selected' for every passage in 'passages'")
    if not all(isinstance(flag, int | float) and flag in (0, 1) for flag in selected):
        raise row.error("'is_selected' must be 0 or 1")
    labelled = zip(texts, (1 if flag else None for flag in selected), strict=True)
    return from_labels(
        row.text("query"),
        labelled,
        id=row.values.get("query_id"),
        where=row.where,
        instruction=row.instruction,
    )


def fields_of(passages: object) -> set[str]:
    """Return the names of the fields of a record's passages."""
    values = passages if isinstance(passages, list) else [passages]
    return {name for value in values if isinstance(value, dict) for name in value}


def parse_passages(row: Row, text: str) -> Any:
    """Return the passages in a CSV value: JSON, or a literal of Python."""
    try:
        value = json_or_literal(text)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        problem = "column 'passages' is neither JSON nor a Python literal"
        if "array(" in text:
            problem += "; numpy printed it: save the data as Parquet or JSON Lines instead"
        raise row.error(problem) from None
    if not is_unicode(value):
        raise row.error("column 'passages' has an unpaired surrogate (\\ud800 to \\udfff)")
    return value


def json_or_literal(text: str) -> Any:
    """Return the value that a text writes in JSON or in Python; nothing is ever run."""
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text.strip())
