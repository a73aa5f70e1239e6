"""Softmax cross-entropy of each positive against the lower passages of its group."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Comparisons, Loss


class SoftmaxCrossEntropy(Loss):
    """Softmax cross-entropy of each positive against the passages of its group with lower grades.

    loss(group) = mean over p in P of -log( exp s_p / (exp s_p + sum over n in L_p of exp s_n) )
    L_p = the passages with a lower grade than p; without grades the negatives

    Groups may differ in size. Positives of one grade do not push each other down. With one positive
    it is the localised contrastive estimation of Gao et al. 2021, "Rethink Training of BERT
    Rerankers" (arXiv:2101.08751). With grades it is ListMLE without an order among equal grades:
    the likelihood of choosing each positive among itself and what is below it. Xia et al. 2008,
    "Listwise Approach to Learning to Rank" (ICML).
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses; 0 for a group without positives or negatives."""
        comparisons = Comparisons.from_labels(labels, sizes)
        # Not minus infinity: the gradient of a positive without a lower passage would be NaN.
        lowest = torch.finfo(logits.dtype).min
        competition = logits[comparisons.others].masked_fill(~comparisons.mask, lowest).logsumexp(1)
        # The negative log-softmax of a choice between p and all of L_p.
        losses = softplus(competition - logits[comparisons.positives])
        rows = comparisons.rows
        counts = rows.bincount(minlength=len(sizes))
        return (losses / counts[rows]).sum()
