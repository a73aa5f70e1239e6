"""Counts of what was left out of data, by reason, each with the first example."""

from collections import Counter


class ReasonCounts(Counter[str]):
    """Counts of what was left out or changed, by reason.

    Reasons with equal counts are listed in the order in which they came first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str = "") -> None:
        """Count one more, and keep the first example of a reason."""
        self[reason] += 1
        if example:
            self.examples.setdefault(reason, f", for example {example}")

    def lines(self) -> list[str]:
        """Return a line for every reason."""
        return [
            f"{count} × {reason}{self.examples.get(reason, '')}"
            for reason, count in self.most_common()
            if count
        ]
