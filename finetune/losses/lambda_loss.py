"""LambdaLoss: pairs weighted by how much swapping them changes nDCG."""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Comparisons, Loss, PaddedGroups

#: The weight of delta, as in the paper.
MU = 10.0


class LambdaLoss(Loss):
    """NDCG-Loss2++: the logistic loss of pairs, weighted by how much swapping them changes nDCG.

    loss(group) = sum over pairs (p, n) with grade(p) > grade(n) of
                  (rho + mu delta) |G_p - G_n| log2(1 + exp(s_n - s_p))
    rho   = |1/D(i) - 1/D(j)|             for the current ranks i and j of p and n
    delta = |1/D(|i-j|) - 1/D(|i-j| + 1)|
    D(i)  = log2(1 + i),  G = (2^grade - 1) / the best DCG of the group,  mu = 10

    Wang et al. 2018, "The LambdaLoss Framework for Ranking Metric Optimization" (CIKM), equation
    18 without a cutoff. Ranks have no gradient. Among equal scores lower grades rank first, as in
    evaluation: their order in the group carries no information.
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses; 0 for a group without positives or negatives."""
        comparisons = Comparisons.from_labels(labels, sizes)
        ranks = current_ranks(logits.detach(), labels, comparisons.groups)
        positive, negative = ranks[comparisons.positives][:, None], ranks[comparisons.others]
        rho = (1 / discount(positive) - 1 / discount(negative)).abs()
        # A positive at distance 0 from itself is masked below: any distance is correct.
        distance = (positive - negative).abs().clamp(min=1)
        delta = 1 / discount(distance) - 1 / discount(distance + 1)
        gains = normalised_gains(labels.to(logits.dtype), comparisons.groups)
        weights = (rho + MU * delta) * comparisons.difference(gains).abs() * comparisons.mask
        return (weights * softplus(-comparisons.difference(logits))).sum() / log(2)


def discount(ranks: Tensor) -> Tensor:
    """Return the discount of ranks, which count from 1."""
    return (1 + ranks).log2()


def current_ranks(logits: Tensor, labels: Tensor, groups: PaddedGroups) -> Tensor:
    """Return the rank of every passage in its group, from 1, `[pairs]`, in the logits' dtype."""
    # Two stable sorts: by label, then by score.
    first = labels[groups.indices].masked_fill(~groups.mask, torch.inf).argsort(dim=1, stable=True)
    scores = logits[groups.indices].masked_fill(~groups.mask, -torch.inf).gather(1, first)
    order = first.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    columns = torch.arange(1, order.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    ranks = torch.empty_like(order, dtype=logits.dtype).scatter_(1, order, columns.expand_as(order))
    return torch.empty_like(logits).index_copy_(0, groups.indices[groups.mask], ranks[groups.mask])


def normalised_gains(labels: Tensor, groups: PaddedGroups) -> Tensor:
    """Return the gain of every passage over the best DCG of its group, `[pairs]`."""
    gains = 2**labels - 1
    rows = gains[groups.indices].masked_fill(~groups.mask, 0).sort(1, descending=True).values
    columns = torch.arange(1, rows.shape[1] + 1, device=labels.device, dtype=labels.dtype)
    best = (rows / discount(columns)).sum(1, keepdim=True)
    # A group without positives has no gain.
    shares = gains[groups.indices] / best.where(best > 0, 1)
    return torch.empty_like(labels).index_copy_(0, groups.indices[groups.mask], shares[groups.mask])
