"""ListNet: the softmax of the scores should be the softmax of the labels."""

from collections.abc import Sequence

from torch import Tensor

from .base import Grid, Loss


class ListNet(Loss):
    """Cross-entropy between the softmax over a group's labels and that over its scores.

    loss(group) = - sum over i of softmax(labels)_i log softmax(s)_i

    Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach" (ICML), the
    top-one probabilities; targets as in sentence-transformers' ListNetLoss. With labels of 1 and 0
    the targets are soft: a positive gets e times the share of a negative, not all of it. So
    there is nothing to gain from a margin above 1, and groups that are learned do not push on.
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses."""
        grid = Grid.of(sizes, logits.device)
        targets = grid.softmax(labels.to(logits.dtype))
        return -(targets * grid.log_softmax(logits)).sum()

    def lowest(self, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """The entropy of the targets."""
        return self(labels, labels, sizes)
