"""Distillation of a teacher's softened distribution over the passages of a group."""

from collections.abc import Sequence

from torch import Tensor

from .base import Loss, PaddedGroups


class KLDivergence(Loss):
    """Kullback-Leibler divergence from a teacher's softmax over a group to the model's.

    loss(group) = T^2 sum over i of softmax(t/T)_i (log softmax(t/T)_i - log softmax(s/T)_i)

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531): a
    temperature above 1 gives more weight to the teacher's order of negatives, and T^2 keeps the
    scale of gradients. Labels are not used.

    Args:
        temperature: T.
    """

    needs_teacher = True

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses."""
        assert teacher is not None, "kl_divergence without teacher scores"
        groups = PaddedGroups.from_sizes(sizes, logits.device)
        softened = teacher.to(logits.dtype) / self.temperature
        difference = groups.log_softmax(softened) - groups.log_softmax(logits / self.temperature)
        return self.temperature**2 * (groups.softmax(softened) * difference).sum()
