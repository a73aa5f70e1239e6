"""Queries to mine for, with their positives from judgements or answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rerank_plugin.cli.console import bar
from rerank_plugin.io.jsonl import DataPath

from ..data.batched import batched
from ..data.beir_files import (
    BLANK_PASSAGES,
    MISSING_PASSAGES,
    MISSING_QUERIES,
    Record,
    is_own_document,
    judged_at,
)
from ..data.corpus import Corpus
from ..text.normalize import text_key
from .answers import Answers, find_answers
from .result import MiningResult
from .retrieval import Hits

#: How many queries are searched for, and have their pairs scored, at once.
QUERIES_AT_ONCE = 512

#: Why a query is left out.
NO_ANSWER = "queries whose answer is in no passage that was retrieved"


@dataclass(frozen=True)
class Target:
    """A query whose positives are known."""

    id: str
    query: str
    #: The positions of the positives in the corpus.
    positives: list[int]
    #: The query's answers, where it has some: a passage that contains one is not a negative.
    answers: Answers | None = None
    #: The positions of passages that are the query itself.
    copies: frozenset[int] = frozenset()
    #: The query's instruction; "" without one.
    instruction: str = ""
    #: The grades of the positives, by position; 1 without one.
    grades: dict[int, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Return what is equal for targets of equal queries with one instruction."""
        return text_key(self.query), self.instruction


def judged_targets(
    queries: Sequence[Record],
    judged: dict[str, dict[str, float]],
    corpus: Corpus,
    result: MiningResult,
    qrels: DataPath,
) -> list[Target]:
    """Return the queries that have a positive in the corpus."""
    targets = []
    for query in queries:
        passages = judged.pop(query.id, {})
        grades = {
            corpus.positions[passage]: grade
            for passage, grade in passages.items()
            if passage in corpus.positions
        }
        for passage in passages:
            if passage not in corpus.positions:
                blank = passage in corpus.blank_ids
                reason = BLANK_PASSAGES if blank else MISSING_PASSAGES
                is_first = not result.passages_left_out[reason]
                example = judged_at(qrels, query.id, passage) if is_first else ""
                result.passages_left_out.add(reason, example)
        if grades:
            answers = Answers(query.answers) if query.answers else None
            copies = own_document(query, corpus) - grades.keys()
            targets.append(
                Target(
                    query.id, query.text, list(grades), answers, copies, query.instruction, grades
                )
            )
        elif passages:
            reason = "queries whose positives are not in the corpus, or blank"
            result.queries_left_out.add(reason, repr(query.id))
            result.add_not_found(query.text)
        else:
            result.queries_left_out.add("queries without a positive in --qrels", repr(query.id))
    for name in judged:
        result.remarks.add(MISSING_QUERIES, repr(name))
    return targets


def own_document(query: Record, corpus: Corpus) -> frozenset[int]:
    """Return the position of the passage that is the query itself and has its id, if any."""
    position = corpus.positions.get(query.id)
    is_own = position is not None and is_own_document(query, *corpus.texts([position]))
    return frozenset([position] if position is not None and is_own else [])


def answered_targets(
    queries: Sequence[Record],
    search: Callable[[Sequence[Record], Sequence[Answers]], list[Hits]],
    corpus: Corpus,
    result: MiningResult,
    *,
    progress: bool,
) -> list[Target]:
    """Return the queries whose answer is in a passage of the corpus.

    Args:
        queries: The queries.
        search: Returns the passages in which to look for the answers of queries, best first.
        corpus: The passages.
        result: Counts the queries whose answer is not found.
        progress: Show a progress bar on stderr.
    """
    targets = []
    with bar("finding answers", "query", len(queries), shown=progress) as shown:
        for batch in batched(queries, QUERIES_AT_ONCE):
            answers = [Answers(query.answers) for query in batch]
            positions = find_answers(answers, search(batch, answers), corpus)
            for query, query_answers, position in zip(batch, answers, positions, strict=True):
                if position is None:
                    result.queries_left_out[NO_ANSWER] += 1
                    result.add_not_found(query.text)
                else:
                    copies = own_document(query, corpus) - {position}
                    targets.append(
                        Target(
                            query.id,
                            query.text,
                            [position],
                            query_answers,
                            copies,
                            query.instruction,
                        )
                    )
            shown.update(len(batch))
    return targets


def merge_same(targets: Sequence[Target], result: MiningResult) -> list[Target]:
    """Join the targets of equal queries: a positive of one is not a negative of another.

    With different instructions queries are different ones: other passages are relevant.
    """
    merged: dict[tuple[str, str], Target] = {}
    for target in targets:
        first = merged.setdefault(target.key, target)
        if first is target:
            continue
        result.queries_left_out["queries that repeat another, whose positives they join"] += 1
        positions = list(dict.fromkeys([*first.positives, *target.positives]))
        answers = join_answers(first.answers, target.answers)
        copies = (first.copies | target.copies) - {*positions}
        grades = dict(first.grades)
        for position, grade in target.grades.items():
            grades[position] = max(grade, grades.get(position, grade))
        merged[target.key] = replace(
            first, positives=positions, grades=grades, answers=answers, copies=copies
        )
    return list(merged.values())


def join_answers(*answers: Answers | None) -> Answers | None:
    """Return the answers of several queries together."""
    texts = [text for some in answers if some for text in some.texts]
    return Answers(texts) if texts else None
