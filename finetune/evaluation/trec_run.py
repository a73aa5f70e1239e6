"""TREC runs of a retriever, with texts and judgements, as queries to rerank."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rerank_plugin.cli.console import bar
from rerank_plugin.engine.scores import Logits
from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath

from ..data.beir_files import (
    ChecksInstruction,
    Record,
    check_instructions,
    check_match,
    is_own_document,
    no_match,
    read_grades,
    read_qrels,
    read_queries,
)
from ..data.corpus import Corpus, Positions
from ..data.reason_counts import ReasonCounts
from ..data.run_file import RunQuery, known_position, read_run
from .metrics import METRICS, ScoredQuery, query_metrics
from .scoring import Evaluation

#: trec_eval counts documents of every grade up to the highest there is.
HIGHEST_GRADE = 1000


@dataclass(frozen=True)
class Retrieved:
    """A query, its retrieved documents and their grades; a `judged_query.JudgedQuery`."""

    query: str
    documents: list[str]
    labels: list[int]
    missed: list[int]
    instruction: str = ""
    retrieval: list[float] | None = None
    teacher: None = None


@dataclass(frozen=True)
class RunCandidates:
    """The candidates of a query in a run, by their positions in the corpus."""

    record: Record
    positions: Positions
    scores: Logits
    labels: list[int]
    missed: list[int]

    @property
    def query(self) -> str:
        """The query's text."""
        return self.record.text

    @property
    def retrieval(self) -> list[float]:
        """The retriever's scores."""
        scores: list[float] = self.scores.tolist()
        return scores


class TrecRun:
    """The judged queries of a run; texts are read from the disk when a query is needed.

    Args:
        candidates: The candidates of every query.
        corpus: Their texts.
        counts: Counts of what is left out.
    """

    def __init__(
        self, candidates: Sequence[RunCandidates], corpus: Corpus, counts: ReasonCounts
    ) -> None:
        self.candidates = candidates
        self.counts = counts
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: int) -> Retrieved:
        query = self.candidates[index]
        texts = self._corpus.texts(query.positions.tolist())
        instruction = query.record.instruction
        return Retrieved(
            query.query, texts, query.labels, query.missed, instruction, query.retrieval
        )

    def __iter__(self) -> Iterator[Retrieved]:
        return (self[index] for index in range(len(self)))

    def check_instructions(self, model: ChecksInstruction) -> None:
        """Check that a model takes instructions, if a query has one.

        Raises:
            InputError: with file and line of the first query that has one.
        """
        check_instructions((query.record for query in self.candidates), model)

    def run_order(self, metrics: Sequence[str] = METRICS) -> Evaluation:
        """Evaluate the run's own order, with its scores as logits."""
        queries = [ScoredQuery(q.scores, q.labels, q.missed, True) for q in self.candidates]
        scores = [query.scores for query in self.candidates]
        return Evaluation(query_metrics(queries, metrics), 0.0, scores, in_order=True)


@contextmanager
def open_run(
    run: DataPath,
    *,
    qrels: DataPath,
    queries: DataPath,
    corpus: DataPath,
    top_k: int | None = None,
    progress: bool = False,
) -> Iterator[TrecRun]:
    """Open a run with its texts, which are in a temporary folder meanwhile.

    As in trec_eval, queries without a judgement and judged queries that the run lacks are left
    out, documents without a judgement are not relevant, judged documents that the run lacks count
    as missed, and scores are float32. Documents without a text, and a query among its own
    documents, are left out and counted, as in BEIR.

    Args:
        run: Lines of `query Q0 document rank score tag`, ranked by score.
        qrels: Judgements with whole grades, as `beir_files.read_qrels` reads them.
        queries: The texts of the queries.
        corpus: The texts of the documents.
        top_k: The number of documents of a query at most, those that the run ranks first.
        progress: Show a progress bar on stderr while the corpus is read.

    Raises:
        InputError: a line is bad, files do not belong together, or no query is left.
    """
    counts = ReasonCounts()
    grades = read_whole_grades(qrels, counts)
    documents: dict[str, int] = {}
    run_queries = read_run(run, documents, counts)
    check_match("query", run, run_queries, qrels, grades)
    texts = {query.id: query for query in read_queries(queries, counts)}
    check_match("query", run, [query for query in run_queries if query in grades], queries, texts)
    with TemporaryDirectory(prefix="rerank-run-") as folder:
        judged = {name for query in run_queries for name in grades.get(query, ())}
        wanted = judged.union(documents)
        with bar("reading", "passage", shown=progress) as read:
            passages = Corpus.build(
                corpus, Path(folder), wanted, counts, read.update, wanted_only=True
            )
        if passages.positions.keys().isdisjoint(documents):
            raise no_match("document", run, next(iter(documents)), corpus, passages.first_id)
        counts["queries of the qrels that the run lacks"] = len(grades.keys() - run_queries)
        selector = CandidateSelector(list(documents), passages, counts, top_k)
        candidates = selector.select_all(run_queries, texts, grades)
        if not candidates:
            reasons = ", ".join(counts.lines())
            raise InputError(f"{run}: none of its queries can be ranked ({reasons})")
        if not any(max([*query.labels, *query.missed]) > 0 for query in candidates):
            raise InputError(f"{qrels}: no passage is judged relevant for a query of {run}")
        yield TrecRun(candidates, passages, counts)
        passages.close()


@dataclass(frozen=True)
class CandidateSelector:
    """Selects the candidates of queries among the documents of a run.

    Args:
        names: The ids of all documents of the run.
        passages: The texts of those that have one.
        counts: Counts what is left out.
        top_k: The number of candidates of a query at most.
    """

    names: Sequence[str]
    passages: Corpus
    counts: ReasonCounts
    top_k: int | None

    def select_all(
        self,
        run_queries: Mapping[str, RunQuery],
        texts: Mapping[str, Record],
        grades: Mapping[str, Mapping[str, int]],
    ) -> list[RunCandidates]:
        """Return the candidates of all judged queries that have a text and a document."""
        selected = []
        for name, run_query in run_queries.items():
            if name not in grades:
                self.counts.add("queries of the run without a judgement, left out", repr(name))
            elif name not in texts:
                reason = "queries of the run that --queries does not have, left out"
                self.counts.add(reason, repr(name))
            elif candidates := self.select(texts[name], run_query, grades[name]):
                selected.append(candidates)
        return selected

    def select(
        self, query: Record, run_query: RunQuery, grades: Mapping[str, int]
    ) -> RunCandidates | None:
        """Return the candidates of one query; None where no document is left."""
        ranked, scores = run_query.ranked(self.names)
        kept = [self._is_kept(query, name, grades) for name in ranked]
        ranked, scores = list(compress(ranked, kept))[: self.top_k], scores[kept][: self.top_k]
        if not ranked:
            self.counts.add("queries of the run without a document that can be ranked, left out")
            return None
        for name in grades:
            if grades[name] > 0 and name not in self.passages.positions:
                reason = "relevant passages without a text in the corpus, which count as not found"
                self.counts.add(reason, repr(name))
        judged = dict(grades)
        positions = np.array([self.passages.positions[name] for name in ranked], np.int64)
        labels = [judged.pop(name, 0) for name in ranked]
        missed = list(judged.values())
        return RunCandidates(query, positions, scores, labels, missed)

    def _is_kept(self, query: Record, name: str, grades: Mapping[str, int]) -> bool:
        position = known_position(name, query.id, self.passages, self.counts)
        if position is None:
            return False
        if name == query.id and name not in grades:
            (text,) = self.passages.texts([position])
            if is_own_document(query, text):
                self.counts.add("queries among their own documents, left out there", repr(name))
                return False
        return True


def read_whole_grades(qrels: DataPath, counts: ReasonCounts) -> dict[str, dict[str, int]]:
    """Return the grades of every query's judged documents, by their ids.

    Raises:
        InputError: a grade is not whole.
    """
    grades = read_grades(qrels, counts)
    every = (grade for of_query in grades.values() for grade in of_query.values())
    if not all(is_whole(grade) for grade in every):
        bad = next(judgement for judgement in read_qrels(qrels) if not is_whole(judgement.grade))
        problem = f"the grade {bad.grade:g} is not a whole number up to {HIGHEST_GRADE}"
        raise bad.line.error(problem)
    return {
        query: {passage: int(grade) for passage, grade in of_query.items()}
        for query, of_query in grades.items()
    }


def is_whole(grade: float) -> bool:
    """Return whether trec_eval accepts a grade."""
    return abs(grade) <= HIGHEST_GRADE and grade % 1 == 0
