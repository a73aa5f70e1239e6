"""The result of scoring groups."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScoringResult:
    """A file of scored groups.

    Attributes:
        output: The file.
        groups: The number of groups.
        passages: The number of passages that it has.
        scored: The number of passages that were scored, by all teachers.
        resumed: How many of those an interrupted command had scored.
        first: In how many groups the teacher scores a positive of the data above all negatives.
    """

    output: Path
    groups: int
    passages: int
    scored: int
    resumed: int
    first: int

    def lines(self) -> list[str]:
        """Return the summary as the command prints it."""
        share = self.first / self.groups
        return [
            f"{self.output}: {self.groups} groups, {self.passages} passages",
            f"the teacher scores a positive best in {self.first} groups ({share:.0%})",
        ]
