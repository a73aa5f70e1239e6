"""Softmax cross-entropy of each positive against the negatives of its group."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Loss, PaddedGroups


class SoftmaxCrossEntropy(Loss):
    """Softmax cross-entropy of each positive against the negatives of its group.

    loss(group) = mean over p in P of -log( exp s_p / (exp s_p + sum over n in N of exp s_n) )

    Groups may differ in size. Several positives are each compared with the negatives only, so that
    they do not push each other down. With one positive it is the localised contrastive estimation
    of Gao et al. 2021, "Rethink Training of BERT Rerankers" (arXiv:2101.08751).
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses; 0 for a group without positives or negatives."""
        groups = PaddedGroups.from_sizes(sizes, logits.device)
        scores, positive = logits[groups.indices], labels[groups.indices] > 0
        positives, negatives = groups.mask & positive, groups.mask & ~positive
        # Not minus infinity: the gradient of a group without negatives would be NaN.
        lowest = torch.finfo(logits.dtype).min
        competition = scores.masked_fill(~negatives, lowest).logsumexp(1, keepdim=True)
        # The negative log-softmax of a choice between p and all of N.
        losses = softplus(competition - scores) * positives
        return (losses.sum(1) / positives.sum(1).clamp(min=1)).sum()
