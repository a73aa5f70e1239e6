"""Judgements of the same query into one group, in bounded memory."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from ..data.groups import Group, query_hash
from ..data.reason_counts import ReasonCounts
from ..data.writer import record_line
from ..text.duplicates import Duplicates
from ..text.normalize import text_digest, text_key
from .labelled_query import LabelledQuery, Passage

#: What is grouped in memory at once, in bytes of text; more goes through files on disk.
BUCKET = 1 << 28

#: What is said of passages that come again, but not as they were.
COPIES = "copies of a passage in another case, spacing, punctuation or with another score, left out"

#: How many passages are drawn for every one that is wanted, at most.
DRAWN = 4


@dataclass
class Collected:
    """What all records say about a query: passages by `text_digest`."""

    query: str
    id: str | None = None
    pos: dict[int, Passage] = field(default_factory=dict)
    neg: dict[int, Passage] = field(default_factory=dict)

    def add(self, judged: LabelledQuery, counts: ReasonCounts) -> None:
        """Take what one more record says; of copies the first one and its score count."""
        self.id = self.id if self.id is not None else judged.id
        for mine, theirs in ((self.pos, judged.pos), (self.neg, judged.neg)):
            for passage in theirs:
                if not passage.text.strip():
                    counts.add("blank passages, left out", judged.where)
                elif mine.setdefault(text_digest(passage.text), passage) != passage:
                    counts[COPIES] += 1


def group(
    parts: Iterable[LabelledQuery],
    folder: Path,
    *,
    size: int,
    negatives: int,
    seed: int,
    counts: ReasonCounts,
) -> Iterator[Group]:
    """One group for every query text, in the order in which queries come first.

    Where there is more text than `BUCKET`, records are first dealt by their query into files, and
    groups come file by file.

    Args:
        parts: What records say.
        folder: Where the files are written.
        size: About how many bytes of text come.
        negatives: A query without negatives gets so many, drawn from those of other queries.
        seed: Fixes the draws.
        counts: Counts what was dropped and what was drawn.
    """
    parts = with_query(parts, counts)
    count = size // BUCKET + 1
    if count == 1:
        yield from group_in_memory(parts, negatives=negatives, seed=seed, counts=counts)
        return
    files = [folder / f"bucket-{place}.jsonl" for place in range(count)]
    with ExitStack() as stack:
        open_files = [stack.enter_context(file.open("w", encoding="utf-8")) for file in files]
        for part in parts:
            place = int(query_hash(part.query, seed)[:8], 16) % count
            write_part(open_files[place], part)
    for file in files:
        with file.open(encoding="utf-8") as lines:
            stored = map(stored_part, lines)
            yield from group_in_memory(stored, negatives=negatives, seed=seed, counts=counts)
        file.unlink()


def with_query(parts: Iterable[LabelledQuery], counts: ReasonCounts) -> Iterator[LabelledQuery]:
    """The records whose query is not blank."""
    for part in parts:
        if part.query.strip():
            yield part
        else:
            counts.add("records with a blank query, left out", part.where)


def write_part(file: IO[str], part: LabelledQuery) -> None:
    """Put one record on disk."""
    file.write(record_line(asdict(part)))


def stored_part(line: str) -> LabelledQuery:
    """One record from disk."""
    values = json.loads(line)
    pos, neg = ([Passage(**passage) for passage in values[name]] for name in ("pos", "neg"))
    return LabelledQuery(values["query"], pos, neg, values["id"], values["where"])


def group_in_memory(
    parts: Iterable[LabelledQuery], *, negatives: int, seed: int, counts: ReasonCounts
) -> Iterator[Group]:
    """The groups of records, all of them in memory."""
    collected: dict[str, Collected] = {}
    for part in parts:
        collected.setdefault(text_key(part.query), Collected(part.query)).add(part, counts)
    texts_by_digest: dict[int, str] = {}
    for own in collected.values():
        for number, passage in (*own.pos.items(), *own.neg.items()):
            texts_by_digest.setdefault(number, passage.text)
    pool = list(texts_by_digest.values())
    for own in collected.values():
        both = own.pos.keys() & own.neg.keys()
        counts["negatives that are positives as well, or copies of positives, left out"] += len(
            both
        )
        pos = list(own.pos.values())
        neg = [passage for key, passage in own.neg.items() if key not in both]
        if not pos:
            counts["queries without a positive, left out"] += 1
            continue
        if not neg:
            neg = draw(own.query, pos, pool, negatives, seed)
            counts["negatives drawn at random, for queries that had none"] += len(neg)
        if not neg:
            counts["queries for which no negative could be drawn, left out"] += 1
            continue
        scores = [scores_of(side) for side in (pos, neg)]
        if (scores[0] is None) != (scores[1] is None) or (
            None in scores and any(item.score is not None for item in (*pos, *neg))
        ):
            # Half of them would be taken for all of them.
            counts["groups of which some passages have no score: without scores"] += 1
            scores = [None, None]
        texts = [[passage.text for passage in side] for side in (pos, neg)]
        yield Group(own.query, texts[0], texts[1], scores[0], scores[1], own.id)


def scores_of(passages: Sequence[Passage]) -> list[float] | None:
    """The scores of passages, where all have one."""
    scores = [passage.score for passage in passages if passage.score is not None]
    return scores if len(scores) == len(passages) else None


def draw(
    query: str, pos: Sequence[Passage], pool: Sequence[str], count: int, seed: int
) -> list[Passage]:
    """Passages of other queries, none of them close to a positive; the same for the same seed.

    The query itself is none of them, with or without a title before it.
    """
    right = Duplicates(passage.text for passage in pos)
    random = np.random.default_rng(int(query_hash(query, seed)[:16], 16))
    places = random.choice(len(pool), min(len(pool), DRAWN * count), replace=False)
    drawn = (pool[place] for place in places.tolist())
    key = text_key(query)
    wrong = (text for text in drawn if not right.has(text) and not text_key(text).endswith(key))
    return [Passage(text) for text, _ in zip(wrong, range(count), strict=False)]
