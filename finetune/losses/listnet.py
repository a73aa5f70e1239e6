"""ListNet: the softmax of the scores against the softmax of the labels."""

from collections.abc import Sequence

from torch import Tensor

from .base import Loss, PaddedGroups


class ListNet(Loss):
    """Cross-entropy between the softmax over a group's labels and that over its scores.

    loss(group) = - sum over i of softmax(labels)_i log softmax(s)_i

    Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach" (ICML), the
    top-one probabilities; targets as in sentence-transformers' ListNetLoss. With labels of 1 and 0
    the targets are soft: a positive gets e times the share of a negative, not all of it. A margin
    above 1 does not lower the loss, so groups that are learned stop pushing scores apart. With
    grades each step is worth a margin of 1, whatever the highest grade of the group is.
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses."""
        groups = PaddedGroups.from_sizes(sizes, logits.device)
        targets = groups.softmax(labels.to(logits.dtype))
        return -(targets * groups.log_softmax(logits)).sum()

    def lowest(self, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the entropy of the targets."""
        return self(labels, labels, sizes)
