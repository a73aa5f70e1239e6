"""How well a scorer ranks the candidates of queries: metrics for every query, and the loss."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rerank_plugin.engine.scorer import Logits, ScoresPairs

from ..data.batched import batched
from ..losses.base import Loss, teacher_scores
from .calibration import Scored
from .judged import Judged
from .metrics import METRICS, Ranking, Values, mean_metrics, query_metrics

#: Queries whose pairs are scored together; enough for the pairs to sort well by length.
QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: every metric for every query `[queries]`, and the mean loss."""

    values: dict[str, Values]
    #: 0 where no loss was asked for.
    loss: float
    #: Of every query the logits of its candidates, in their order; not in every record.
    logits: list[Logits] | None = None
    #: Whether they are a retriever's scores, whose ties it has broken itself.
    in_order: bool = False

    def ranking(self, place: int, judged: Judged) -> Ranking:
        """How the candidates of one of the queries were scored."""
        assert self.logits is not None, "an evaluation without its logits"
        return Ranking(self.logits[place], judged.labels, judged.missed, self.in_order)

    def scored(self, judged: Iterable[Judged]) -> Scored:
        """The logits of all candidates of the queries that were evaluated."""
        assert self.logits is not None, "an evaluation without its logits"
        return Scored.of_queries(self.logits, judged)

    @property
    def means(self) -> dict[str, float]:
        """The means over queries, and how many `queries` there were."""
        return mean_metrics(self.values)

    def as_record(self, *, with_logits: bool = False) -> dict[str, Any]:
        """The same as JSON, with or without the logits."""
        values = {name: column.tolist() for name, column in self.values.items()}
        record = {"values": values, "loss": self.loss}
        if with_logits and self.logits is not None:
            record["logits"] = [logits.tolist() for logits in self.logits]
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Evaluation":
        """What `as_record` gave."""
        values = {name: np.array(column) for name, column in record["values"].items()}
        logits = record.get("logits")
        arrays = None if logits is None else [np.array(own, np.float32) for own in logits]
        return cls(values, record["loss"], arrays)


def evaluate_groups(
    scorer: ScoresPairs,
    judged: Iterable[Judged],
    loss: Loss | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Rank every query's candidates, and look where the positives end up.

    What has been evaluated is kept as scores, not as texts.

    Args:
        scorer: What is evaluated.
        judged: Groups, or what a retriever found; all their candidates are scored, whatever size
            groups have in training.
        loss: Its mean over queries is computed too, over all candidates of each.
        progress: Called with a number of pairs whenever that many more are scored.
    """
    values: list[dict[str, Values]] = []
    logits_of_queries: list[Logits] = []
    loss_sum = 0.0
    for part in batched(judged, QUERIES_AT_ONCE):
        pairs = [(own.query, document) for own in part for document in own.documents]
        logits = scorer.logits(pairs, progress)
        sizes = [len(own.documents) for own in part]
        labels = [own.labels for own in part]
        if loss:
            flat = torch.tensor([label for own in labels for label in own], dtype=torch.float32)
            loss_sum += float(loss(torch.from_numpy(logits), flat, sizes, teacher_scores(part)))
        found = np.split(logits, np.cumsum(sizes)[:-1])
        logits_of_queries += found
        missed = [own.missed for own in part]
        values.append(query_metrics(map(Ranking, found, labels, missed)))
    joined = {name: np.concatenate([part[name] for part in values]) for name in METRICS}
    return Evaluation(joined, loss_sum / len(logits_of_queries), logits_of_queries)


def interleaved(parts: Sequence[Evaluation | None]) -> Evaluation:
    """One evaluation from those of processes that took every so manyth group each."""
    found = [part for part in parts if part is not None]
    counts = [len(next(iter(part.values.values()))) for part in found]
    order = np.argsort(
        np.concatenate([np.arange(count) * len(parts) + i for i, count in enumerate(counts)])
    )
    values = {
        name: np.concatenate([part.values[name] for part in found])[order]
        for name in found[0].values
    }
    losses = [part.loss * count for part, count in zip(found, counts, strict=True)]
    logits = [own for part in found for own in part.logits or ()]
    return Evaluation(values, sum(losses) / sum(counts), [logits[place] for place in order])
