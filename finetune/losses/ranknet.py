"""RankNet: a positive above a negative, pair by pair."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import softplus

from .base import Loss, Opposites


class RankNet(Loss):
    """Logistic loss of every positive against every negative.

    loss(group) = mean over p in P, n in N of log(1 + exp(s_n - s_p))

    Burges et al. 2005, "Learning to Rank using Gradient Descent" (ICML).
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses; a group without a positive or a negative gives 0."""
        opposites = Opposites.of(labels, sizes)
        return opposites.mean_sum(softplus(-opposites.difference(logits)))
