"""Queries with graded candidates, on which models are evaluated."""

from collections.abc import Iterator
from typing import Protocol


class GradedQuery(Protocol):
    """A query with the grades of its candidates."""

    @property
    def query(self) -> str:
        """The query's text."""
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
    def retrieval(self) -> list[float] | None:
        """A retriever's score of every candidate; None where they are not known."""
        ...


class JudgedQuery(GradedQuery, Protocol):
    """A query with graded candidates: a `Group`, or a query of a retriever's run."""

    @property
    def instruction(self) -> str:
        """The query's instruction; "" for the default."""
        ...

    @property
    def documents(self) -> list[str]:
        """The candidates."""
        ...

    @property
    def teacher(self) -> list[float] | None:
        """A teacher's score of every candidate; None without a teacher."""
        ...


class JudgedQueries(Protocol):
    """A sequence of judged queries, such as a list, or a dataset that reads them when needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> JudgedQuery: ...

    def __iter__(self) -> Iterator[JudgedQuery]: ...
