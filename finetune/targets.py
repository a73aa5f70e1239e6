"""What is mined for: queries with what is known to be right for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rerank_plugin.console import bar
from rerank_plugin.jsonl import DataPath

from .answers import Answers, find_answers
from .bm25 import Bm25
from .corpus import Corpus, in_batches
from .mining_summary import Summary
from .records import Record, read_qrels
from .words import text_key

#: Queries that are searched for at once, and whose pairs a reranker gets at once.
QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class Target:
    """A query whose right passages are known."""

    id: str
    query: str
    #: The places of the right passages in the corpus.
    positives: list[int]
    #: Where the query came with answers: a passage that contains one is not wrong.
    answers: Answers | None = None


#: Why a right passage is in no group, in the summary.
UNKNOWN = "right passages that are not in the corpus"
BLANK = "right passages that are blank"


def judged_targets(
    queries: Sequence[Record],
    judged: dict[str, list[str]],
    corpus: Corpus,
    summary: Summary,
    qrels: DataPath,
) -> list[Target]:
    """The queries that have a right passage in the corpus."""
    targets = []
    for query in queries:
        passages = judged.pop(query.id, [])
        places = [corpus.places[passage] for passage in passages if passage in corpus.places]
        for passage in passages:
            if passage not in corpus.places:
                reason = BLANK if passage in corpus.blank_ids else UNKNOWN
                summary.dropped[reason] += 1
                if reason not in summary.examples:
                    summary.examples[reason] = judged_at(qrels, query.id, passage)
        if places:
            answers = Answers(query.answers) if query.answers else None
            targets.append(Target(query.id, query.text, list(dict.fromkeys(places)), answers))
        elif passages:
            summary.queries["queries whose right passages are not in the corpus, or blank"] += 1
            summary.miss(query.text)
        else:
            summary.queries["queries without a right passage in --qrels"] += 1
    summary.notes["queries of --qrels that --queries does not have"] = len(judged)
    return targets


def judged_at(qrels: DataPath, query: str, passage: str) -> str:
    """A passage with file and line of its judgement, for messages."""
    # Read again: to keep the places of all judgements would take much memory.
    found = (of.line for of in read_qrels(qrels) if (of.query, of.passage) == (query, passage))
    line = next(found)
    return f", for example {passage!r} ({line.path}:{line.number})"


def answered_targets(
    queries: Sequence[Record], bm25: Bm25, corpus: Corpus, summary: Summary
) -> list[Target]:
    """The queries whose answer is in a passage of the corpus."""
    targets = []
    with bar("finding answers", "query", len(queries)) as progress:
        for batch in in_batches(queries, QUERIES_AT_ONCE):
            answers = [Answers(query.answers) for query in batch]
            places = find_answers([query.text for query in batch], answers, bm25, corpus)
            for query, own, place in zip(batch, answers, places, strict=True):
                if place is None:
                    summary.queries["queries whose answer is in no passage that BM25 finds"] += 1
                    summary.miss(query.text)
                else:
                    targets.append(Target(query.id, query.text, [place], own))
            progress.update(len(batch))
    return targets


def merge_same(targets: Sequence[Target], summary: Summary) -> list[Target]:
    """One target for queries of the same text: what is right for one is not wrong for another."""
    merged: dict[str, Target] = {}
    for target in targets:
        first = merged.setdefault(text_key(target.query), target)
        if first is target:
            continue
        summary.queries["queries that repeat another, whose right passages they join"] += 1
        places = list(dict.fromkeys([*first.positives, *target.positives]))
        texts = [of.answers.texts for of in (first, target) if of.answers]
        answers = Answers([text for own in texts for text in own]) if texts else None
        merged[text_key(target.query)] = Target(first.id, first.query, places, answers)
    return list(merged.values())
