"""Softmax cross-entropy of each right passage against the wrong ones of its group."""

from collections.abc import Sequence

import torch
from torch import Tensor


class SoftmaxCrossEntropy:
    """Softmax cross-entropy of each right passage against the wrong ones of its group.

    loss(group) = mean over p in P of -log( exp s_p / (exp s_p + sum over n in N of exp s_n) )

    Groups may differ in size. With several right passages each is compared with the wrong ones
    alone, so that they do not push each other down. With one it is the localised contrastive
    estimation of Gao et al. 2021, "Rethink Training of BERT Rerankers" (arXiv:2101.08751).
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses; a group without a right or a wrong passage gives 0."""
        losses = []
        groups = zip(
            torch.split(logits, list(sizes)), torch.split(labels, list(sizes)), strict=True
        )
        for scores, right in groups:
            positive, negative = scores[right > 0], scores[right <= 0]
            if len(positive) and len(negative):
                # -log softmax of a two-way choice between p and the whole of N.
                losses.append(torch.nn.functional.softplus(negative.logsumexp(0) - positive).mean())
        return torch.stack(losses).sum() if losses else logits.sum() * 0
