"""The result of converting: a file, and counts of what was left out."""

from dataclasses import dataclass, field
from pathlib import Path

from ..data.reason_counts import ReasonCounts


@dataclass
class ConversionResult:
    """A converted file, and counts of what was left out of it."""

    #: The file that was written.
    path: Path
    #: How many groups and passages were converted.
    groups: int = 0
    passages: int = 0
    #: How many lines the file has.
    lines: int = 0
    #: What was left out or drawn, by reason.
    counts: ReasonCounts = field(default_factory=ReasonCounts)

    def summary(self) -> list[str]:
        """Return the summary as the command prints it."""
        rows = f", {self.lines} rows" if self.lines != self.groups else ""
        first = f"{self.path}: {self.groups} groups{rows}, {self.passages} passages"
        return [first, *(f"  {line}" for line in self.counts.lines())]
