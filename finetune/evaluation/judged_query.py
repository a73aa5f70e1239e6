"""What a model is measured on: queries, what is ranked for them, and what that is worth."""

from collections.abc import Iterator
from typing import Protocol


class JudgedQuery(Protocol):
    """A query, its candidates and what they are worth: a `Group`, or what a retriever found."""

    @property
    def query(self) -> str:
        """The query's text."""
        ...

    @property
    def documents(self) -> list[str]:
        """The candidates."""
        ...

    @property
    def labels(self) -> list[int]:
        """The grade of every candidate: 0 for a negative, 1 or more for a positive."""
        ...

    @property
    def missed(self) -> list[int]:
        """The grades of judged documents that are not among the candidates."""
        ...

    @property
    def teacher(self) -> list[float] | None:
        """A teacher's score of every candidate, where there are some."""
        ...


class JudgedQueries(Protocol):
    """Any number of them, each read when it is asked for; a list is one too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> JudgedQuery: ...

    def __iter__(self) -> Iterator[JudgedQuery]: ...
