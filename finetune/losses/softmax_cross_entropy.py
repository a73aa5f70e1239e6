"""Softmax cross-entropy of each positive against the negatives of its group."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Grid, Loss


class SoftmaxCrossEntropy(Loss):
    """Softmax cross-entropy of each positive against the negatives of its group.

    loss(group) = mean over p in P of -log( exp s_p / (exp s_p + sum over n in N of exp s_n) )

    Groups may differ in size. With several positives each is compared with the negatives
    alone, so that they do not push each other down. With one it is the localised contrastive
    estimation of Gao et al. 2021, "Rethink Training of BERT Rerankers" (arXiv:2101.08751).
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses; a group without a positive or a negative gives 0."""
        grid = Grid.of(sizes, logits.device)
        scores, positive = logits[grid.places], labels[grid.places] > 0
        positives, negatives = grid.real & positive, grid.real & ~positive
        # Not minus infinity: the gradient of a group without a negative would be no number.
        nothing = torch.finfo(logits.dtype).min
        opponents = scores.masked_fill(~negatives, nothing).logsumexp(1, keepdim=True)
        # -log softmax of a two-way choice between p and the whole of N.
        losses = softplus(opponents - scores) * positives
        return (losses.sum(1) / positives.sum(1).clamp(min=1)).sum()
