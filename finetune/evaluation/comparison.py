"""The comparison of two models on the same queries."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from ..data.splits import Hashes
from ..text.normalize import text_digest
from .calibration import Flags, ScoredPairs
from .compared_queries import ComparedQuery, compared_queries, most_hurt, most_improved
from .judged_query import GradedQuery, JudgedQueries
from .metrics import METRIC
from .scoring import Evaluation
from .significance import compare_metrics
from .trec_run import TrecRun

#: Queries that are kept with texts, of the most improved ones and of the most hurt ones each.
SHOWN_QUERIES = 10


@dataclass(frozen=True)
class Comparison:
    """Two models on the same queries."""

    #: The first model, or a retriever's run, and the second.
    names: tuple[str, str]
    evaluations: tuple[Evaluation, Evaluation]
    #: Whether each candidate is relevant, `[pairs]`, and the digest of every query, `[queries]`.
    relevant: Flags
    digests: Hashes
    #: The metric by which they are compared.
    metric: str
    #: Whether the second has the higher mean.
    improved: bool
    #: The paired difference, as `significance.paired_difference` describes it.
    difference: Mapping[str, Any]
    #: The queries that gain most, and those that lose most, with the best documents of both.
    improved_queries: list[ComparedQuery]
    hurt_queries: list[ComparedQuery]

    @classmethod
    def from_evaluations(
        cls,
        judged: JudgedQueries,
        names: tuple[str, str],
        evaluations: tuple[Evaluation, Evaluation],
        *,
        metric: str = METRIC,
        shown: int = SHOWN_QUERIES,
    ) -> Self:
        """Compare two evaluations of the same queries.

        Args:
            judged: The queries.
            names: The names of the models.
            evaluations: Their evaluations, with logits.
            metric: The metric by which they are compared.
            shown: Queries that are kept with texts, of each kind.
        """
        first, second = evaluations
        compared = compare_metrics(first.values, second.values, metric=metric)
        improved, hurt = (
            compared_queries(judged, evaluations, metric, select(evaluations, metric, shown))
            for select in (most_improved, most_hurt)
        )
        labels, digests = [], []
        for query in graded_queries(judged):
            labels.append(np.array(query.labels) > 0)
            digests.append(text_digest(query.query))
        return cls(
            names,
            evaluations,
            np.concatenate(labels),
            np.array(digests, np.uint64),
            metric,
            compared["improved"],
            compared["difference"],
            improved,
            hurt,
        )

    @cached_property
    def pairs(self) -> tuple[ScoredPairs, ScoredPairs]:
        """The logits of each model, with the relevance of all candidates."""
        first, second = (evaluation.logits or [] for evaluation in self.evaluations)
        queries = np.repeat(self.digests, list(map(len, second)))
        return (
            ScoredPairs(np.concatenate(first).astype(np.float64), self.relevant, queries),
            ScoredPairs(np.concatenate(second).astype(np.float64), self.relevant, queries),
        )

    @property
    def queries(self) -> int:
        """The number of queries."""
        count: int = self.difference["queries"]
        return count

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `metrics.json` has it."""
        before, after = (evaluation.means for evaluation in self.evaluations)
        return {
            "improved": self.improved,
            "before": before,
            "after": after,
            "difference": dict(self.difference),
        }


def graded_queries(judged: JudgedQueries) -> Iterable[GradedQuery]:
    """Return the same queries, without reading the texts of documents where that can be avoided."""
    return judged.candidates if isinstance(judged, TrecRun) else judged
