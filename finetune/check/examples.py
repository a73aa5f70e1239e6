"""Counts of problems with the first messages of each kind."""

from dataclasses import dataclass, field

#: How many messages of each kind are kept.
SHOWN = 3


@dataclass
class Examples:
    """The number of problems of one kind, and the first messages."""

    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.messages) < SHOWN:
            self.messages.append(message)


class ExamplesByKind(dict[str, Examples]):
    """Problems by the name of their kind."""

    def add(self, kind: str, message: str) -> None:
        """Count one more of a kind."""
        self.setdefault(kind, Examples()).add(message)


def shortened(text: str) -> str:
    """Return the beginning of a text, in quotes."""
    return repr(text if len(text) <= 100 else text[:99] + "…")
