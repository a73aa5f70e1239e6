"""A copy of groups without the problems that checking finds."""

from collections import Counter
from itertools import compress
from math import isfinite
from typing import Any

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line, read_lines

from ..data.groups import PARALLEL_FIELDS, Group, find_problems, group_of
from ..text.normalize import digest, text_digest, text_key
from .labels import Labels
from .overlap import Overlap

#: Fields of a record that a fix may change.
CHANGED = (*PARALLEL_FIELDS["pos"], *PARALLEL_FIELDS["neg"])


class Fixer:
    """Fixes groups, and counts its changes.

    Args:
        labels: The labels of pairs in all data.
        overlap: The texts shared with the evaluation data, where there is some.
    """

    def __init__(self, labels: Labels, overlap: Overlap | None) -> None:
        self.labels = labels
        self.overlap = overlap
        self.counts: Counter[str] = Counter()
        self._seen: set[int] = set()

    def fix(self, line: Line) -> dict[str, Any] | None:
        """Return a line's record with its group fixed; None where nothing is left of it."""
        record, repaired = usable_record(line)
        if record is None:
            self.counts["unusable lines left out"] += 1
            return None
        self.counts["unusable lines repaired: blank or contradictory passages left out"] += repaired
        group = self._fixed(group_of(record))
        if group is None:
            return None
        for name in [name for name, value in record.items() if not is_json(value)]:
            self.counts[f"fields {name!r} left out: JSON has neither NaN nor Infinity"] += 1
            del record[name]
        values = {name: getattr(group, name) for name in CHANGED}
        return record | {name: value for name, value in values.items() if value is not None}

    def learn(self, data_path: DataPath) -> None:
        """Add the labels of lines that will be repaired: only usable ones have been seen so far."""
        for line in read_lines(data_path):
            record, repaired = usable_record(line)
            if record and repaired:
                self.labels.learn(group_of(record))

    def _fixed(self, group: Group) -> Group | None:
        if self.overlap and self.overlap.leaks(group.query):
            self.counts["groups left out: their query is, or nearly is, an evaluation query"] += 1
            return None
        group = self._without_contradictions(self._without_copies(group))
        if not group.neg:
            self.counts["groups left out: no negative is left"] += 1
            return None
        question = [text_key(group.query), group.instruction]
        texts = [*question, *sorted(group.pos), "", *sorted(group.neg)]
        number = digest("\n".join(texts))
        if number in self._seen:
            self.counts["groups left out: they repeat an earlier one"] += 1
            return None
        self._seen.add(number)
        return group

    def _without_copies(self, group: Group) -> Group:
        kept = group.keep("pos", first_ones(group.pos)).keep("neg", first_ones(group.neg))
        copies = len(group.documents) - len(kept.documents)
        self.counts["copies of a passage of the same group, left out"] += copies
        return kept

    def _without_contradictions(self, group: Group) -> Group:
        positives = {text_digest(text) for text in group.pos}
        kept = [
            text_digest(text) not in positives and not self.labels.is_both(group, text)
            for text in group.neg
        ]
        self.counts["negatives left out: they are positives of the same query"] += kept.count(False)
        return group.keep("neg", kept)


def usable_record(line: Line) -> tuple[dict[str, Any] | None, bool]:
    """Return a line's record, repaired if it is not a group, and whether it had to be.

    Blank passages and negatives that are positives are left out. None where that is not enough.
    """
    try:
        record = line.record()
    except InputError:
        return None, False
    if not find_problems(record):
        return record, False
    repaired = dict(record)
    positives = record.get("pos")
    for side in ("pos", "neg"):
        texts = record.get(side)
        if not isinstance(texts, list) or not isinstance(positives, list):
            return None, False
        kept = [
            not (isinstance(text, str) and not text.strip())
            and not (side == "neg" and text in positives)
            for text in texts
        ]
        for name in PARALLEL_FIELDS[side]:
            values = record.get(name)
            if isinstance(values, list) and len(values) == len(texts):
                repaired[name] = list(compress(values, kept))
    return (None, False) if find_problems(repaired) else (repaired, True)


def is_json(value: object) -> bool:
    """Return whether a value can be written as JSON, which has neither NaN nor Infinity."""
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, list):
        return all(map(is_json, value))
    return all(map(is_json, value.values())) if isinstance(value, dict) else True


def first_ones(texts: list[str]) -> list[bool]:
    """Return for every text whether it is the first of its copies."""
    seen: set[int] = set()
    first = []
    for text in texts:
        number = text_digest(text)
        first.append(number not in seen)
        seen.add(number)
    return first
