"""A copy of groups without what `check` found wrong with them."""

from collections import Counter
from dataclasses import replace
from itertools import compress
from math import isfinite
from typing import Any

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line, read_lines

from ..data.groups import Group, find_problems, group_of
from ..text.normalize import digest, text_digest, text_key
from .inspection import Labels, Overlap

#: What a fixed line may have other than the line that it comes from.
MENDED = ("pos", "neg", "pos_scores", "neg_scores")


class Fixer:
    """Mends groups, and counts what it did.

    Args:
        labels: How pairs are labelled in all data.
        overlap: What is shared with the evaluation data, where there is some.
    """

    def __init__(self, labels: Labels, overlap: Overlap | None) -> None:
        self.labels = labels
        self.overlap = overlap
        self.counts: Counter[str] = Counter()
        self._seen: set[int] = set()

    def fix(self, line: Line) -> dict[str, Any] | None:
        """A line's record, mended, its other fields as they were; None where nothing is left."""
        record, changed = usable(line)
        if record is None:
            self.counts["unusable lines left out"] += 1
            return None
        self.counts["unusable lines mended: without what is blank, or wrong and right"] += changed
        mended = self._mend(group_of(record))
        if mended is None:
            return None
        for name in [name for name, value in record.items() if not is_json(value)]:
            self.counts[f"fields {name!r} with NaN or Infinity, which JSON has not, left out"] += 1
            del record[name]
        values = {name: getattr(mended, name) for name in MENDED}
        return record | {name: value for name, value in values.items() if value is not None}

    def learn(self, data_path: DataPath) -> None:
        """Take the labels of lines that will be mended: `check` has seen the usable ones alone."""
        for line in read_lines(data_path):
            record, changed = usable(line)
            if record and changed:
                self.labels.learn(group_of(record))

    def _mend(self, group: Group) -> Group | None:
        if self.overlap and self.overlap.leaks(group.query):
            self.counts["groups left out: their query is nearly one of the evaluation's"] += 1
            return None
        right = first_ones(group.pos)
        wrong = first_ones(group.neg)
        self.counts["copies of a passage in the same group, left out"] += len(group.documents) - (
            sum(right) + sum(wrong)
        )
        known = {text_digest(text) for text in group.pos}
        contradicted = [
            text_digest(text) in known or self.labels.is_both(group.query, text)
            for text in group.neg
        ]
        kept = [first and not both for first, both in zip(wrong, contradicted, strict=True)]
        self.counts["negatives left out: they are positives of the same query"] += sum(wrong) - sum(
            kept
        )
        mended = keep(keep(group, "pos", right), "neg", kept)
        if not mended.neg:
            self.counts["groups left out: no negative is left"] += 1
            return None
        texts = [text_key(group.query), *sorted(mended.pos), "", *sorted(mended.neg)]
        number = digest("\n".join(texts))
        if number in self._seen:
            self.counts["groups left out: the same group came before"] += 1
            return None
        self._seen.add(number)
        return mended


def usable(line: Line) -> tuple[dict[str, Any] | None, bool]:
    """A line's record without blank passages and negatives that are positives, and if it had any.

    None where it is no group even so.
    """
    try:
        record = line.record()
    except InputError:
        return None, False
    if not find_problems(record):
        return record, False
    mended = dict(record)
    right = record.get("pos")
    for side in ("pos", "neg"):
        texts, scores = record.get(side), record.get(f"{side}_scores")
        if not isinstance(texts, list) or not isinstance(right, list):
            return None, False
        kept = [
            not (isinstance(text, str) and not text.strip())
            and not (side == "neg" and text in right)
            for text in texts
        ]
        mended[side] = list(compress(texts, kept))
        if isinstance(scores, list) and len(scores) == len(texts):
            mended[f"{side}_scores"] = list(compress(scores, kept))
    return (None, False) if find_problems(mended) else (mended, True)


def is_json(value: object) -> bool:
    """Whether a value can be written as JSON: Python reads NaN and Infinity, which it has not."""
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, list):
        return all(map(is_json, value))
    return all(map(is_json, value.values())) if isinstance(value, dict) else True


def first_ones(texts: list[str]) -> list[bool]:
    """For every text whether no copy of it came before."""
    seen: set[int] = set()
    first = []
    for text in texts:
        number = text_digest(text)
        first.append(number not in seen)
        seen.add(number)
    return first


def keep(group: Group, side: str, kept: list[bool]) -> Group:
    """A group with some of its passages, and their scores."""
    changes: dict[str, Any] = {side: list(compress(getattr(group, side), kept))}
    scores = getattr(group, f"{side}_scores")
    if scores is not None:
        changes[f"{side}_scores"] = list(compress(scores, kept))
    return replace(group, **changes)
