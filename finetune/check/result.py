"""The result of checking: notes, warnings, and problems that make lines unusable."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .examples import Examples
from .inspection import Inspection
from .labels import Labels
from .lengths import Lengths, percentiles
from .overlap import Overlap


@dataclass(frozen=True)
class FixedCopy:
    """A copy of groups without their problems."""

    path: Path
    #: How many groups it has.
    groups: int
    #: What was left out or repaired, by reason.
    changes: "Counter[str]"

    def lines(self) -> list[str]:
        """Return the summary as the command prints it."""
        changes = [f"  {count} × {reason}" for reason, count in self.changes.most_common() if count]
        return [f"{self.path}: {self.groups} groups", *changes]


@dataclass
class CheckResult:
    """Findings about groups."""

    #: The report that the command prints, but for problems of lengths and of the fixed copy.
    report: list[str] = field(default_factory=list)
    #: What is suspicious, such as pairs that are labelled both ways.
    warnings: list[str] = field(default_factory=list)
    #: How many groups can be used.
    groups: int = 0
    #: How many lines or files cannot be used, by kind of problem.
    problems: "Counter[str]" = field(default_factory=Counter)
    #: Why lengths cannot be measured.
    length_problem: str | None = None
    #: The fixed copy, if one was wanted and could be written,
    fixed: FixedCopy | None = None
    #: and why it could not.
    fix_problem: str | None = None

    @property
    def is_usable(self) -> bool:
        """Return whether every line, every file and the model can be used."""
        return not self.problems and self.length_problem is None

    def note(self, text: str, examples: Examples | None = None) -> None:
        """Report something to know."""
        self.report.append(f"  note: {text}")
        if examples:
            self.show(examples)

    def warn(self, text: str, examples: Examples | None = None) -> None:
        """Report something that is hardly meant."""
        self.warnings.append(text)
        self.report.append(f"  warning: {text}")
        if examples:
            self.show(examples)

    def show(self, examples: Examples) -> None:
        """Report the first messages of a kind, and how many more there are."""
        self.report += [f"      {message}" for message in examples.messages]
        if examples.count > len(examples.messages):
            self.report.append(f"      … and {examples.count - len(examples.messages)} more")

    def lines(self) -> list[str]:
        """Return everything that the command prints."""
        lines = list(self.report)
        if self.length_problem:
            lines.append(f"lengths: {self.length_problem}")
        if self.fix_problem:
            lines.append(f"--fix: not written: {self.fix_problem}")
        return lines + (self.fixed.lines() if self.fixed else [])


def describe(result: CheckResult, inspection: Inspection, name: str) -> None:
    """Report the problems of a data set by kind, and what its groups are like."""
    result.groups += inspection.groups
    result.report.append(f"{name}: {inspection.lines} lines, {inspection.groups} usable groups")
    for kind, problem in sorted(inspection.problems.items(), key=lambda pair: -pair[1].count):
        result.problems[kind] += problem.count
        result.report.append(f"  {problem.count} × {kind}")
        result.show(problem)
    if not inspection.groups:
        return
    for constant in inspection.constants():
        result.warn(constant)
    repeated = [count for count in inspection.queries.counts.values() if count > 1]
    if repeated:
        count = f"{len(repeated)} queries have several groups, up to {max(repeated)}"
        result.note(count)
    if inspection.with_copies:
        result.note(f"{inspection.with_copies} groups hold a passage twice; training uses it once")
    if 0 < inspection.scored < inspection.groups:
        unscored = inspection.groups - inspection.scored
        result.note(f"{unscored} groups have no teacher scores, others do")
    if inspection.instructed:
        result.note(
            f"{inspection.instructed} of {inspection.groups} groups have an instruction, which "
            "only language models take"
        )
    for side, sizes in inspection.sizes.items():
        low, high = min(sizes), max(sizes)
        result.report.append(f"  {side}: {low} to {high} a group, mostly {most_common(sizes)}")
    if inspection.graded:
        counts = ", ".join(
            f"{count} of grade {grade}" for grade, count in sorted(inspection.grades.items())
        )
        result.report.append(f"  grades in {inspection.graded} groups; positives: {counts}")


def most_common(counts: "Counter[int]") -> int:
    """Return the number with the largest count."""
    return counts.most_common(1)[0][0]


def describe_labels(result: CheckResult, labels: Labels) -> None:
    """Report pairs that are labelled both ways, or nearly so."""
    if count := labels.contradictions.count:
        text = f"{count} pairs are labelled positive in one group and negative in another"
        result.warn(text, labels.contradictions)
    if count := labels.near_positives.count:
        text = f"{count} negatives are near-duplicates of positives of their group"
        result.note(text, labels.near_positives)


def describe_overlap(result: CheckResult, overlap: Overlap) -> None:
    """Report what the training and the evaluation data share."""
    if overlap.same:
        count = len(overlap.same)
        result.warn(f"{count} evaluation queries are training queries: {overlap.example} …")
    else:
        result.report.append("no query is in both the training and the evaluation data")
    if overlap.near.count:
        text = f"{overlap.near.count} training queries are nearly evaluation queries"
        result.warn(text, overlap.near)
    if overlap.shared:
        share = f"{len(overlap.shared)} of {overlap.positives} positives of the evaluation"
        result.note(f"{share} are positives, or nearly so, in training too")


def describe_lengths(result: CheckResult, lengths: Lengths) -> None:
    """Report percentiles of the pairs' lengths, and how many of them `max_len` would cut."""
    pairs, max_len = lengths.all(), lengths.max_len
    if max_len is None:
        result.report += [
            f"characters of a pair: {percentiles(pairs)}",
            "with --model_name_or_path: lengths in tokens, and how much --max_len would cut",
        ]
        return
    cut = pairs > max_len
    lost = (pairs[cut] - max_len).sum() / max(1, pairs.sum())
    share = f"{cut.sum()} of {len(pairs)} pairs ({cut.mean():.1%}), {lost:.1%} of all tokens"
    result.report += [
        f"tokens of a pair: {percentiles(pairs)}",
        f"--max_len {max_len} cuts {share}",
    ]
