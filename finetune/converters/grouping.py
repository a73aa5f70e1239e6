"""Group records of the same query, in bounded memory."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from ..data.groups import NO_GRADES, Group, grades_of, is_grade, query_hash
from ..data.reason_counts import ReasonCounts
from ..data.writer import record_line
from ..text.duplicates import Duplicates
from ..text.normalize import text_digest, text_key
from .labelled_query import LabelledQuery, Passage

#: Bytes of text that are grouped in memory; more goes through files on disk.
BUCKET = 1 << 28

#: The reason why repeated passages that differ are left out.
COPIES = (
    "copies of a passage in another case, spacing, punctuation or with another score or label, "
    "left out"
)

#: How many passages are drawn at most for each one that is wanted.
DRAWN = 4


@dataclass
class Collected:
    """The passages of a query in all records, by `text_digest`."""

    query: str
    instruction: str = ""
    id: str | None = None
    pos: dict[int, Passage] = field(default_factory=dict)
    neg: dict[int, Passage] = field(default_factory=dict)

    def add(self, record: LabelledQuery, counts: ReasonCounts) -> None:
        """Add one more record; of copies the first one, and the highest label, are kept."""
        self.id = self.id if self.id is not None else record.id
        for passages, added in ((self.pos, record.pos), (self.neg, record.neg)):
            for passage in added:
                if not passage.text.strip():
                    counts.add("blank passages, left out", record.where)
                    continue
                digest = text_digest(passage.text)
                known = passages.setdefault(digest, passage)
                if known != passage:
                    counts[COPIES] += 1
                    passages[digest] = replace(known, label=max(known.label, passage.label))


def group(
    records: Iterable[LabelledQuery],
    folder: Path,
    *,
    size: int,
    negatives: int,
    seed: int,
    counts: ReasonCounts,
) -> Iterator[Group]:
    """Yield one group for every query text and instruction, in the order of their first records.

    Where there is more text than `BUCKET`, records are first dealt by their query into files, and
    grouped file by file.

    Args:
        records: The records.
        folder: The folder of the files.
        size: About how many bytes of text the records have.
        negatives: A query without negatives gets so many, drawn from those of other queries.
        seed: Fixes the draws.
        counts: Counts what was dropped and what was drawn.
    """
    records = with_query(records, counts)
    count = size // BUCKET + 1
    if count == 1:
        yield from group_in_memory(records, negatives=negatives, seed=seed, counts=counts)
        return
    files = [folder / f"bucket-{number}.jsonl" for number in range(count)]
    with ExitStack() as stack:
        open_files = [stack.enter_context(file.open("w", encoding="utf-8")) for file in files]
        for record in records:
            number = int(query_hash(record.query, seed)[:8], 16) % count
            write_record(open_files[number], record)
    for file in files:
        with file.open(encoding="utf-8") as lines:
            stored = map(stored_record, lines)
            yield from group_in_memory(stored, negatives=negatives, seed=seed, counts=counts)
        file.unlink()


def with_query(records: Iterable[LabelledQuery], counts: ReasonCounts) -> Iterator[LabelledQuery]:
    """Yield the records whose query is not blank."""
    for record in records:
        if record.query.strip():
            yield record
        else:
            counts.add("records with a blank query, left out", record.where)


def write_record(file: IO[str], record: LabelledQuery) -> None:
    """Write one record to disk."""
    file.write(record_line(asdict(record)))


def stored_record(line: str) -> LabelledQuery:
    """Return one record from disk."""
    values = json.loads(line)
    pos, neg = ([Passage(**passage) for passage in values[name]] for name in ("pos", "neg"))
    return LabelledQuery(**{**values, "pos": pos, "neg": neg})


def group_in_memory(
    records: Iterable[LabelledQuery], *, negatives: int, seed: int, counts: ReasonCounts
) -> Iterator[Group]:
    """Yield the groups of records, all of them in memory."""
    collected: dict[tuple[str, str], Collected] = {}
    for record in records:
        key = text_key(record.query), record.instruction
        query = collected.setdefault(key, Collected(record.query, record.instruction))
        query.add(record, counts)
    texts_by_digest: dict[int, str] = {}
    for query in collected.values():
        for number, passage in (*query.pos.items(), *query.neg.items()):
            texts_by_digest.setdefault(number, passage.text)
    pool = list(texts_by_digest.values())
    for query in collected.values():
        both = query.pos.keys() & query.neg.keys()
        counts["negatives that are positives as well, or copies of positives, left out"] += len(
            both
        )
        pos = list(query.pos.values())
        neg = [passage for key, passage in query.neg.items() if key not in both]
        if not pos:
            counts["queries without a positive, left out"] += 1
            continue
        if not neg:
            neg = draw(query.query, pos, pool, negatives, seed)
            counts["negatives drawn at random, for queries that had none"] += len(neg)
        if not neg:
            counts["queries for which no negative could be drawn, left out"] += 1
            continue
        scores = complete([[passage.score for passage in side] for side in (pos, neg)], counts)
        retrieval = complete(
            [[passage.retrieval_score for passage in side] for side in (pos, neg)], counts
        )
        labels = [passage.label for passage in pos]
        counts[NO_GRADES] += not all(map(is_grade, labels))
        yield Group(
            query=query.query,
            pos=[passage.text for passage in pos],
            neg=[passage.text for passage in neg],
            pos_scores=scores[0],
            neg_scores=scores[1],
            id=query.id,
            instruction=query.instruction,
            pos_retrieval_scores=retrieval[0],
            neg_retrieval_scores=retrieval[1],
            pos_labels=grades_of(labels),
        )


def complete(
    sides: Sequence[Sequence[float | None]], counts: ReasonCounts
) -> list[list[float] | None]:
    """Return the scores of positives and negatives, where all have one; else None for both.

    Partial scores would be taken for complete ones.
    """
    scores = [[score for score in side if score is not None] for side in sides]
    if list(map(len, scores)) == list(map(len, sides)):
        return [*scores]
    counts["groups of which some passages have no score: without scores"] += any(scores)
    return [None, None]


def draw(
    query: str, pos: Sequence[Passage], pool: Sequence[str], count: int, seed: int
) -> list[Passage]:
    """Draw passages of other queries that are not near-duplicates of a positive, by the seed.

    The query itself is none of them, with or without a title before it.
    """
    positives = Duplicates(passage.text for passage in pos)
    random = np.random.default_rng(int(query_hash(query, seed)[:16], 16))
    indices = random.choice(len(pool), min(len(pool), DRAWN * count), replace=False)
    drawn = (pool[index] for index in indices.tolist())
    others = (text for text in drawn if not positives.has(text))
    key = text_key(query)
    negatives = (text for text in others if not text_key(text).endswith(key))
    return [Passage(text) for text in islice(negatives, count)]
