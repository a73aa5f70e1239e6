"""TREC runs: the documents that a search engine ranks for each query, and their scores."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rerank_plugin.engine.scores import Logits
from rerank_plugin.io.jsonl import DataPath, Line, read_lines

from .beir_files import COLUMN, at
from .corpus import Corpus
from .reason_counts import ReasonCounts

#: Scores are kept as float32.
HIGHEST_SCORE = float(np.finfo(np.float32).max)


@dataclass
class RunQuery:
    """The documents of a query in a run, as indices into all documents of the run, and scores."""

    indices: "array[int]" = field(default_factory=lambda: array("i"))
    scores: "array[float]" = field(default_factory=lambda: array("f"))

    def ranked(self, names: Sequence[str]) -> tuple[list[str], Logits]:
        """Return the ids of the documents and their scores, the best first.

        Of documents with equal scores the last id comes first, as in trec_eval.

        Args:
            names: The ids of all documents of the run.
        """
        documents = (names[index] for index in self.indices)
        ranked = sorted(zip(self.scores, documents, strict=True), reverse=True)
        return [name for _, name in ranked], np.array([score for score, _ in ranked], np.float32)


def read_run(
    data_path: DataPath, documents: dict[str, int], counts: ReasonCounts
) -> dict[str, RunQuery]:
    """Return the documents of every query, by the query's id.

    If a document comes twice for a query, the best score counts, as for passages of one document.

    Args:
        data_path: The run.
        documents: Gets the index of every document by its id.
        counts: Counts documents that come twice.
    """
    queries: dict[str, RunQuery] = {}
    seen: dict[int, int] = {}
    last: str | None = None
    for line in read_lines(data_path):
        name, document, score = run_fields(line)
        query = queries.setdefault(name, RunQuery())
        if name != last:
            seen, last = {index: row for row, index in enumerate(query.indices)}, name
        index = documents.setdefault(document, len(documents))
        if index in seen:
            query.scores[seen[index]] = max(query.scores[seen[index]], score)
            counts.add(
                "documents that come twice for a query: the best score counts", at(document, line)
            )
            continue
        seen[index] = len(query.indices)
        query.indices.append(index)
        query.scores.append(score)
    return queries


def run_fields(line: Line) -> tuple[str, str, float]:
    """Return query, document and score of a line; the tag may be missing.

    Ids with spaces need tabs between the columns.
    """
    text = line.text().rstrip()
    fields = [field.strip() for field in text.split("\t")]
    if len(fields) not in (5, 6):
        fields = COLUMN.findall(text)
    if len(fields) not in (5, 6) or not (fields[0] and fields[2]):
        expected = "expected query, Q0, document, rank, score and tag"
        why = "; a column is blank" if len(fields) in (5, 6) else ""
        if len(fields) in (3, 4):
            why = "; MS MARCO's format has no scores: use TREC's"
        elif len(fields) > 6:
            why = "; ids with spaces need tabs between the columns"
        raise line.error(f"{expected}, found {len(fields)} columns{why}")
    try:
        score = float(fields[4])
    except ValueError:
        score = float("nan")
    if not abs(score) <= HIGHEST_SCORE:
        raise line.error(f"the score {fields[4][:40]!r} is not a finite number")
    return fields[0], fields[2], score


def known_position(document: str, query: str, corpus: Corpus, counts: ReasonCounts) -> int | None:
    """Return the position of a document of a run in the corpus; without a text None, counted.

    Args:
        document: Its id.
        query: The id of the query that it is ranked for, for messages.
        corpus: The texts of the documents.
        counts: Counts documents without a text.
    """
    position = corpus.positions.get(document)
    if position is None:
        why = "are blank" if document in corpus.blank_ids else "the corpus lacks"
        counts.add(f"documents of the run that {why}, left out", f"{document!r} of {query!r}")
    return position
