"""What a retriever found, as TREC runs have it, with texts and judgements: what it would rerank."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rerank_plugin.console import bar
from rerank_plugin.errors import InputError
from rerank_plugin.jsonl import DataPath, Line, read_lines
from rerank_plugin.scoring import Logits

from .corpus import Corpus, Places
from .evaluation import Evaluation
from .metrics import Ranking, query_metrics
from .records import read_qrels, read_queries

#: trec_eval counts documents of every grade up to the highest there is.
HIGHEST_GRADE = 1000


@dataclass(frozen=True)
class Retrieved:
    """A query, what was found for it, and what that is worth; see `judged.Judged`."""

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

    def best(self, names: Sequence[str], count: int | None) -> tuple[list[str], Logits]:
        """Documents, of all `names`, and scores, the best first; `count` of them at most.

        Documents of one score stand as trec_eval has them, the last by name first.
        """
        documents = (names[place] for place in self.places)
        found = sorted(zip(self.scores, documents, strict=True), reverse=True)[:count]
        return [name for _, name in found], np.array([score for score, _ in found], np.float32)


@dataclass(frozen=True)
class Candidates:
    """A query's part of a run, without texts."""

    query: str
    places: Places
    scores: Logits
    labels: list[int]
    missed: list[int]


class TrecRun:
    """The judged queries of a run, each with its texts when it is asked for.

    Args:
        candidates: Of every query.
        corpus: Where the texts are.
        left_out: How many queries of what kind are not among them.
    """

    def __init__(
        self, candidates: Sequence[Candidates], corpus: Corpus, left_out: Counter[str]
    ) -> None:
        self.candidates = candidates
        self.left_out = left_out
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
        rankings = [Ranking(own.scores, own.labels, own.missed, True) for own in self.candidates]
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
    left out, documents without a judgement are wrong, and scores are float32. A bar on stderr shows
    how the corpus is read.

    Args:
        run: Lines of `query Q0 document rank score tag`; the score says who comes first.
        qrels: Judgements as `records.read_qrels` takes them, with whole grades.
        queries: Texts of the queries.
        corpus: Texts of the documents.
        top_k: Only so many documents of a query, those that the run puts first.

    Raises:
        InputError: a line is bad, a text is missing, or no query is left.
    """
    grades = read_grades(qrels)
    documents: dict[str, int] = {}
    found = read_run(run, documents)
    texts = {query.id: query.text for query in read_queries(queries)}
    with TemporaryDirectory(prefix="rerank-run-") as folder:
        with bar("reading", "passage") as progress:
            passages = Corpus.build(corpus, Path(folder), set(documents), progress.update)
        names = list(documents)
        left_out = Counter({"queries of the qrels that the run lacks": len(grades.keys() - found)})
        candidates = []
        for query, own in found.items():
            if query not in grades:
                left_out["queries of the run without a judgement"] += 1
                continue
            if query not in texts:
                raise InputError(f"{queries}: no query has the id {query!r}, which {run} ranks for")
            judged = dict(grades[query])
            ranked, scores = own.best(names, top_k)
            lacking = next((name for name in ranked if name not in passages.places), None)
            if lacking is not None:
                raise InputError(
                    f"{corpus}: no passage with a text has the id {lacking!r}, which {run} has for "
                    f"query {query!r}"
                )
            places = np.array([passages.places[name] for name in ranked], np.int64)
            labels = [judged.pop(name, 0) for name in ranked]
            candidates.append(
                Candidates(texts[query], places, scores, labels, list(judged.values()))
            )
        if not candidates:
            raise InputError(f"{run}: none of its queries is judged in {qrels}")
        if not any(max([*own.labels, *own.missed]) > 0 for own in candidates):
            raise InputError(f"{qrels}: no passage is judged right for a query of {run}")
        yield TrecRun(candidates, passages, +left_out)
        passages.close()


def read_run(data_path: DataPath, documents: dict[str, int]) -> dict[str, Found]:
    """What a run has for every query, by the query's id; `documents` get numbers as they come."""
    found: dict[str, Found] = {}
    seen: set[int] = set()
    last: str | None = None
    for line in read_lines(data_path):
        query, document, score = run_fields(line)
        own = found.setdefault(query, Found())
        if query != last:
            seen, last = set(own.places), query
        number = documents.setdefault(document, len(documents))
        if number in seen:
            raise line.error(f"document {document!r} comes twice for query {query!r}")
        seen.add(number)
        own.places.append(number)
        own.scores.append(score)
    return found


def run_fields(line: Line) -> tuple[str, str, float]:
    """Query, document and score of a line."""
    fields = line.text().split()
    if len(fields) != 6:
        raise line.error(
            f"expected query, Q0, document, rank, score and tag, found {len(fields)} columns"
        )
    try:
        score = float(fields[4])
    except ValueError:
        score = float("nan")
    if not np.isfinite(score):
        raise line.error(f"the score {fields[4]!r} is no finite number")
    return fields[0], fields[2], score


def read_grades(qrels: DataPath) -> dict[str, dict[str, int]]:
    """The grades of every query's judged documents, by their ids.

    Raises:
        InputError: a grade is not whole, or a document is judged twice and differently.
    """
    grades: dict[str, dict[str, int]] = {}
    for judgement in read_qrels(qrels):
        if abs(judgement.grade) > HIGHEST_GRADE or judgement.grade % 1:
            raise judgement.line.error(
                f"the grade {judgement.grade:g} is not a whole number up to {HIGHEST_GRADE}"
            )
        grade = int(judgement.grade)
        own = grades.setdefault(judgement.query, {})
        if own.setdefault(judgement.passage, grade) != grade:
            raise judgement.line.error(
                f"passage {judgement.passage!r} is judged twice for query {judgement.query!r}, "
                f"{own[judgement.passage]} and {grade}"
            )
    return grades
