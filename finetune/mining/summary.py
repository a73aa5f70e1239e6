"""What became of queries and candidates, counted and told."""

from dataclasses import dataclass, field

from ..data.reason_counts import ReasonCounts

#: How many of the queries whose passage was not found are shown.
SHOWN = 3


@dataclass
class Summary:
    """What became of the queries and the candidates."""

    #: Queries that give no group, by reason.
    queries: ReasonCounts = field(default_factory=ReasonCounts)
    #: Passages that are in no group, by reason.
    dropped: ReasonCounts = field(default_factory=ReasonCounts)
    #: Things to know that lose nothing.
    notes: ReasonCounts = field(default_factory=ReasonCounts)
    #: The first of the queries whose passage was not found.
    not_found: list[str] = field(default_factory=list)

    def miss(self, query: str) -> None:
        """Remember a query whose positive was not found."""
        self.not_found += [query] if len(self.not_found) < SHOWN else []

    def lines(self) -> list[str]:
        """The summary, as it is printed."""
        shown = []
        for title, notes in (
            ("queries without a group", self.queries),
            ("passages left out", self.dropped),
            ("notes", self.notes),
        ):
            if notes.lines():
                shown += [f"{title}:", *(f"  {line}" for line in notes.lines())]
        if self.not_found:
            shown.append("not found, for example:")
            shown += [f"  {query}" for query in self.not_found]
        return shown
