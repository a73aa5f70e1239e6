"""Groups: a query with its positives and negatives, as they are in a jsonl file."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from math import nan
from typing import Any, Self

from rerank_plugin.errors import InputError
from rerank_plugin.inputs import instruction_text
from rerank_plugin.io.jsonl import DataPath, Line, SkippedLines, json_type, read_lines

from ..text.normalize import text_key
from .other_formats import other_format

#: The numbers that each passage can have: a teacher's scores, and those of a retriever. The fields
#: are `pos_scores`, `neg_scores`, `pos_retrieval_scores` and `neg_retrieval_scores`.
SCORES = ("scores", "retrieval_scores")

#: The fields with them.
SCORE_FIELDS = tuple(f"{side}_{kind}" for kind in SCORES for side in ("pos", "neg"))

#: The highest grade of a positive. Its gain of 2^10 - 1 is a thousand times that of grade 1.
HIGHEST_GRADE = 10

#: The reason why labels are not kept as grades.
NO_GRADES = (
    f"queries with labels that are not whole numbers from 1 to {HIGHEST_GRADE}: their positives "
    "have no grades"
)

#: The fields with one value for each passage of a side.
PARALLEL_FIELDS = {
    "pos": ("pos", *(f"pos_{kind}" for kind in SCORES), "pos_labels"),
    "neg": ("neg", *(f"neg_{kind}" for kind in SCORES)),
}

#: Names under which grades are expected that are not read from groups.
UNREAD_GRADES = ("labels", "grades", "pos_grades")

#: The fields of a group, as a line spells them.
QUOTED_FIELDS = tuple(
    f'"{name}"'.encode()
    for name in ("query", *PARALLEL_FIELDS["pos"], *PARALLEL_FIELDS["neg"], "instruction")
)


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
    #: What makes a passage relevant, for models that take an instruction; "" for the default.
    instruction: str = ""
    #: The scores by which a retriever found the passages, where the data has them.
    pos_retrieval_scores: list[float] | None = None
    neg_retrieval_scores: list[float] | None = None
    #: The grades of the positives, from 1 to `HIGHEST_GRADE`; without them each is 1.
    pos_labels: list[int] | None = None

    @property
    def documents(self) -> list[str]:
        """Return all candidates, the positives first."""
        return self.pos + self.neg

    @property
    def labels(self) -> list[int]:
        """Return the grades, 0 for a negative, in the order of `documents`."""
        return (self.pos_labels or [1] * len(self.pos)) + [0] * len(self.neg)

    @property
    def missed(self) -> list[int]:
        """Return the grades of positives that are not candidates: none, a group has all of them."""
        return []

    @property
    def teacher(self) -> list[float] | None:
        """Return the teacher's scores in the order of `documents`, where all of them have one."""
        if self.pos_scores is None or self.neg_scores is None:
            return None
        return self.pos_scores + self.neg_scores

    @property
    def retrieval(self) -> list[float] | None:
        """Return the retriever's scores in the order of `documents`, where all have one."""
        if self.pos_retrieval_scores is None or self.neg_retrieval_scores is None:
            return None
        return self.pos_retrieval_scores + self.neg_retrieval_scores

    def keep(self, side: str, kept: Sequence[bool]) -> Self:
        """Return the group with some of the passages of `pos` or `neg`, scores and grades too."""
        changes: dict[str, Any] = {}
        for name in PARALLEL_FIELDS[side]:
            if getattr(self, name) is not None:
                changes[name] = list(compress(getattr(self, name), kept))
        return replace(self, **changes)

    @property
    def teacher_gap(self) -> float:
        """Return the teacher's lowest score of a positive minus its lowest score of a negative.

        NaN where the group has no teacher scores.
        """
        if self.pos_scores is None or self.neg_scores is None:
            return nan
        return float(min(self.pos_scores)) - float(min(self.neg_scores))

    def without_false_negatives(self, margin: float) -> Self:
        """Return the group without negatives that the teacher scores like positives.

        A negative is kept if its score is at least `margin` below that of every positive.
        """
        assert self.pos_scores is not None and self.neg_scores is not None, "no teacher scores"
        lowest = float(min(self.pos_scores))
        return self.keep("neg", [lowest - float(score) >= margin for score in self.neg_scores])


@dataclass(frozen=True)
class Problem:
    """A problem of a record that keeps it from being a group."""

    #: The kind of mistake, for counting.
    kind: str
    #: The message to the user, without file and line.
    message: str


def query_hash(query: str, seed: int) -> str:
    """Return a hash of a query's key and a seed, as sortable text."""
    return hashlib.sha256(f"{seed}:{text_key(query)}".encode()).hexdigest()


def find_problems(record: dict[str, object]) -> list[Problem]:
    """Return everything that keeps a record from being a group, worst first."""
    problems = query_problems(record)
    for name in ("pos", "neg"):
        problems += texts_problems(record, name) or [
            problem for kind in SCORES for problem in scores_problems(record, name, kind)
        ]
    problems = problems or grades_problems(record)
    if problems:
        return problems
    pos, neg = record["pos"], record["neg"]
    assert isinstance(pos, list) and isinstance(neg, list)
    both = set(pos) & set(neg)
    if both:
        index = next(i for i, text in enumerate(neg) if text in both)
        message = f"neg[{index}] is in 'pos' too: remove it from one of the two"
        problems.append(Problem("a text in both 'pos' and 'neg'", message))
    return problems


def query_problems(record: dict[str, object]) -> list[Problem]:
    """Return the problems of `query`, `id` and `instruction`."""
    query, name, instruction = (record.get(field) for field in ("query", "id", "instruction"))
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
    if instruction is not None and not isinstance(instruction, str):
        message = f"field 'instruction' is {json_type(instruction)}, expected a text"
        problems.append(Problem("wrong type of 'instruction'", message))
    return problems


def texts_problems(record: dict[str, object], name: str) -> list[Problem]:
    """Return the problems of the passages under a field."""
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
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            message = f"{name}[{index}] is {json_type(text)}, expected a text"
            return [Problem(f"wrong type in '{name}'", message)]
        if not text.strip():
            return [Problem(f"blank text in '{name}'", f"{name}[{index}] is blank")]
    return []


def scores_problems(record: dict[str, object], name: str, kind: str) -> list[Problem]:
    """Return the problems of the scores of one kind of a field's passages."""
    field = f"{name}_{kind}"
    return numbers_problems(record, field, name, is_finite_number, "finite number")


def grades_problems(record: dict[str, object]) -> list[Problem]:
    """Return the problems of the grades of positives, and of grades that would not be read."""
    expected = f"whole number from 1 to {HIGHEST_GRADE}"
    problems = numbers_problems(record, "pos_labels", "pos", is_grade, expected)
    pos, neg = record["pos"], record["neg"]
    assert isinstance(pos, list) and isinstance(neg, list)
    for name in UNREAD_GRADES:
        grades = record.get(name)
        if problems or record.get("pos_labels") or not isinstance(grades, list):
            continue
        binary = ([1] * len(pos) + [0] * len(neg))[: len(grades)]
        has_length = len(grades) in (len(pos), len(pos) + len(neg))
        if has_length and all(map(is_finite_number, grades)) and grades != binary:
            message = f"field '{name}' is not read: write the grades of 'pos' as 'pos_labels', each"
            kind = f"grades in '{name}'"
            problems.append(Problem(kind, f"{message} a {expected}; those of 'neg' are 0"))
    return problems


def numbers_problems(
    record: dict[str, object],
    field: str,
    name: str,
    is_allowed: Callable[[object], bool],
    expected: str,
) -> list[Problem]:
    """Return the problems of a field with one number for each of a field's passages.

    Args:
        record: The record.
        field: The field of the numbers, which may be missing.
        name: The field of the passages.
        is_allowed: Whether a value is allowed.
        expected: What is allowed, for messages.
    """
    numbers, texts = record.get(field), record[name]
    assert isinstance(texts, list)
    if numbers is None:
        return []
    if not isinstance(numbers, list):
        what = expected.replace("number", "numbers")
        message = f"field '{field}' is {json_type(numbers)}, expected a list of {what}"
        return [Problem(f"wrong type of '{field}'", message)]
    for index, number in enumerate(numbers):
        if not is_allowed(number):
            is_shown = isinstance(number, str | int | float)
            value = ascii(number)[:40] if is_shown else json_type(number)
            message = f"{field}[{index}] is {value}, expected a {expected}"
            return [Problem(f"wrong value in '{field}'", message)]
    if len(numbers) != len(texts):
        message = f"field '{field}' has {len(numbers)} numbers for {len(texts)} texts"
        return [Problem(f"wrong length of '{field}'", message)]
    return []


def is_grade(value: object) -> bool:
    """Return whether a value can be the grade of a positive."""
    return is_finite_number(value) and value in range(1, HIGHEST_GRADE + 1)


def grades_of(labels: Iterable[float]) -> list[int] | None:
    """Return the grades of positives; None if all are 1, or a label is not a grade."""
    labels = list(labels)
    if all(label == 1 for label in labels) or not all(map(is_grade, labels)):
        return None
    return [int(label) for label in labels]


def is_finite_number(value: object) -> bool:
    """Return whether a JSON value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def parse_group(line: Line) -> Group:
    """Check a line, and return its group.

    Raises:
        InputError: the line is not a group; the message names file, line and field.
    """
    # The quick parser silently keeps the last of two values.
    repeated = any(line.raw.count(name) > 1 for name in QUOTED_FIELDS)
    record = None if repeated else line.quick_record()
    if record is None or find_problems(record):
        record = line.record()
        problems = find_problems(record)
        if problems:
            raise line.error(problems[0].message)
    return group_of(record)


def checked_group(line: Line) -> Group:
    """Return the group of a line that was checked before."""
    record = line.quick_record()
    return group_of(line.record() if record is None else record)


def group_of(record: dict[str, object]) -> Group:
    """Return the group of a record without problems."""
    values = {name: record.get(name) for name in ("query", "pos", "neg")}
    scores = {name: record.get(name) for name in SCORE_FIELDS}
    name, instruction = record.get("id"), instruction_text(record.get("instruction"))
    identifier = None if name is None else str(name)
    labels: Any = record.get("pos_labels")
    # JSON may have them as 2.0.
    grades = None if labels is None else [int(label) for label in labels]
    return Group(
        **values,  # type: ignore[arg-type]
        **scores,  # type: ignore[arg-type]
        id=identifier,
        instruction=instruction,
        pos_labels=grades,
    )


def read_groups(data_path: DataPath, skipped: SkippedLines | None = None) -> Iterator[Group]:
    """Check and yield the groups of a file, folder or glob, one at a time.

    Args:
        data_path: The files.
        skipped: Records bad lines; without it the first bad line is an error.

    Raises:
        InputError: a file is missing or unreadable, a line is bad, or there is no group.
    """
    is_empty = True
    for line in read_lines(data_path):
        try:
            group = parse_group(line)
        except InputError as problem:
            if skipped is None:
                raise
            skipped.add(line, problem)
            continue
        is_empty = False
        yield group
    if is_empty:
        raise no_group_left(data_path, skipped)


def no_group_left(data_path: DataPath, skipped: SkippedLines | None) -> InputError:
    """Return the error of data without a group; it has the first problem of a line."""
    first = f", the first problem: {skipped.first}" if skipped else ""
    return InputError(f"{data_path}: no usable group is left{first}")
