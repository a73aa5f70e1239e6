"""What every format is read as: for a query some positives and some negatives, with scores."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passage:
    """A passage, and a teacher's score where the data has one."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class LabelledQuery:
    """A query with what one record says about it; other records may say more."""

    query: str
    pos: list[Passage] = field(default_factory=list)
    neg: list[Passage] = field(default_factory=list)
    #: The query's id, where the data has one.
    id: str | None = None
    #: The row or the line, for messages.
    where: str = ""


def from_labels(
    query: str, labelled: Iterable[tuple[str, bool]], *, id: object = None, where: str = ""
) -> LabelledQuery:
    """A query with passages of which is said whether they are right."""
    sides: dict[bool, list[Passage]] = {True: [], False: []}
    for text, right in labelled:
        sides[right].append(Passage(text))
    return LabelledQuery(query, sides[True], sides[False], id_text(id), where)


def id_text(value: object) -> str | None:
    """An id as text; what is neither text nor a whole number is none."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
