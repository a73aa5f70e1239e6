"""The comparison of two models on the same queries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from .calibration import ScoredPairs
from .compared_queries import ComparedQuery, compared_queries, most_hurt, most_improved
from .judged_query import JudgedQueries
from .metrics import METRIC
from .scoring import Evaluation
from .significance import compare_metrics

#: Queries that are kept with texts, of the most improved ones and of the most hurt ones each.
SHOWN = 10


@dataclass(frozen=True)
class Comparison:
    """Two models on the same queries."""

    #: The first model, or a retriever's run, and the second.
    names: tuple[str, str]
    evaluations: tuple[Evaluation, Evaluation]
    #: The logits of both, with the relevance of all documents.
    pairs: tuple[ScoredPairs, ScoredPairs]
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
        shown: int = SHOWN,
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
        pairs = second.scored_pairs(judged)
        return cls(
            names,
            evaluations,
            (pairs.with_logits(first.logits or ()), pairs),
            metric,
            compared["improved"],
            compared["difference"],
            improved,
            hurt,
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
