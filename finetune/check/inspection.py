"""The contents of one data set and what is suspicious about them, gathered line by line."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line, input_files, read_lines

from ..data.groups import Group, find_problems, parse_group
from ..text.normalize import text_digest
from .examples import ExamplesByKind, shortened

#: From this share of the groups on a text that is always the same is suspicious, where there are
#: at least so many groups.
CONSTANT, ENOUGH = 0.5, 10

#: Kinds of problems that keep a file from being read.
MISSING, UNREADABLE = "missing file", "unusable file"


@dataclass
class Tally:
    """Counts of texts by their digests, and the beginnings of those that are repeated."""

    counts: "Counter[int]" = field(default_factory=Counter)
    texts: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, text: str) -> None:
        """Count a text once more."""
        self.counts[number] += 1
        if self.counts[number] == 2:
            self.texts[number] = shortened(text)

    @property
    def most_common(self) -> tuple[int, str]:
        """Return the largest count, and the beginning of its text if that is repeated."""
        number, count = self.counts.most_common(1)[0]
        return count, self.texts.get(number, "")


@dataclass
class Inspection:
    """The contents of one data set."""

    lines: int = 0
    groups: int = 0
    #: What makes lines unusable.
    problems: ExamplesByKind = field(default_factory=ExamplesByKind)
    #: The number of groups of each query.
    queries: Tally = field(default_factory=Tally)
    #: How often groups have so many passages, by side.
    sizes: "dict[str, Counter[int]]" = field(
        default_factory=lambda: {"pos": Counter(), "neg": Counter()}
    )
    #: The number of groups in which a passage is a positive, and a negative.
    positives: Tally = field(default_factory=Tally)
    negatives: Tally = field(default_factory=Tally)
    #: Groups with two copies of a passage, perhaps in another case or punctuation.
    with_copies: int = 0
    #: Groups with an instruction.
    instructed: int = 0
    #: Groups with grades, and the number of positives of each grade.
    graded: int = 0
    grades: "Counter[int]" = field(default_factory=Counter)
    #: Groups with teacher scores, those in which all are equal, and those whose best is a negative.
    scored: int = 0
    equal_scores: int = 0
    negative_best: int = 0

    @property
    def is_whole(self) -> bool:
        """Return whether all files can be read, and hold groups."""
        return self.groups > 0 and not self.problems.keys() & {MISSING, UNREADABLE}

    def add_line(self, line: Line) -> Group | None:
        """Inspect one more line, and return its group if it is one."""
        self.lines += 1
        try:
            record = line.record()
        except InputError as error:
            self.problems.add(kind_of(line), str(error))
            return None
        problems = find_problems(record)
        for problem in problems:
            self.problems.add(problem.kind, str(line.error(problem.message)))
        if problems:
            return None
        group = parse_group(line)
        self._add_group(group)
        return group

    def _add_group(self, group: Group) -> None:
        self.groups += 1
        self.queries.add(text_digest(group.query), group.query)
        has_copies = False
        for side, tally in (("pos", self.positives), ("neg", self.negatives)):
            texts = getattr(group, side)
            self.sizes[side][len(texts)] += 1
            distinct = {text_digest(text): text for text in texts}
            for number, text in distinct.items():
                tally.add(number, text)
            has_copies |= len(distinct) < len(texts)
        self.with_copies += has_copies
        self.instructed += bool(group.instruction)
        self.graded += group.pos_labels is not None
        self.grades.update(group.pos_labels or [1] * len(group.pos))
        if group.pos_scores and group.neg_scores:
            self.scored += 1
            self.equal_scores += len({*group.pos_scores, *group.neg_scores}) == 1
            self.negative_best += max(group.neg_scores) >= max(group.pos_scores)

    def constants(self) -> Iterator[str]:
        """Yield what is the same in suspiciously many groups."""
        if self.groups < ENOUGH:
            return
        for text_in, tally in (
            ("query is in", self.queries),
            ("passage is a positive in", self.positives),
            ("passage is a negative in", self.negatives),
        ):
            count, text = tally.most_common
            if count >= CONSTANT * self.groups:
                yield f"one {text_in} {count} of {self.groups} groups: {text}"
        if self.equal_scores >= CONSTANT * self.groups:
            yield f"all teacher scores are equal in {self.equal_scores} of {self.groups} groups"
        if self.scored >= ENOUGH and self.negative_best >= CONSTANT * self.scored:
            groups = f"{self.negative_best} of {self.scored} groups"
            yield f"the teacher scores a negative highest in {groups}"


def kind_of(line: Line) -> str:
    """Return the kind of problem of a line that is not a record."""
    try:
        line.text()
    except InputError:
        return "not UTF-8"
    return "invalid JSON or not an object"


def read_inspected(data_path: DataPath, inspection: Inspection) -> Iterator[tuple[Line, Group]]:
    """Yield the usable groups of all files with their lines, and inspect every line."""
    try:
        files = input_files(data_path)
    except InputError as error:
        inspection.problems.add(MISSING, str(error))
        return
    for file in files:
        try:
            for line in read_lines(file):
                group = inspection.add_line(line)
                if group:
                    yield line, group
        except InputError as error:
            inspection.problems.add(UNREADABLE, str(error))
