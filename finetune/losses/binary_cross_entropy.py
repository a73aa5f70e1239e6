"""Balanced binary cross-entropy: every pair on its own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Grid, Loss


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of every pair, both sides of a group of the same weight.

    loss(group) = 1/2 mean over p in P of -log sigmoid(s_p)
                + 1/2 mean over n in N of -log sigmoid(-s_n)

    The pointwise loss of Nogueira and Cho 2019, "Passage Re-ranking with BERT" (arXiv:1901.04085).
    Without the weights one positive among fifteen negatives would teach the model to call
    everything wrong. Unlike the losses that compare, it fixes what a score means: above 0 is right.
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses; a side without a passage gives 0."""
        grid = Grid.of(sizes, logits.device)
        scores, positive = logits[grid.places], labels[grid.places] > 0
        losses = softplus(scores.where(~positive, -scores))
        sides = torch.stack([grid.real & positive, grid.real & ~positive]).to(losses.dtype)
        means = (losses * sides).sum(2) / sides.sum(2).clamp(min=1)
        return means.sum() / 2
