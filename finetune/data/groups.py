"""Groups: a query with its positives and negatives, as they are in a jsonl file."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import compress
from math import nan

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line, SkippedLines, json_type, read_lines

from ..text.normalize import text_key
from .other_formats import other_format

#: What a line is read for, as its bytes have it.
FIELDS = tuple(f'"{name}"'.encode() for name in ("query", "pos", "neg", "pos_scores", "neg_scores"))


@dataclass(frozen=True)
class Group:
    """One line: a query, the passages that answer it and passages that do not."""

    query: str
    pos: list[str]
    neg: list[str]
    #: Teacher scores of the passages, where the data has them.
    pos_scores: list[float] | None = None
    neg_scores: list[float] | None = None
    id: str | None = None

    @property
    def documents(self) -> list[str]:
        """All candidates, the positives first."""
        return self.pos + self.neg

    @property
    def labels(self) -> list[int]:
        """1 for a positive and 0 for a negative, in the order of `documents`."""
        return [1] * len(self.pos) + [0] * len(self.neg)

    @property
    def missed(self) -> list[int]:
        """A group has all its positives."""
        return []

    @property
    def teacher(self) -> list[float] | None:
        """The teacher's scores in the order of `documents`, where all of them have one."""
        if self.pos_scores is None or self.neg_scores is None:
            return None
        return self.pos_scores + self.neg_scores

    @property
    def teacher_gap(self) -> float:
        """How far the worst negative is below the worst positive for the teacher.

        NaN where the group has no teacher scores.
        """
        if self.pos_scores is None or self.neg_scores is None:
            return nan
        return float(min(self.pos_scores)) - float(min(self.neg_scores))

    def without_false_negatives(self, margin: float) -> "Group":
        """The group without negatives that the teacher takes for positives.

        A negative stays if its score is at least `margin` below that of every positive.
        """
        assert self.pos_scores is not None and self.neg_scores is not None, "no teacher scores"
        lowest = float(min(self.pos_scores))
        stays = [lowest - float(score) >= margin for score in self.neg_scores]
        return replace(
            self,
            neg=list(compress(self.neg, stays)),
            neg_scores=list(compress(self.neg_scores, stays)),
        )


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record: which kind of mistake, and the line that the user reads."""

    kind: str
    message: str


def query_hash(query: str, seed: int) -> str:
    """A number for a query that depends on its key and the seed alone, as sortable text."""
    return hashlib.sha256(f"{seed}:{text_key(query)}".encode()).hexdigest()


def find_problems(record: dict[str, object]) -> list[Problem]:
    """Everything that keeps a record from being a group, worst first."""
    problems = query_problems(record)
    for name in ("pos", "neg"):
        problems += texts_problems(record, name) or scores_problems(record, name)
    if problems:
        return problems
    pos, neg = record["pos"], record["neg"]
    assert isinstance(pos, list) and isinstance(neg, list)
    both = set(pos) & set(neg)
    if both:
        place = next(i for i, text in enumerate(neg) if text in both)
        message = f"neg[{place}] stands in 'pos' too: take it out of one of the two"
        problems.append(Problem("a text in both 'pos' and 'neg'", message))
    return problems


def query_problems(record: dict[str, object]) -> list[Problem]:
    """What is wrong with `query` and `id`."""
    query, name = record.get("query"), record.get("id")
    problems = []
    if "query" not in record:
        message = f"field 'query' is missing, expected a text{other_format(record)}"
        problems.append(Problem("missing 'query'", message))
    elif not isinstance(query, str):
        message = f"field 'query' is {json_type(query)}, expected a text"
        problems.append(Problem("wrong type of 'query'", message))
    elif not query.strip():
        problems.append(Problem("blank 'query'", "field 'query' is blank, expected a text"))
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        message = f"field 'id' is {json_type(name)}, expected a text or a whole number"
        problems.append(Problem("wrong type of 'id'", message))
    return problems


def texts_problems(record: dict[str, object], name: str) -> list[Problem]:
    """What is wrong with the passages under a field."""
    texts = record.get(name)
    expected = "expected a list of texts"
    if name not in record:
        message = f"field '{name}' is missing, {expected}{other_format(record)}"
        return [Problem(f"missing '{name}'", message)]
    if not isinstance(texts, list):
        message = f"field '{name}' is {json_type(texts)}, {expected}{other_format(record)}"
        return [Problem(f"wrong type of '{name}'", message)]
    if not texts:
        return [Problem(f"empty '{name}'", f"field '{name}' is empty, expected at least one text")]
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            message = f"{name}[{place}] is {json_type(text)}, expected a text"
            return [Problem(f"wrong type in '{name}'", message)]
        if not text.strip():
            return [Problem(f"blank text in '{name}'", f"{name}[{place}] is blank")]
    return []


def scores_problems(record: dict[str, object], name: str) -> list[Problem]:
    """What is wrong with the teacher scores of a field's passages."""
    field = f"{name}_scores"
    scores, texts = record.get(field), record[name]
    assert isinstance(texts, list)
    if scores is None:
        return []
    if not isinstance(scores, list):
        message = f"field '{field}' is {json_type(scores)}, not a list of finite numbers"
        return [Problem(f"wrong type of '{field}'", message)]
    for place, score in enumerate(scores):
        if not is_finite_number(score):
            found = ascii(score)[:40] if isinstance(score, str | int | float) else json_type(score)
            message = f"{field}[{place}] is {found}, expected a finite number"
            return [Problem(f"wrong type of '{field}'", message)]
    if len(scores) != len(texts):
        message = f"field '{field}' has {len(scores)} numbers for {len(texts)} texts"
        return [Problem(f"wrong length of '{field}'", message)]
    return []


def is_finite_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def parse_group(line: Line) -> Group:
    """The group on a line.

    Raises:
        InputError: anything is wrong with it; the message names file, line and field.
    """
    # The quick parser keeps the last of two values without a word.
    repeated = any(line.raw.count(name) > 1 for name in FIELDS)
    record = None if repeated else line.quick_record()
    if record is None or find_problems(record):
        record = line.record()
        problems = find_problems(record)
        if problems:
            raise line.error(problems[0].message)
    return group_of(record)


def group_of(record: dict[str, object]) -> Group:
    """The group of a record in which nothing is wrong."""
    values = {name: record.get(name) for name in ("query", "pos", "neg")}
    scores = {name: record.get(name) for name in ("pos_scores", "neg_scores")}
    name = record.get("id")
    return Group(**values, **scores, id=None if name is None else str(name))  # type: ignore[arg-type]


def read_groups(data_path: DataPath, skipped: SkippedLines | None = None) -> Iterator[Group]:
    """The groups of a file, folder or glob, one at a time.

    Args:
        data_path: Where they are.
        skipped: Where bad lines are written down; without it the first bad line is an error.
    """
    good = False
    for line in read_lines(data_path):
        try:
            group = parse_group(line)
        except InputError as problem:
            if skipped is None:
                raise
            skipped.add(line, problem)
            continue
        good = True
        yield group
    if not good:
        raise no_group_left(data_path, skipped)


def no_group_left(data_path: DataPath, skipped: SkippedLines | None) -> InputError:
    """An error of data without a group; where bad lines are written down may be gone by then."""
    first = f", the first problem: {skipped.first}" if skipped else ""
    return InputError(f"{data_path}: no usable group is left{first}")
