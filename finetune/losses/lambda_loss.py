"""LambdaRank's successor: pairs weighted by what swapping them does to nDCG."""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Grid, Loss, Opposites

#: Weight of the tighter bound against LambdaRank's, as in the paper.
MU = 10.0


class LambdaRank(Loss):
    """NDCG-Loss2++: logistic loss of pairs, weighted by what they are worth in nDCG.

    loss(group) = sum over p in P, n in N of
                  (rho + mu delta) |G_p - G_n| log2(1 + exp(s_n - s_p))
    rho   = |1/D(i) - 1/D(j)|             for the ranks i and j that p and n have now
    delta = |1/D(|i-j|) - 1/D(|i-j| + 1)|
    D(i)  = log2(1 + i),  G = (2^label - 1) / the best DCG of the group,  mu = 10

    Wang et al. 2018, "The LambdaLoss Framework for Ranking Metric Optimization" (CIKM), equation
    18 without a cut. Ranks are constants to the gradient. Among equal scores a negative ranks
    first, as in evaluation: where it stands in its group says nothing.
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses; a group without a positive or a negative gives 0."""
        opposites = Opposites.of(labels, sizes)
        ranks = current_ranks(logits.detach(), labels, opposites.grid)
        positive, negative = ranks[opposites.positives][:, None], ranks[opposites.negatives]
        rho = (1 / discount(positive) - 1 / discount(negative)).abs()
        # A passage is its own neighbour where nothing is to be compared: any distance will do.
        apart = (positive - negative).abs().clamp(min=1)
        delta = 1 / discount(apart) - 1 / discount(apart + 1)
        gains = normalised_gains(labels.to(logits.dtype), opposites.grid)
        weights = (rho + MU * delta) * opposites.difference(gains).abs() * opposites.both
        return (weights * softplus(-opposites.difference(logits))).sum() / log(2)


def discount(ranks: Tensor) -> Tensor:
    """The discount of ranks that count from 1."""
    return (1 + ranks).log2()


def current_ranks(logits: Tensor, labels: Tensor, grid: Grid) -> Tensor:
    """The rank of every passage in its group from 1, `[pairs]`, in the logits' precision."""
    # Two stable sorts: by label, and by score over that.
    first = labels[grid.places].masked_fill(~grid.real, torch.inf).argsort(dim=1, stable=True)
    scores = logits[grid.places].masked_fill(~grid.real, -torch.inf).gather(1, first)
    order = first.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    columns = torch.arange(1, order.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    ranks = torch.empty_like(order, dtype=logits.dtype).scatter_(1, order, columns.expand_as(order))
    return torch.empty_like(logits).index_copy_(0, grid.places[grid.real], ranks[grid.real])


def normalised_gains(labels: Tensor, grid: Grid) -> Tensor:
    """The gain of every passage over the best DCG of its group, `[pairs]`."""
    gains = 2**labels - 1
    rows = gains[grid.places].masked_fill(~grid.real, 0).sort(1, descending=True).values
    columns = torch.arange(1, rows.shape[1] + 1, device=labels.device, dtype=labels.dtype)
    best = (rows / discount(columns)).sum(1, keepdim=True)
    # Where no passage is right there is nothing to gain.
    shares = gains[grid.places] / best.where(best > 0, 1)
    return torch.empty_like(labels).index_copy_(0, grid.places[grid.real], shares[grid.real])
