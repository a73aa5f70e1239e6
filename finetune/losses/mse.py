"""MSE: a teacher's logits, pair by pair."""

from collections.abc import Sequence

from torch import Tensor

from .base import Loss, PaddedGroups


class MSE(Loss):
    """Squared difference between the model's logits and a teacher's.

    loss(group) = mean over i of (s_i - t_i)^2

    Pointwise distillation, as in sentence-transformers' cross-encoder `MSELoss`, with which the
    ettin rerankers were trained from the logits of a larger one. The teacher's scores must be
    logits: probabilities near 0 or 1 are nearly equal, whatever their order. Unlike losses that
    compare passages, it takes over the teacher's scale. Labels are not used.
    """

    needs_teacher = True

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses."""
        assert teacher is not None, "mse without teacher scores"
        groups = PaddedGroups.from_sizes(sizes, logits.device)
        squares = (logits - teacher.to(logits.dtype)).square()[groups.indices] * groups.mask
        return (squares.sum(1) / groups.mask.sum(1)).sum()
