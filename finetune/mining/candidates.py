"""Candidates for negatives: from our own indexes, or from the run of another search engine."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from rerank_plugin.io.jsonl import DataPath

from ..data.batched import batched
from ..data.beir_files import Record, check_match, no_match
from ..data.corpus import Corpus
from ..data.reason_counts import ReasonCounts
from ..data.run_file import RunQuery, known_position, read_run
from .queries import QUERIES_AT_ONCE, Target, own_document
from .result import MiningResult
from .retrieval import Hits, Retriever, Scores, fuse


class CandidateSearch(Protocol):
    """Finds the candidates of queries, and scores passages as it ranks them."""

    def search(self, targets: Sequence[Target], count: int) -> list[Hits]:
        """Return at most `count` candidates for each query, best first."""
        ...

    def score(self, targets: Sequence[Target], positions: Sequence[Sequence[int]]) -> list[Scores]:
        """Return the scores of given passages for each query, as in a search."""
        ...


class IndexSearch:
    """The fused hits of retrievers over a corpus.

    Args:
        retrievers: The retrievers. The last one scores passages: similarities of embeddings have
            one scale for all queries.
    """

    def __init__(self, retrievers: Sequence[Retriever]) -> None:
        self._retrievers = retrievers

    def search(self, targets: Sequence[Target], count: int) -> list[Hits]:
        """Return at most `count` candidates for each query, best first."""
        queries = [target.query for target in targets]
        lists = [retriever.search(queries, count) for retriever in self._retrievers]
        return [fuse(hits, count) for hits in zip(*lists, strict=True)]

    def score(self, targets: Sequence[Target], positions: Sequence[Sequence[int]]) -> list[Scores]:
        """Return the scores of given passages for each query, by the last retriever."""
        return self._retrievers[-1].score([target.query for target in targets], positions)


class RunSearch:
    """The candidates that a run has.

    Args:
        hits: The documents of each query, by its id.
    """

    def __init__(self, hits: Mapping[str, Hits]) -> None:
        self.hits = hits

    @classmethod
    def from_run(cls, run: "Run", corpus: Corpus, counts: ReasonCounts) -> Self:
        """Find the documents of a run in a corpus; those without a text are counted.

        Raises:
            InputError: the corpus has none of them.
        """
        if corpus.positions.keys().isdisjoint(run.documents):
            raise no_match("document", run.path, run.documents[0], run.corpus, corpus.first_id)
        return cls({query: run.hits(query, corpus, counts) for query in run.queries})

    def search(self, targets: Sequence[Target], count: int) -> list[Hits]:
        """Return the first `count` documents of each query."""
        hits = [self.hits[target.id] for target in targets]
        return [Hits(one.positions[:count], one.scores[:count]) for one in hits]

    def score(self, targets: Sequence[Target], positions: Sequence[Sequence[int]]) -> list[Scores]:
        """Return the scores of given passages in the run; -inf for those that it lacks."""
        scores = []
        for target, passages in zip(targets, positions, strict=True):
            hits = self.hits[target.id]
            known = dict(zip(hits.positions.tolist(), hits.scores.tolist(), strict=True))
            scores.append(np.array([known.get(p, -np.inf) for p in passages], np.float32))
        return scores


@dataclass(frozen=True)
class Run:
    """The documents that a search engine ranked for queries; their texts are not known yet."""

    path: DataPath
    #: The path of the texts, for messages.
    corpus: DataPath
    queries: dict[str, RunQuery]
    #: The ids of all documents.
    documents: Sequence[str]

    @classmethod
    def read(
        cls,
        path: DataPath,
        corpus: DataPath,
        queries: DataPath,
        ids: Set[str],
        counts: ReasonCounts,
    ) -> Self:
        """Read a run, and leave out the queries that are not known.

        Args:
            path: Lines of `query Q0 document rank score tag`, ranked by score.
            corpus: The path of the texts.
            queries: The path of the queries.
            ids: The ids of the queries.
            counts: Counts what is left out.

        Raises:
            InputError: a line is bad, or none of the queries is known.
        """
        documents: dict[str, int] = {}
        ranked = read_run(path, documents, counts)
        check_match("query", path, ranked, queries, ids)
        for name in [name for name in ranked if name not in ids]:
            counts.add("queries of the run that --queries does not have, left out", repr(name))
            del ranked[name]
        return cls(path, corpus, ranked, list(documents))

    def hits(self, query: str, corpus: Corpus, counts: ReasonCounts) -> Hits:
        """Return the documents of a query that have a text, best first."""
        ranked, scores = self.queries[query].ranked(self.documents)
        known = [known_position(name, query, corpus, counts) for name in ranked]
        positions = [position for position in known if position is not None]
        kept = np.array([position is not None for position in known], bool)
        return Hits(np.array(positions, np.int64), scores[kept])


def unlabelled_targets(
    queries: Sequence[Record], search: CandidateSearch, corpus: Corpus, result: MiningResult
) -> list[Target]:
    """Return queries without labels, with their best candidates in the place of positives."""
    targets = []
    for batch in batched(queries, QUERIES_AT_ONCE):
        unknown = [
            Target(query.id, query.text, [], None, own_document(query, corpus), query.instruction)
            for query in batch
        ]
        for target, hits in zip(unknown, search.search(unknown, 2), strict=True):
            others = [found for found in hits.positions.tolist() if found not in target.copies]
            if others:
                targets.append(replace(target, positives=others[:1]))
            else:
                result.queries_left_out.add("queries without a candidate", repr(target.id))
    result.remarks["queries whose first passage is the retriever's best, not a label"] = len(
        targets
    )
    return targets
