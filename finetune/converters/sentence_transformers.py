"""sentence-transformers' training data: pairs, triplets, n-tuples, labelled pairs and lists.

As in that library, columns are read by their order in the first row: the first is the query, the
second a positive, all others negatives. Columns of labels and scores go by their names. Lists
of passages are taken too, as `negatives`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath

from ..data.reason_counts import ReasonCounts
from .labelled_query import LabelledQuery, Passage, from_labels
from .rows import DELIMITED, Row, column_names, positive_label, read_rows, table_files

#: Columns of labels and scores, as in sentence-transformers.
LABEL_COLUMNS = ("label", "labels", "score", "scores")

#: Columns of ids and of our instructions, which sentence-transformers takes for texts.
OTHER_COLUMNS = ("id", "_id", "idx", "query_id", "qid", "instruction")

#: The pattern of a column name in a file that may lack the line of names.
HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def read_sentence_transformers(
    data_path: DataPath, counts: ReasonCounts, *, threshold: float | None
) -> Iterator[LabelledQuery]:
    """Yield one record a row, labelled by `positive_label` where there are labels."""
    for path in table_files(data_path):
        if path.name.endswith(DELIMITED):
            check_names(path)
        columns = None
        for row in read_rows(path):
            columns = columns or Columns.from_row(row)
            columns.check(row)
            row.count_others((*texts_of(row), *labels_of(row)), counts)
            yield replace(read_row(row, columns, threshold), instruction=row.instruction)


def check_names(path: Path) -> None:
    """Check that a CSV or TSV file begins with names, and not with a query and its passages."""
    text = next((name for name in column_names(path) if not HEADER_NAME.fullmatch(name)), None)
    if text is not None:
        raise InputError(
            f"{path}:1: {text!r} is not a column name (letters, digits, '_', '.' and '-'): "
            "put a line of names first, as query and positive"
        )


@dataclass(frozen=True)
class Columns:
    """The meaning of a file's columns, by its first row: JSON lines may have another order."""

    query: str
    second: str
    #: The labels or scores, where there are some.
    labels: str | None

    @classmethod
    def from_row(cls, row: Row) -> "Columns":
        """Return the columns of a first row."""
        labels, texts = labels_of(row), texts_of(row)
        if len(texts) < 2 or len(labels) > 1:
            raise row.error(
                "expected the query, passages, and at most one of label, labels, score and scores; "
                f"the columns are {', '.join(row.values)}"
            )
        return cls(texts[0], texts[1], labels[0] if labels else None)

    def check(self, row: Row) -> None:
        """Check that a row has the columns of the first one."""
        expected = [self.query, self.second, *([self.labels] if self.labels else [])]
        missing = [column for column in expected if column not in row.values]
        more = [column for column in labels_of(row) if column != self.labels]
        if missing or more:
            problem = f"no {missing[0]!r}" if missing else f"a column {more[0]!r}"
            raise row.error(f"the row has {problem}, unlike the first row of the file")

    def negatives(self, row: Row) -> list[str]:
        """Return the columns of the negatives of a row, whose number can differ between rows."""
        return [column for column in texts_of(row) if column not in (self.query, self.second)]


def labels_of(row: Row) -> list[str]:
    """Return the columns of labels and scores."""
    return [column for column in row.values if column.lower() in LABEL_COLUMNS]


def texts_of(row: Row) -> list[str]:
    """Return the columns of texts, in their order."""
    others = (*LABEL_COLUMNS, *OTHER_COLUMNS)
    return [column for column in row.values if column.lower() not in others]


def read_row(row: Row, columns: Columns, threshold: float | None) -> LabelledQuery:
    """Return the record of one row."""
    query, negatives = row.text(columns.query), columns.negatives(row)
    labels = columns.labels
    if isinstance(row.values[columns.second], list) and (labels or not is_positives(columns)):
        return labelled_list(row, query, columns, threshold)
    if labels and not isinstance(row.values[labels], list):
        if negatives:
            raise row.error(
                f"{labels!r} is one number for the {1 + len(negatives)} passages in "
                f"{', '.join((columns.second, *negatives))}: give a list with a score for each, or "
                "remove it"
            )
        label = positive_label(row, row.number(labels), labels, threshold)
        return from_labels(query, [(row.text(columns.second), label)], where=row.where)
    return tuple_of(row, query, columns)


def is_positives(columns: Columns) -> bool:
    """Return whether a list in the second column has positives, by its name."""
    return columns.second.lower().startswith("pos")


def labelled_list(row: Row, query: str, columns: Columns, threshold: float | None) -> LabelledQuery:
    """Return the record of a query, a list of passages and a list of labels."""
    column, labels = columns.second, columns.labels
    passages = row.texts(column)
    if not labels:
        raise row.error(f"column {column!r} is a list, which needs a column 'labels'")
    values = row.numbers(labels)
    if len(values) != len(passages):
        raise row.error(f"{labels!r} has {len(values)} numbers for {len(passages)} passages")
    positive = [positive_label(row, value, labels, threshold) for value in values]
    return from_labels(query, zip(passages, positive, strict=True), where=row.where)


def tuple_of(row: Row, query: str, columns: Columns) -> LabelledQuery:
    """Return the record of a query, a positive and negatives, perhaps with a list of scores.

    A column may have a list of passages, as `negatives`; one that is null has none.
    """
    positives = passages_of(row, columns.second)
    negatives = [
        text
        for column in columns.negatives(row)
        if row.values[column] is not None
        for text in passages_of(row, column)
    ]
    texts, labels = [*positives, *negatives], columns.labels
    scores = row.numbers(labels) if labels else [None] * len(texts)
    if len(scores) != len(texts):
        raise row.error(f"{labels!r} has {len(scores)} numbers for {len(texts)} passages")
    scored = [Passage(text, score) for text, score in zip(texts, scores, strict=True)]
    return LabelledQuery(query, scored[: len(positives)], scored[len(positives) :], where=row.where)


def passages_of(row: Row, column: str) -> list[str]:
    """Return the passages in a column: a text, or a list of them."""
    return row.texts(column) if isinstance(row.values[column], list) else [row.text(column)]
