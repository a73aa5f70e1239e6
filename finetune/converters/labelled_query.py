"""Labelled queries, which every format is read as: a query with positives and negatives."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passage:
    """A passage, and the scores of a teacher and of a retriever where the data has them."""

    text: str
    score: float | None = None
    retrieval_score: float | None = None
    #: The label of a positive as the data has it, which may be a grade.
    label: float = 1


@dataclass(frozen=True)
class LabelledQuery:
    """A query with the passages of one record; other records may have more."""

    query: str
    pos: list[Passage] = field(default_factory=list)
    neg: list[Passage] = field(default_factory=list)
    #: The query's id, where the data has one.
    id: str | None = None
    #: The row or the line, for messages.
    where: str = ""
    #: The instruction; "" without one.
    instruction: str = ""


def from_labels(
    query: str,
    labelled: Iterable[tuple[str, float | None]],
    *,
    id: object = None,
    where: str = "",
    instruction: str = "",
) -> LabelledQuery:
    """Return a query with passages, each with the label of a positive, or None for a negative."""
    pos, neg = [], []
    for text, label in labelled:
        if label is None:
            neg.append(Passage(text))
        else:
            pos.append(Passage(text, label=label))
    return LabelledQuery(query, pos, neg, id_text(id), where, instruction)


def id_text(value: object) -> str | None:
    """Return an id as text; None if it is neither a text nor a whole number."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
