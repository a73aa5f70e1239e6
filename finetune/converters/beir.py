"""BEIR folders: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`, or `.jsonl` as MTEB's.

Relevant passages are positives and other judged ones negatives; a query without negatives gets
passages of other queries.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_plugin.errors import InputError

from ..data.beir_files import (
    BLANK_PASSAGES,
    MISSING_PASSAGES,
    MISSING_QUERIES,
    check_match,
    judged_at,
    no_match,
    read_grades,
    read_queries,
)
from ..data.corpus import Corpus
from ..data.reason_counts import ReasonCounts
from .labelled_query import LabelledQuery, from_labels


def read_beir(
    folder: Path, counts: ReasonCounts, *, split: str, threshold: float | None
) -> Iterator[LabelledQuery]:
    """Yield the judged queries of a split, in the order of the judgements.

    Positives have a grade of at least `threshold`, or above 0 without one. What is left out is
    counted.
    """
    corpus_file, query_file = (find_file(folder, name) for name in ("corpus", "queries"))
    qrels = find_qrels(folder, split)
    grades = read_grades(qrels, counts)
    queries = {query.id: query for query in read_queries(query_file, counts)}
    check_match("query", qrels, grades, query_file, queries)
    counts["queries without a judgement in the split"] += len(queries.keys() - grades.keys())
    wanted = {passage for passages in grades.values() for passage in passages}
    with TemporaryDirectory(prefix="beir-") as work:
        corpus = Corpus.build(corpus_file, Path(work), wanted, counts)
        if not corpus.positions and not corpus.blank_ids:
            passage = next(passage for passages in grades.values() for passage in passages)
            raise no_match("passage", qrels, passage, corpus_file, corpus.first_id)
        for query, passages in grades.items():
            if query not in queries:
                counts.add(MISSING_QUERIES, repr(query))
                continue
            count_missing(qrels, query, passages, corpus, counts)
            known = [passage for passage in passages if passage in corpus.positions]
            texts = corpus.texts([corpus.positions[passage] for passage in known])
            labels = [positive_grade(passages[passage], threshold) for passage in known]
            labelled = zip(texts, labels, strict=True)
            text, instruction = queries[query].text, queries[query].instruction
            yield from_labels(text, labelled, id=query, instruction=instruction)
        corpus.close()


def positive_grade(grade: float, threshold: float | None) -> float | None:
    """Return the grade of a positive; None for a negative."""
    is_relevant = grade > 0 if threshold is None else grade >= threshold
    return grade if is_relevant else None


def count_missing(
    qrels: Path, query: str, grades: dict[str, float], corpus: Corpus, counts: ReasonCounts
) -> None:
    """Count the judged passages of a query that have no text."""
    for passage in grades:
        if passage not in corpus.positions:
            reason = BLANK_PASSAGES if passage in corpus.blank_ids else MISSING_PASSAGES
            example = "" if counts[reason] else judged_at(qrels, query, passage)
            counts.add(reason, example)


def find_file(folder: Path, name: str) -> Path:
    """Return the file with the corpus or the queries, plain or gzipped."""
    files = [folder / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.gz")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise InputError(f"{files[0]}: no such file, expected in a BEIR folder")
    return file


def find_qrels(folder: Path, split: str) -> Path:
    """Return the file with the judgements of a split."""
    files = [folder / "qrels" / f"{split}{suffix}" for suffix in (".tsv", ".jsonl")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        names = sorted(file.stem for file in files[0].parent.glob("*.*"))
        splits = f"--split can be {', '.join(names)}" if names else "expected in a BEIR folder"
        raise InputError(f"{files[0]}: no such file; {splits}")
    return file
