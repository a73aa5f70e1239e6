"""What a data set's lines hold and what is suspicious about them, gathered line by line."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line, input_files, read_lines

from ..data.groups import Group, find_problems, parse_group
from ..text.duplicates import Duplicates, SimilarTexts, profile
from ..text.normalize import key_words, text_digest, text_key
from ..text.scripts import main_script

#: How many places of each kind of problem are kept.
SHOWN = 3

#: From this similarity on two texts are near-duplicates (Jaccard's).
SIMILAR = 0.8

#: From this share of the groups on a text that is always the same is suspicious, where there are
#: at least so many groups.
CONSTANT, ENOUGH = 0.5, 10

RIGHT, WRONG = 1, 2

#: Kinds of problems that keep a file from being read.
MISSING, UNREADABLE = "missing file", "unusable file"


@dataclass
class Kind:
    """One kind of problem: how often, and the first messages."""

    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, message: str, count: int = 1) -> None:
        """Count one more."""
        self.count += count
        if len(self.messages) < SHOWN:
            self.messages.append(message)


class Kinds(dict[str, Kind]):
    """Kinds of problems by name."""

    def add(self, kind: str, message: str) -> None:
        """Count one more of a kind."""
        self.setdefault(kind, Kind()).add(message)


@dataclass
class Tally:
    """How often texts come, by their numbers, and the beginnings of those that come again."""

    counts: "Counter[int]" = field(default_factory=Counter)
    texts: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, text: str) -> None:
        """Count a text once more."""
        self.counts[number] += 1
        if self.counts[number] == 2:
            self.texts[number] = shortened(text)

    @property
    def commonest(self) -> tuple[int, str]:
        """How often the commonest text comes, and its beginning if that is more than once."""
        number, count = self.counts.most_common(1)[0]
        return count, self.texts.get(number, "")


@dataclass
class Labels:
    """How pairs are labelled over all data that is checked."""

    #: For every pair `RIGHT`, `WRONG`, or both.
    pairs: dict[int, int] = field(default_factory=dict)
    contradictions: Kind = field(default_factory=Kind)
    #: Negatives that nearly are positives of their group.
    near_positives: Kind = field(default_factory=Kind)

    def add(self, group: Group, place: str) -> None:
        """Take the labels of one group."""
        right = Duplicates(group.pos)
        for text in group.neg:
            if right.has_nearly(text):
                self.near_positives.add(f"{place}: {shortened(group.query)}: {shortened(text)}")
        for text in self.learn(group):
            self.contradictions.add(f"{place}: {shortened(group.query)}: {shortened(text)}")

    def learn(self, group: Group) -> list[str]:
        """Take the labels of one group; returns what they are the first to contradict."""
        query, contradicted = text_digest(group.query), []
        for label, texts in ((RIGHT, group.pos), (WRONG, group.neg)):
            for text in texts:
                pair = pair_digest(query, text)
                known = self.pairs.get(pair, 0)
                self.pairs[pair] = known | label
                if known and known | label == RIGHT | WRONG and known != RIGHT | WRONG:
                    contradicted.append(text)
        return contradicted

    def is_both(self, query: str, text: str) -> bool:
        """Whether a pair is labelled right in one place and wrong in another."""
        pair = pair_digest(text_digest(query), text)
        return self.pairs.get(pair, 0) == RIGHT | WRONG


def pair_digest(query: int, text: str) -> int:
    """A number for a query, given as its own number, and a passage."""
    return query ^ (text_digest(text) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)


def shortened(text: str) -> str:
    """The beginning of a text, for messages."""
    return repr(text if len(text) <= 100 else text[:99] + "…")


@dataclass
class Inspection:
    """What one data set holds."""

    lines: int = 0
    groups: int = 0
    #: What makes lines unusable.
    problems: Kinds = field(default_factory=Kinds)
    #: How many groups each query stands in.
    queries: Tally = field(default_factory=Tally)
    #: How many passages groups have, by side.
    sizes: "dict[str, Counter[int]]" = field(
        default_factory=lambda: {"pos": Counter(), "neg": Counter()}
    )
    #: In how many groups a passage is right, and in how many it is wrong.
    right: Tally = field(default_factory=Tally)
    wrong: Tally = field(default_factory=Tally)
    #: Groups with a passage, or a copy of it in another case or punctuation, twice.
    twice: int = 0
    #: Scripts of queries and of positives, and where the two differ.
    scripts: "dict[str, Counter[str]]" = field(
        default_factory=lambda: {"queries": Counter(), "positives": Counter()}
    )
    other_script: int = 0
    #: Groups with teacher scores, those in which all are equal, and those whose best is wrong.
    scored: int = 0
    equal_scores: int = 0
    negative_best: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all files could be read, and hold groups."""
        return self.groups > 0 and not self.problems.keys() & {MISSING, UNREADABLE}

    def add_line(self, line: Line) -> Group | None:
        """Take one more line; returns its group, if it is one."""
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
        for side, tally in (("pos", self.right), ("neg", self.wrong)):
            texts = getattr(group, side)
            self.sizes[side][len(texts)] += 1
            distinct = {text_digest(text): text for text in texts}
            for number, text in distinct.items():
                tally.add(number, text)
            has_copies |= len(distinct) < len(texts)
        self.twice += has_copies
        scripts = main_script(group.query), main_script(group.pos[0])
        for counts, script in zip(self.scripts.values(), scripts, strict=True):
            counts[script or "no letters"] += 1
        self.other_script += None not in scripts and scripts[0] != scripts[1]
        if group.pos_scores and group.neg_scores:
            self.scored += 1
            self.equal_scores += len({*group.pos_scores, *group.neg_scores}) == 1
            self.negative_best += max(group.neg_scores) >= max(group.pos_scores)

    def constants(self) -> Iterator[str]:
        """What is the same in suspiciously many groups."""
        if self.groups < ENOUGH:
            return
        for what, tally in (
            ("query stands in", self.queries),
            ("passage is right in", self.right),
            ("passage is wrong in", self.wrong),
        ):
            count, text = tally.commonest
            if count >= CONSTANT * self.groups:
                yield f"one {what} {count} of {self.groups} groups: {text}"
        if self.equal_scores >= CONSTANT * self.groups:
            yield f"all teacher scores are equal in {self.equal_scores} of {self.groups} groups"
        if self.scored >= ENOUGH and self.negative_best >= CONSTANT * self.scored:
            yield (
                f"the teacher scores a negative highest in {self.negative_best} of "
                f"{self.scored} groups"
            )


def kind_of(line: Line) -> str:
    """What is wrong with a line that is no record."""
    try:
        line.text()
    except InputError:
        return "not UTF-8"
    return "broken JSON or no object"


def read_inspected(data_path: DataPath, found: Inspection) -> Iterator[tuple[Line, Group]]:
    """The usable groups of all files with their lines; what is wrong goes into `found`."""
    try:
        files = input_files(data_path)
    except InputError as error:
        found.problems.add(MISSING, str(error))
        return
    for file in files:
        try:
            for line in read_lines(file):
                group = found.add_line(line)
                if group:
                    yield line, group
        except InputError as error:
            found.problems.add(UNREADABLE, str(error))


def query_words(query: str) -> frozenset[str]:
    """What nearly equal queries share."""
    return frozenset(key_words(text_key(query)))


class Overlap:
    """What training data shares with evaluation data.

    Args:
        groups: The queries of the evaluation's groups with their positives.
    """

    def __init__(self, groups: Sequence[tuple[str, list[str]]]) -> None:
        self._texts = [query for query, _ in groups]
        self._queries = {text_digest(query) for query in self._texts}
        self._similar = SimilarTexts([query_words(query) for query in self._texts], least=SIMILAR)
        positives = {text_digest(text): text for _, own in groups for text in own}
        self._positives = SimilarTexts(
            [profile(text).shingles for text in positives.values()], least=SIMILAR
        )
        #: Evaluation queries that are training queries, by their numbers.
        self.same: set[int] = set()
        #: The first of them.
        self.example = ""
        #: Training queries that are nearly evaluation queries.
        self.near = Kind()
        #: The evaluation's positives, and those that are right in training as well.
        self.right = len(positives)
        self.shared: set[int] = set()
        self._seen: dict[int, int | None] = {}

    def add(self, group: Group, place: str) -> None:
        """Take one training group."""
        if self.is_same(group.query):
            self.same.add(text_digest(group.query))
            self.example = self.example or shortened(group.query)
        elif (found := self.nearest(group.query)) is not None:
            nearly = shortened(self._texts[found])
            self.near.add(f"{place}: {shortened(group.query)} is nearly {nearly}")
        for text in group.pos:
            number = text_digest(text)
            if number not in self._seen:
                self._seen[number] = self._positives.find(profile(text).shingles)
            found = self._seen[number]
            self.shared |= set() if found is None else {found}

    def is_same(self, query: str) -> bool:
        """Whether a training query is an evaluation query."""
        return text_digest(query) in self._queries

    def nearest(self, query: str) -> int | None:
        """The place of an evaluation query that a training query nearly is."""
        return self._similar.find(query_words(query))

    def leaks(self, query: str) -> bool:
        """Whether a training query is an evaluation query, or nearly."""
        return self.is_same(query) or self.nearest(query) is not None
