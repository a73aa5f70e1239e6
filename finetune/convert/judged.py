"""What every format is read as: for a query some right and some wrong passages, with scores."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passage:
    """A passage, and a teacher's score where the data has one."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Judged:
    """A query with what one record says about it; other records may say more."""

    query: str
    pos: list[Passage] = field(default_factory=list)
    neg: list[Passage] = field(default_factory=list)


def judged(query: str, labelled: Iterable[tuple[str, bool]]) -> Judged:
    """A query with passages of which is said whether they are right."""
    sides: dict[bool, list[Passage]] = {True: [], False: []}
    for text, right in labelled:
        sides[right].append(Passage(text))
    return Judged(query, sides[True], sides[False])
