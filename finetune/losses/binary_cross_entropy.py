"""Balanced binary cross-entropy of every pair."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Loss, PaddedGroups


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of every pair; positives and negatives of a group weigh the same.

    loss(group) = 1/2 mean over p in P of -log sigmoid(s_p)
                + 1/2 mean over n in N of -log sigmoid(-s_n)

    The pointwise loss of Nogueira and Cho 2019, "Passage Re-ranking with BERT" (arXiv:1901.04085).
    Without the weights, one positive among fifteen negatives would teach the model to reject every
    passage. Unlike losses that compare passages, it fixes the scale: a logit above 0 is relevant.
    Every grade of 1 or more is relevant, as in calibration: how high it is has no effect.
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses; positives or negatives that are missing give 0."""
        groups = PaddedGroups.from_sizes(sizes, logits.device)
        scores, positive = logits[groups.indices], labels[groups.indices] > 0
        losses = softplus(scores.where(~positive, -scores))
        sides = torch.stack([groups.mask & positive, groups.mask & ~positive]).to(losses.dtype)
        means = (losses * sides).sum(2) / sides.sum(2).clamp(min=1)
        return means.sum() / 2
