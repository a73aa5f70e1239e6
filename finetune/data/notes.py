"""What is left out of data, counted by reason, each with the first example."""

from collections import Counter


class Notes(Counter[str]):
    """How often for what reason something is left out, or is otherwise to be known.

    Reasons of one count are told in the order in which they came first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, str] = {}

    def add(self, reason: str, example: str = "") -> None:
        """Count one more; of the first one the example is kept, where it has one."""
        self[reason] += 1
        if example:
            self.examples.setdefault(reason, f", for example {example}")

    def told(self) -> list[str]:
        """Return a line for every reason."""
        return [
            f"{count} × {reason}{self.examples.get(reason, '')}"
            for reason, count in self.most_common()
            if count
        ]
