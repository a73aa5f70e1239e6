"""Margin-MSE: a teacher's margins between positives and passages with lower grades."""

from collections.abc import Sequence

from torch import Tensor

from .base import Comparisons, Loss


class MarginMSE(Loss):
    """Squared difference between the model's margins and a teacher's.

    loss(group) = mean over pairs (p, n) with grade(p) > grade(n) of ((s_p - s_n) - (t_p - t_n))^2

    Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture
    Knowledge Distillation" (arXiv:2010.02666). The teacher's scores should be logits: margins of
    probabilities are all near 0 or 1.
    """

    needs_teacher = True

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses; 0 for a group without positives or negatives."""
        assert teacher is not None, "margin_mse without teacher scores"
        comparisons = Comparisons.from_labels(labels, sizes)
        margins = comparisons.difference(logits - teacher.to(logits.dtype))
        return comparisons.sum_of_means(margins.square())
