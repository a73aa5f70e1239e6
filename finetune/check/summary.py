"""What `check` prints: notes, warnings, and what makes lines unusable."""

from collections import Counter
from dataclasses import dataclass, field

from .inspection import Inspection, Kind, Labels, Overlap
from .lengths import Lengths, percentiles


@dataclass
class CheckReport:
    """The lines that are printed, and what they add up to."""

    lines: list[str] = field(default_factory=list)
    #: Printed after all others.
    last_lines: list[str] = field(default_factory=list)
    warnings: int = 0
    unusable: bool = False

    def note(self, text: str, examples: Kind | None = None) -> None:
        """Something to know."""
        self.lines.append(f"  note: {text}")
        if examples:
            self.examples(examples)

    def warn(self, text: str, examples: Kind | None = None) -> None:
        """Something that is hardly meant."""
        self.warnings += 1
        self.lines.append(f"  warning: {text}")
        if examples:
            self.examples(examples)

    def examples(self, kind: Kind) -> None:
        """The first messages of a kind."""
        self.lines += [f"      {message}" for message in kind.messages]
        if kind.count > len(kind.messages):
            self.lines.append(f"      … and {kind.count - len(kind.messages)} more")


def describe(report: CheckReport, found: Inspection, name: str) -> None:
    """What is wrong with a data set by kind with counts, and what its groups are like."""
    report.lines.append(f"{name}: {found.lines} lines, {found.groups} usable groups")
    report.unusable = report.unusable or bool(found.problems)
    for kind, problem in sorted(found.problems.items(), key=lambda item: -item[1].count):
        report.lines.append(f"  {problem.count} × {kind}")
        report.examples(problem)
    if not found.groups:
        return
    for constant in found.constants():
        report.warn(constant)
    repeated = [count for count in found.queries.counts.values() if count > 1]
    if repeated:
        count = f"{len(repeated)} queries stand in several groups, up to {max(repeated)}"
        report.note(count)
    if found.twice:
        report.note(f"{found.twice} groups hold a passage twice; training uses it once")
    for name, scripts in found.scripts.items():
        report.lines.append(f"  {name}: {shares(scripts)}")
    if found.other_script:
        report.note(f"{found.other_script} groups have query and positive in two scripts")
    if 0 < found.scored < found.groups:
        report.note(f"{found.groups - found.scored} groups have no teacher scores, others do")
    for side, sizes in found.sizes.items():
        low, high = min(sizes), max(sizes)
        report.lines.append(f"  {side}: {low} to {high} a group, mostly {commonest(sizes)}")


def shares(counts: "Counter[str]") -> str:
    """Scripts with their shares."""
    total = sum(counts.values())
    return ", ".join(f"{name} {count / total:.1%}" for name, count in counts.most_common())


def commonest(counts: "Counter[int]") -> int:
    """What comes most often."""
    return counts.most_common(1)[0][0]


def describe_labels(report: CheckReport, labels: Labels) -> None:
    """Pairs that are labelled both ways, or nearly so."""
    if labels.contradictions.count:
        count = f"{labels.contradictions.count} pairs are right in one place, wrong in another"
        report.warn(count, labels.contradictions)
    if labels.near_positives.count:
        count = f"{labels.near_positives.count} negatives nearly are positives of their group"
        report.note(count, labels.near_positives)


def describe_overlap(report: CheckReport, overlap: Overlap) -> None:
    """What stands on both sides."""
    if overlap.same:
        report.warn(
            f"{len(overlap.same)} evaluation queries are training queries: {overlap.example} …"
        )
    else:
        report.lines.append("no query stands on both sides")
    if overlap.near.count:
        count = f"{overlap.near.count} training queries are nearly evaluation queries"
        report.warn(count, overlap.near)
    if overlap.shared:
        share = f"{len(overlap.shared)} of {overlap.right} positives of the evaluation"
        report.note(f"{share} are positives, or nearly so, in training too")


def describe_lengths(report: CheckReport, lengths: Lengths) -> None:
    """Percentiles of the pairs' lengths, and how many `max_len` would cut."""
    found, max_len = lengths.all(), lengths.max_len
    if max_len is None:
        report.lines += [
            f"characters of a pair: {percentiles(found)}",
            "with --model_name_or_path: in tokens, and what --max_len would cut",
        ]
        return
    cut = found > max_len
    lost = (found[cut] - max_len).sum() / max(1, found.sum())
    share = f"{cut.sum()} of {len(found)} pairs ({cut.mean():.1%}), {lost:.1%} of all tokens"
    report.lines += [
        f"tokens of a pair: {percentiles(found)}",
        f"--max_len {max_len} cuts {share}",
    ]
