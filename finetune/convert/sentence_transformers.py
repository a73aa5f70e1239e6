"""sentence-transformers' training data: pairs, triplets, n-tuples, labelled pairs and lists.

As that library does, columns are read by their order: the first is the query, the second a right
passage, all others wrong ones. Columns of labels and scores go by their names.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from rerank_plugin.errors import InputError
from rerank_plugin.jsonl import DataPath

from .judged import Judged, Passage, judged
from .rows import DELIMITED, Row, column_names, read_rows, table_files

#: Columns that hold no text; sentence-transformers knows the same ones.
LABELS = ("label", "labels", "score", "scores")

#: Columns that hold no text either, of which sentence-transformers does not know.
IDS = ("id", "_id", "idx", "query_id", "qid")

#: What a column may be called in a file that may lack the line of names.
NAME = re.compile(r"[A-Za-z0-9_.-]+")


def read(data_path: DataPath, *, threshold: float) -> Iterator[Judged]:
    """One record a row; right is a label of at least `threshold`, where there are labels."""
    for path in table_files(data_path):
        if path.name.endswith(DELIMITED):
            check_names(path)
        for row in read_rows(path):
            yield read_row(row, threshold)


def check_names(path: Path) -> None:
    """Check that a CSV or TSV file begins with names, and not with a query and its passages."""
    wrong = next((name for name in column_names(path) if not NAME.fullmatch(name)), None)
    if wrong is not None:
        raise InputError(
            f"{path}:1: {wrong!r} is no column name (letters, digits, '_', '.' and '-'): "
            "put a line of names first, as query and positive"
        )


def read_row(row: Row, threshold: float) -> Judged:
    """What one row says."""
    labels = [column for column in row.values if column in LABELS]
    texts = [column for column in row.values if column not in (*LABELS, *IDS)]
    if len(texts) < 2 or len(labels) > 1:
        raise row.error(
            "expected the query, passages, and at most one of label, labels, score and scores; "
            f"the columns are {', '.join(row.values)}"
        )
    query, second = row.text(texts[0]), row.values[texts[1]]
    if isinstance(second, list):
        return labelled_list(row, query, texts[1], labels, threshold)
    if labels and not isinstance(row.values[labels[0]], list):
        if len(texts) > 2:
            raise row.error(
                f"{labels[0]!r} is one number for the {len(texts) - 1} passages in "
                f"{', '.join(texts[1:])}: give a list with a score for each, or take it out"
            )
        right = row.number(labels[0]) >= threshold
        return judged(query, [(row.text(texts[1]), right)])
    return tuple_of(row, query, texts[1:], labels)


def labelled_list(row: Row, query: str, column: str, labels: list[str], threshold: float) -> Judged:
    """A query, a list of passages and a list of labels."""
    passages = row.texts(column)
    if not labels:
        raise row.error(f"column {column!r} is a list, which needs a column 'labels' beside it")
    values = row.numbers(labels[0])
    if len(values) != len(passages):
        raise row.error(f"{labels[0]!r} has {len(values)} numbers for {len(passages)} passages")
    return judged(
        query, [(text, value >= threshold) for text, value in zip(passages, values, strict=True)]
    )


def tuple_of(row: Row, query: str, columns: list[str], labels: list[str]) -> Judged:
    """A query, a right passage and any number of wrong ones, perhaps with a list of scores."""
    texts = [row.text(column) for column in columns if row.values[column] is not None]
    scores: list[float | None] = [None] * len(texts)
    if labels:
        scores = [*row.numbers(labels[0])]
        if len(scores) != len(texts):
            raise row.error(f"{labels[0]!r} has {len(scores)} numbers for {len(texts)} passages")
    right, *wrong = (Passage(text, score) for text, score in zip(texts, scores, strict=True))
    return Judged(query, [right], wrong)
