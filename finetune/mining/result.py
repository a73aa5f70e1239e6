"""The result of mining: files of groups, and counts of what was left out."""

from dataclasses import dataclass, field
from pathlib import Path

from ..data.reason_counts import ReasonCounts

#: How many of the queries whose positive was not found are kept as examples.
EXAMPLES = 3


@dataclass
class MiningResult:
    """Files of mined groups, and counts of the queries and passages that are in none."""

    #: The number of groups in each file that was written: train, dev and test.
    files: dict[Path, int] = field(default_factory=dict)
    #: Queries without a group, counted by reason.
    queries_left_out: ReasonCounts = field(default_factory=ReasonCounts)
    #: Passages that are in no group, counted by reason.
    passages_left_out: ReasonCounts = field(default_factory=ReasonCounts)
    #: What else is worth knowing about the data and the groups, counted.
    remarks: ReasonCounts = field(default_factory=ReasonCounts)
    #: The first few queries whose positive is not in the corpus.
    not_found: list[str] = field(default_factory=list)

    @property
    def groups(self) -> int:
        """Return the number of groups in all files."""
        return sum(self.files.values())

    def add_not_found(self, query: str) -> None:
        """Keep a query whose positive is not in the corpus, if it is one of the first few."""
        if len(self.not_found) < EXAMPLES:
            self.not_found.append(query)

    def reasons(self) -> str:
        """Return all counts in one line, for the error of data without a group."""
        counts = (self.queries_left_out, self.passages_left_out, self.remarks)
        return "; ".join(line for reasons in counts for line in reasons.lines())

    def lines(self) -> list[str]:
        """Return the summary as the command prints it."""
        lines = [f"{file}: {groups} groups" for file, groups in self.files.items()]
        for title, counts in (
            ("queries without a group", self.queries_left_out),
            ("passages left out", self.passages_left_out),
            ("remarks", self.remarks),
        ):
            if reasons := counts.lines():
                lines += [f"{title}:", *(f"  {line}" for line in reasons)]
        if self.not_found:
            lines += ["not found, for example:", *(f"  {query}" for query in self.not_found)]
        return lines
