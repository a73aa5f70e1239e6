"""Score the candidates of queries in batches, and measure how well they are ranked."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rerank_plugin.engine.scorer import ScoresPairs
from rerank_plugin.engine.scores import Logits
from rerank_plugin.inputs import make_pairs

from ..data.batched import batched
from ..losses.base import Loss, teacher_scores
from .calibration import ScoredPairs
from .judged_query import JudgedQuery
from .metrics import BATCH_QUERIES, METRICS, QueryValues, ScoredQuery, mean_metrics, query_metrics


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one model on some queries."""

    #: Every metric of every query, `[queries]`.
    values: dict[str, QueryValues]
    #: The mean loss over queries; 0 without a loss.
    loss: float
    #: The logits of every query's candidates, `[candidates]` each; not in every record.
    logits: list[Logits] | None = None
    #: Whether the logits are the scores of a retriever, which has broken ties itself.
    in_order: bool = False

    def scored_query(self, index: int, query: JudgedQuery) -> ScoredQuery:
        """Return the scores and the grades of the candidates of one of the queries."""
        assert self.logits is not None, "an evaluation without its logits"
        return ScoredQuery(self.logits[index], query.labels, query.missed, self.in_order)

    def scored_pairs(self, judged: Iterable[JudgedQuery]) -> ScoredPairs:
        """Return the logits and the relevance of all candidates of the evaluated queries."""
        assert self.logits is not None, "an evaluation without its logits"
        return ScoredPairs.from_queries(self.logits, judged)

    @property
    def means(self) -> dict[str, float]:
        """The means over queries, and the number of `queries`."""
        return mean_metrics(self.values)

    def to_dict(self, *, with_logits: bool = False) -> dict[str, Any]:
        """Return the evaluation as JSON values, with or without the logits."""
        values = {name: column.tolist() for name, column in self.values.items()}
        record = {"values": values, "loss": self.loss}
        if with_logits and self.logits is not None:
            record["logits"] = [logits.tolist() for logits in self.logits]
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Evaluation":
        """Return the evaluation that `to_dict` described."""
        values = {name: np.array(column) for name, column in record["values"].items()}
        logits = record.get("logits")
        arrays = None if logits is None else [np.array(row, np.float32) for row in logits]
        return cls(values, record["loss"], arrays)


def evaluate_groups(
    scorer: ScoresPairs,
    judged: Iterable[JudgedQuery],
    loss: Loss | None = None,
    progress: Callable[[int], Any] | None = None,
    metrics: Sequence[str] = METRICS,
) -> Evaluation:
    """Score all candidates of every query, and measure how well they are ranked.

    Scores are kept, texts are not.

    Args:
        scorer: The model.
        judged: Groups, or the judged queries of a retriever's run; all their candidates are
            scored, whatever the size of groups in training.
        loss: A loss whose mean over queries is computed too, over all candidates of each.
        progress: Called with a number of pairs whenever that many more are scored.
        metrics: The names of the metrics.
    """
    values: list[dict[str, QueryValues]] = []
    logits: list[Logits] = []
    loss_sum = 0.0
    for batch in batched(judged, BATCH_QUERIES):
        pairs = [
            pair
            for query in batch
            for pair in make_pairs(query.query, query.documents, query.instruction)
        ]
        flat_logits = scorer.logits(pairs, progress)
        sizes = [len(query.documents) for query in batch]
        if loss:
            labels = torch.tensor([label for query in batch for label in query.labels]).float()
            teacher = teacher_scores(batch)
            loss_sum += float(loss(torch.from_numpy(flat_logits), labels, sizes, teacher))
        batch_logits = np.split(flat_logits, np.cumsum(sizes)[:-1])
        logits += batch_logits
        scored = zip(batch_logits, batch, strict=True)
        queries = [ScoredQuery(row, query.labels, query.missed) for row, query in scored]
        values.append(query_metrics(queries, metrics))
    joined = {name: np.concatenate([batch[name] for batch in values]) for name in metrics}
    return Evaluation(joined, loss_sum / len(logits), logits)


def interleaved(per_process: Sequence[Evaluation | None]) -> Evaluation:
    """Join the evaluations of n processes, each of which took every n-th query."""
    evaluations = [evaluation for evaluation in per_process if evaluation is not None]
    counts = [len(next(iter(evaluation.values.values()))) for evaluation in evaluations]
    order = np.argsort(
        np.concatenate([np.arange(count) * len(per_process) + i for i, count in enumerate(counts)])
    )
    values = {
        name: np.concatenate([evaluation.values[name] for evaluation in evaluations])[order]
        for name in evaluations[0].values
    }
    losses = [
        evaluation.loss * count for evaluation, count in zip(evaluations, counts, strict=True)
    ]
    logits = [row for evaluation in evaluations for row in evaluation.logits or ()]
    return Evaluation(values, sum(losses) / sum(counts), [logits[index] for index in order])
