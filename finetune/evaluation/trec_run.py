"""What a retriever found, as TREC runs have it, with texts and judgements: what it would rerank."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rerank_plugin.cli.console import bar
from rerank_plugin.engine.scorer import Logits
from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line, read_lines

from ..data.beir_files import (
    COLUMN,
    Record,
    at,
    check_match,
    is_own_document,
    no_match,
    read_grades,
    read_qrels,
    read_queries,
)
from ..data.corpus import Corpus, Positions
from ..data.reason_counts import ReasonCounts
from .metrics import ScoredQuery, query_metrics
from .scoring import Evaluation

#: trec_eval counts documents of every grade up to the highest there is.
HIGHEST_GRADE = 1000

#: Scores are kept as float32.
HIGHEST_SCORE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Retrieved:
    """A query, what was found for it, and what that is worth; see `judged_query.JudgedQuery`."""

    query: str
    documents: list[str]
    labels: list[int]
    missed: list[int]
    teacher: None = None


@dataclass
class Found:
    """What a run has for a query: places among its documents, and scores."""

    places: "array[int]" = field(default_factory=lambda: array("l"))
    scores: "array[float]" = field(default_factory=lambda: array("f"))

    def best(self, names: Sequence[str]) -> tuple[list[str], Logits]:
        """Documents, of all `names`, and scores, the best first.

        Documents of one score stand as trec_eval has them, the last by name first.
        """
        documents = (names[place] for place in self.places)
        found = sorted(zip(self.scores, documents, strict=True), reverse=True)
        return [name for _, name in found], np.array([score for score, _ in found], np.float32)


@dataclass(frozen=True)
class Candidates:
    """A query's part of a run, without texts."""

    query: str
    places: Positions
    scores: Logits
    labels: list[int]
    missed: list[int]


class TrecRun:
    """The judged queries of a run, each with its texts when it is asked for.

    Args:
        candidates: Of every query.
        corpus: Where the texts are.
        counts: What is left out.
    """

    def __init__(
        self, candidates: Sequence[Candidates], corpus: Corpus, counts: ReasonCounts
    ) -> None:
        self.candidates = candidates
        self.counts = counts
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: int) -> Retrieved:
        own = self.candidates[index]
        texts = self._corpus.texts(own.places.tolist())
        return Retrieved(own.query, texts, own.labels, own.missed)

    def __iter__(self) -> Iterator[Retrieved]:
        return (self[index] for index in range(len(self)))

    @property
    def own_order(self) -> Evaluation:
        """How well the run itself ranks; its scores stand for logits."""
        rankings = [
            ScoredQuery(own.scores, own.labels, own.missed, True) for own in self.candidates
        ]
        scores = [own.scores for own in self.candidates]
        return Evaluation(query_metrics(rankings), 0.0, scores, in_order=True)


@contextmanager
def open_run(
    run: DataPath,
    *,
    qrels: DataPath,
    queries: DataPath,
    corpus: DataPath,
    top_k: int | None = None,
) -> Iterator[TrecRun]:
    """A run with its texts, which lie in a temporary folder while it is open.

    As trec_eval does it, queries without a judgement and judged queries that the run lacks are
    left out, documents without a judgement are not relevant, judged ones that the run lacks are
    missed, and scores are float32. What cannot be ranked as its text is missing or blank is left
    out and counted, and so is a query among its own documents, as BEIR does it. A bar on stderr
    shows how the corpus is read.

    Args:
        run: Lines of `query Q0 document rank score tag`; the score says who comes first.
        qrels: Judgements as `records.read_qrels` takes them, with whole grades.
        queries: Texts of the queries.
        corpus: Texts of the documents.
        top_k: Only so many documents of a query, those that the run puts first.

    Raises:
        InputError: a line is bad, files do not belong together, or no query is left.
    """
    counts = ReasonCounts()
    grades = read_whole_grades(qrels, counts)
    documents: dict[str, int] = {}
    found = read_run(run, documents, counts)
    check_match("query", run, found, qrels, grades)
    texts = {query.id: query for query in read_queries(queries, counts)}
    check_match("query", run, [query for query in found if query in grades], queries, texts)
    with TemporaryDirectory(prefix="rerank-run-") as folder:
        judged = {name for query in found for name in grades.get(query, ())}
        wanted = judged.union(documents)
        with bar("reading", "passage") as progress:
            passages = Corpus.build(corpus, Path(folder), wanted, counts, progress.update)
        if passages.positions.keys().isdisjoint(documents):
            raise no_match("document", run, next(iter(documents)), corpus, passages.first_id)
        counts["queries of the qrels that the run lacks"] = len(grades.keys() - found)
        chosen = Chosen(list(documents), passages, counts, top_k)
        candidates = []
        for query, of_query in found.items():
            if query not in grades:
                counts.add("queries of the run without a judgement, left out", repr(query))
            elif query not in texts:
                counts.add("queries of the run that --queries does not have, left out", repr(query))
            elif of_one := chosen.candidates(texts[query], of_query, grades[query]):
                candidates.append(of_one)
        if not candidates:
            raise InputError(
                f"{run}: none of its queries can be ranked ({', '.join(counts.lines())})"
            )
        if not any(max([*own.labels, *own.missed]) > 0 for own in candidates):
            raise InputError(f"{qrels}: no passage is judged relevant for a query of {run}")
        yield TrecRun(candidates, passages, counts)
        passages.close()


@dataclass(frozen=True)
class Chosen:
    """Chooses what is ranked for a query among what a run has for it.

    Args:
        names: The ids of all documents of the run.
        passages: The texts of those that have one.
        counts: Counts what is left out.
        top_k: How many of them are ranked at most.
    """

    names: Sequence[str]
    passages: Corpus
    counts: ReasonCounts
    top_k: int | None

    def candidates(
        self, query: Record, found: Found, grades: Mapping[str, int]
    ) -> Candidates | None:
        """The part of a run of one query; None where no document is left."""
        ranked, scores = found.best(self.names)
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
        places = np.array([self.passages.positions[name] for name in ranked], np.int64)
        labels = [judged.pop(name, 0) for name in ranked]
        return Candidates(query.text, places, scores, labels, list(judged.values()))

    def _is_kept(self, query: Record, name: str, grades: Mapping[str, int]) -> bool:
        place = self.passages.positions.get(name)
        if place is None:
            why = "are blank" if name in self.passages.blank_ids else "the corpus lacks"
            self.counts.add(
                f"documents of the run that {why}, left out", f"{name!r} of {query.id!r}"
            )
            return False
        if name == query.id and name not in grades:
            (text,) = self.passages.texts([place])
            if is_own_document(query, text):
                self.counts.add("queries among their own documents, left out there", repr(name))
                return False
        return True


def read_run(
    data_path: DataPath, documents: dict[str, int], counts: ReasonCounts
) -> dict[str, Found]:
    """What a run has for every query, by the query's id; `documents` get numbers as they come.

    Of a document that comes twice for a query the best score counts, as of passages of one
    document.
    """
    found: dict[str, Found] = {}
    seen: dict[int, int] = {}
    last: str | None = None
    for line in read_lines(data_path):
        query, document, score = run_fields(line)
        own = found.setdefault(query, Found())
        if query != last:
            seen, last = {number: place for place, number in enumerate(own.places)}, query
        number = documents.setdefault(document, len(documents))
        if number in seen:
            own.scores[seen[number]] = max(own.scores[seen[number]], score)
            counts.add(
                "documents that come twice for a query: the best score counts", at(document, line)
            )
            continue
        seen[number] = len(own.places)
        own.places.append(number)
        own.scores.append(score)
    return found


def run_fields(line: Line) -> tuple[str, str, float]:
    """Query, document and score of a line, which may lack the tag; ids with spaces need tabs."""
    text = line.text().rstrip()
    fields = [field.strip() for field in text.split("\t")]
    if len(fields) not in (5, 6):
        fields = COLUMN.findall(text)
    if len(fields) not in (5, 6) or not (fields[0] and fields[2]):
        expected = "expected query, Q0, document, rank, score and tag"
        why = "; a column is blank" if len(fields) in (5, 6) else ""
        if len(fields) in (3, 4):
            why = "; MS MARCO's form has no scores: write TREC's"
        elif len(fields) > 6:
            why = "; ids with spaces need tabs between the columns"
        raise line.error(f"{expected}, found {len(fields)} columns{why}")
    try:
        score = float(fields[4])
    except ValueError:
        score = float("nan")
    if not abs(score) <= HIGHEST_SCORE:
        raise line.error(f"the score {fields[4][:40]!r} is no finite number")
    return fields[0], fields[2], score


def read_whole_grades(qrels: DataPath, counts: ReasonCounts) -> dict[str, dict[str, int]]:
    """The grades of every query's judged documents, by their ids.

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
    """Whether a grade is one that trec_eval takes."""
    return abs(grade) <= HIGHEST_GRADE and grade % 1 == 0
