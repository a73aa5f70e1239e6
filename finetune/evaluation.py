"""How well a scorer ranks groups: metrics for every query, and the loss."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rerank_plugin.encoding import Pair
from rerank_plugin.scoring import Logits

from .calibration import Scored
from .groups import Group
from .losses.contract import Loss
from .metrics import Values, mean_metrics, query_metrics
from .sampling import Sample

#: Groups whose pairs are scored together; enough for the pairs to sort well by length.
GROUPS_AT_ONCE = 256


class ScoresPairs(Protocol):
    """What can be evaluated: a `Reranker`, or the scorer of a model in training."""

    def logits(self, pairs: Sequence[Pair], progress: Callable[[int], Any] | None = None) -> Logits:
        """One raw logit a pair, float32 `[pairs]`."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: every metric for every query `[queries]`, and the mean loss."""

    values: dict[str, Values]
    #: 0 where no loss was asked for.
    loss: float
    #: Of every group the logits of its candidates, in their order; not in every record.
    logits: list[Logits] | None = None

    def scored(self, groups: Iterable[Group]) -> Scored:
        """The logits of all candidates of the groups that were evaluated."""
        assert self.logits is not None, "an evaluation without its logits"
        return Scored.of_groups(self.logits, groups)

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
    groups: Iterable[Group],
    loss: Loss | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Rank every group's candidates, and look where the right ones end up.

    Args:
        scorer: What is evaluated.
        groups: All their candidates are scored, whatever size groups have in training.
        loss: Its mean over groups is computed too, over all candidates of each.
        progress: Called with a number of pairs whenever that many more are scored.
    """
    rankings: list[tuple[Logits, list[int]]] = []
    loss_sum = 0.0
    for part in in_parts(groups, GROUPS_AT_ONCE):
        pairs = [pair for group in part for pair in group_pairs(group)]
        logits = scorer.logits(pairs, progress)
        sizes = [len(group.documents) for group in part]
        labels = [label for group in part for label in group.labels]
        if loss:
            tensors = torch.from_numpy(logits), torch.tensor(labels, dtype=torch.float32)
            loss_sum += float(loss(*tensors, sizes, teacher_scores(part)))
        start = 0
        for group, size in zip(part, sizes, strict=True):
            rankings.append((logits[start : start + size], group.labels))
            start += size
    logits_of_groups = [logits for logits, _ in rankings]
    return Evaluation(query_metrics(rankings), loss_sum / len(rankings), logits_of_groups)


def group_pairs(group: Group) -> list[Pair]:
    """A group's (query, document) pairs, the right ones first."""
    return [(group.query, document) for document in group.documents]


def teacher_scores(groups: Iterable[Group | Sample]) -> Tensor | None:
    """The teacher's scores of all pairs, float32 `[pairs]`; None if a group has none."""
    scores: list[float] = []
    for group in groups:
        if group.teacher is None:
            return None
        scores += group.teacher
    return torch.tensor(scores, dtype=torch.float32)


def in_parts(groups: Iterable[Group], size: int) -> Iterator[Sequence[Group]]:
    """Groups in lists of at most `size`."""
    iterator = iter(groups)
    while part := list(islice(iterator, size)):
        yield part
