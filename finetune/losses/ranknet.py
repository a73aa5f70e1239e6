"""RankNet: every positive against every passage with a lower grade."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import softplus

from .base import Comparisons, Loss


class RankNet(Loss):
    """Logistic loss of every positive against every passage with a lower grade.

    loss(group) = mean over pairs (p, n) with grade(p) > grade(n) of log(1 + exp(s_n - s_p))

    Burges et al. 2005, "Learning to Rank using Gradient Descent" (ICML). All pairs weigh the same,
    however far apart their grades are.
    """

    needs_teacher = False

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses; 0 for a group without positives or negatives."""
        comparisons = Comparisons.from_labels(labels, sizes)
        return comparisons.sum_of_means(softplus(-comparisons.difference(logits)))
