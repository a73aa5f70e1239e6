"""A retriever, a reranker and the fusion of both on the same queries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.scores import Logits
from rerank_plugin.fusion import Fusion, rank_features, ranks_of, score_features
from rerank_plugin.model.settings import RerankSettings

from ..data.splits import Hashes
from ..text.normalize import text_digest
from .calibration import FEWEST_QUERIES, Floats, ScoredPairs
from .judged_query import GradedQuery
from .metrics import METRIC, METRICS, QueryValues, ScoredQuery, mean_metrics, query_metrics
from .significance import paired_difference


@dataclass(frozen=True)
class RetrievedQuery:
    """The candidates of a query in the order of the retriever, `[candidates]`."""

    logits: Floats
    scores: Floats
    grades: list[int]
    missed: list[int]

    @classmethod
    def from_graded(cls, logits: Logits, query: GradedQuery) -> Self | None:
        """Return a query with its logits; None where the retriever's scores are not known."""
        if query.retrieval is None:
            return None
        scores, grades = np.asarray(query.retrieval, np.float64), np.asarray(query.labels)
        # The positives of a group are in front, which must not decide between equal scores.
        order = np.lexsort((grades, -scores))
        return cls(
            logits[order].astype(np.float64), scores[order], grades[order].tolist(), query.missed
        )

    def ranked_by(self, scores: Floats | Logits) -> ScoredQuery:
        """Return the query with other scores of its candidates, for metrics."""
        return ScoredQuery(scores.astype(np.float32), self.grades, self.missed)

    def features(self, form: str) -> Floats:
        """Return what the retriever counts in a form of fusion."""
        if form == "score":
            return score_features(self.scores)
        return rank_features(ranks_of(self.scores))


@dataclass(frozen=True)
class RetrievedQueries:
    """Queries whose candidates have logits and retrieval scores."""

    queries: list[RetrievedQuery]
    digests: Hashes
    #: Queries that were left out, as they have no retrieval scores.
    without: int = 0

    @classmethod
    def from_judged(cls, logits: Sequence[Logits], judged: Iterable[GradedQuery]) -> Self:
        """Return the queries that have retrieval scores, with the logits of their candidates."""
        queries, digests, without = [], [], 0
        for row, query in zip(logits, judged, strict=True):
            retrieved = RetrievedQuery.from_graded(row, query)
            if retrieved is None:
                without += 1
                continue
            queries.append(retrieved)
            digests.append(text_digest(query.query))
        return cls(queries, np.array(digests, np.uint64), without)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def are_enough(self) -> bool:
        """Return whether a fit can be expected to hold for other queries."""
        return len(np.unique(self.digests)) >= FEWEST_QUERIES

    def select(self, indices: npt.NDArray[np.int64]) -> "RetrievedQueries":
        """Return some of the queries."""
        return RetrievedQueries([self.queries[i] for i in indices], self.digests[indices])

    def metrics(
        self, scores: Iterable[Floats | Logits], names: Sequence[str] = METRICS
    ) -> dict[str, QueryValues]:
        """Return metrics of every query by scores of its candidates, each `[queries]`."""
        pairs = zip(self.queries, scores, strict=True)
        return query_metrics((query.ranked_by(row) for query, row in pairs), names)

    def ndcg(self, scores: Iterable[Floats | Logits]) -> float:
        """Return the mean of the metric that chooses the form."""
        return float(self.metrics(scores, [METRIC])[METRIC].mean())

    def scored_pairs(self, scores: Sequence[Floats | Logits]) -> ScoredPairs:
        """Return all candidates with some scores, for a calibration."""
        return ScoredPairs(
            np.concatenate(scores).astype(np.float64),
            np.concatenate([np.array(query.grades) > 0 for query in self.queries]),
            np.repeat(self.digests, [len(query.grades) for query in self.queries]),
        )


@dataclass(frozen=True)
class FusionFigures:
    """Metrics of a retriever, of a reranker and of both together.

    Attributes:
        retriever: The mean metrics of the retriever alone, and the number of `queries`.
        reranker: Those of the reranker alone.
        fused: Those of the fusion.
        differences: The paired differences of the fusion to the `retriever` and to the `reranker`,
            with `interval_95`, `p_value` and the numbers of `better` and `worse` queries.
    """

    retriever: dict[str, float]
    reranker: dict[str, float]
    fused: dict[str, float]
    differences: dict[str, Any]

    @classmethod
    def measure(
        cls, queries: RetrievedQueries, scores: Iterable[Logits], names: Sequence[str] = METRICS
    ) -> Self:
        """Measure fused scores of every query's candidates."""
        retriever = queries.metrics((query.scores for query in queries.queries), names)
        reranker = queries.metrics((query.logits for query in queries.queries), names)
        fused = queries.metrics(scores, names)
        return cls(
            retriever=mean_metrics(retriever),
            reranker=mean_metrics(reranker),
            fused=mean_metrics(fused),
            differences={
                "retriever": paired_difference(retriever, fused),
                "reranker": paired_difference(reranker, fused),
            },
        )

    @classmethod
    def from_settings(
        cls,
        settings: RerankSettings,
        logits: Sequence[Logits],
        judged: Iterable[GradedQuery],
        names: Sequence[str],
    ) -> Self | None:
        """Measure the fusion of a model on queries; None without one, or without their scores."""
        fusion = Fusion.from_settings(settings)
        if fusion is None:
            return None
        queries = RetrievedQueries.from_judged(logits, judged)
        if queries.without:
            return None
        scores = (
            fusion.fuse(query.logits.astype(np.float32), query.scores.tolist())[0]
            for query in queries.queries
        )
        return cls.measure(queries, scores, names)
