"""What became of queries and candidates, counted and told."""

from collections import Counter
from dataclasses import dataclass, field

#: How many of the queries whose passage was not found are shown.
SHOWN = 3


@dataclass
class Summary:
    """What became of the queries and the candidates."""

    #: Queries that give no group, by reason.
    queries: "Counter[str]" = field(default_factory=Counter)
    #: Passages that are in no group, by reason.
    dropped: "Counter[str]" = field(default_factory=Counter)
    #: Things to know that lose nothing.
    notes: "Counter[str]" = field(default_factory=Counter)
    #: The first passage that is left out for a reason, and where that is said.
    examples: dict[str, str] = field(default_factory=dict)
    #: The first of the queries whose passage was not found.
    not_found: list[str] = field(default_factory=list)

    def miss(self, query: str) -> None:
        """Remember a query whose right passage was not found."""
        self.not_found += [query] if len(self.not_found) < SHOWN else []

    def lines(self) -> list[str]:
        """The summary, as it is printed."""
        shown = []
        for title, counter in (
            ("queries without a group", self.queries),
            ("passages left out", self.dropped),
            ("notes", self.notes),
        ):
            found = [(reason, count) for reason, count in counter.most_common() if count]
            if found:
                shown.append(f"{title}:")
                shown += [
                    f"  {count} × {reason}{self.examples.get(reason, '')}"
                    for reason, count in found
                ]
        if self.not_found:
            shown.append("not found, for example:")
            shown += [f"  {query}" for query in self.not_found]
        return shown
