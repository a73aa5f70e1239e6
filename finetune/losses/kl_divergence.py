"""Distillation: the teacher's distribution over a group's passages, softened."""

from collections.abc import Sequence

from torch import Tensor

from .base import Grid, Loss


class KLDivergence(Loss):
    """Kullback-Leibler divergence from a teacher's softmax over a group to the model's.

    loss(group) = T^2 sum over i of softmax(t/T)_i (log softmax(t/T)_i - log softmax(s/T)_i)

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531): a
    temperature above 1 shows more of how the teacher orders what is wrong, and T^2 keeps gradients
    at one scale. Labels are not looked at.

    Args:
        temperature: T.
    """

    needs_teacher = True

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses."""
        assert teacher is not None, "kl_divergence without teacher scores"
        grid = Grid.of(sizes, logits.device)
        softened = teacher.to(logits.dtype) / self.temperature
        surprise = grid.log_softmax(softened) - grid.log_softmax(logits / self.temperature)
        return self.temperature**2 * (grid.softmax(softened) * surprise).sum()
