"""A weighted sum of losses."""

from collections.abc import Sequence

from torch import Tensor

from .base import Loss


class WeightedSum(Loss):
    """The weighted sum of several losses.

    loss(group) = sum over k of w_k loss_k(group)

    Args:
        terms: The losses, each with its weight.
    """

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        self.terms = list(terms)
        self.needs_teacher = any(loss.needs_teacher for _, loss in self.terms)

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses."""
        values = [weight * loss(logits, labels, sizes, teacher) for weight, loss in self.terms]
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total

    def lowest(self, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the weighted sum of the lower bounds."""
        total = labels.new_zeros(())
        for weight, loss in self.terms:
            total = total + weight * loss.lowest(labels, sizes)
        return total
