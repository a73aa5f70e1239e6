"""BEIR folders: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`, or `.jsonl` as MTEB's.

A relevant passage is right, any other judged one wrong; what is not judged is left to drawing.
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


def read(
    folder: Path, counts: ReasonCounts, *, split: str, threshold: float | None
) -> Iterator[LabelledQuery]:
    """The judged queries of a split, in the order of the judgements.

    Right is a grade of at least `threshold`, without one any above 0. What is left out is counted
    in `counts`.
    """
    corpus_file, query_file = (find_file(folder, name) for name in ("corpus", "queries"))
    qrels = find_qrels(folder, split)
    grades = read_grades(qrels, counts)
    queries = {query.id: query.text for query in read_queries(query_file, counts)}
    check_match("query", qrels, grades, query_file, queries)
    counts["queries without a judgement in the split"] += len(queries.keys() - grades.keys())
    wanted = {passage for of_query in grades.values() for passage in of_query}
    with TemporaryDirectory(prefix="beir-") as work:
        corpus = Corpus.build(corpus_file, Path(work), wanted, counts)
        if not corpus.positions and not corpus.blank_ids:
            passage = next(passage for of_query in grades.values() for passage in of_query)
            raise no_match("passage", qrels, passage, corpus_file, corpus.first_id)
        for query, of_query in grades.items():
            if query not in queries:
                counts.add(MISSING_QUERIES, repr(query))
                continue
            count_missing(qrels, query, of_query, corpus, counts)
            known = [passage for passage in of_query if passage in corpus.positions]
            texts = corpus.texts([corpus.positions[passage] for passage in known])
            right = [is_positive(of_query[passage], threshold) for passage in known]
            yield from_labels(queries[query], zip(texts, right, strict=True), id=query)
        corpus.close()


def is_positive(grade: float, threshold: float | None) -> bool:
    """Whether a passage of a grade is right."""
    return grade > 0 if threshold is None else grade >= threshold


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
    """The file with the corpus or the queries, plain or gzipped."""
    files = [folder / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.gz")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise InputError(f"{files[0]}: no such file; a BEIR folder has it")
    return found


def find_qrels(folder: Path, split: str) -> Path:
    """The file with the judgements of a split."""
    files = [folder / "qrels" / f"{split}{suffix}" for suffix in (".tsv", ".jsonl")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        there = sorted(file.stem for file in files[0].parent.glob("*.*"))
        splits = f"--split can be {', '.join(there)}" if there else "a BEIR folder has it"
        raise InputError(f"{files[0]}: no such file; {splits}")
    return found
