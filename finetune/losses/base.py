"""The contract of losses, and the layouts in which they compare the passages of groups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """The contract of every loss.

    Groups are concatenated: `logits` and `labels` are `[pairs]`, float32, and `sizes` has the
    number of pairs of each group. A label is the grade of a passage: 0 for a negative, and 1 or
    more for a positive. The result is the *sum* over groups, a scalar: the caller divides by the
    number of groups in the whole optimizer step.
    """

    #: Whether `teacher` is required.
    needs_teacher: bool

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the groups' losses; `teacher` scores are `[pairs]`, float32."""
        ...

    def lowest(self, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return a lower bound of that sum for any logits, a scalar."""
        return labels.new_zeros(())


@dataclass(frozen=True)
class PaddedGroups:
    """Groups of different sizes as the rows of a padded matrix.

    `values[groups.indices]` is `[groups, longest]`. A short group is padded with its last pair, so
    that every index can be read.
    """

    #: Indices of pairs, `[groups, longest]`.
    indices: Tensor
    #: False at padding, `[groups, longest]`.
    mask: Tensor

    @classmethod
    def from_sizes(cls, sizes: Sequence[int], device: torch.device) -> "PaddedGroups":
        """Return the layout of concatenated groups."""
        lengths = torch.tensor(sizes, device=device)[:, None]
        columns = torch.arange(max(sizes), device=device)[None]
        starts = lengths.cumsum(0) - lengths
        return cls(starts + columns.minimum(lengths - 1), columns < lengths)

    def log_softmax(self, values: Tensor) -> Tensor:
        """Return the log-softmax over each group, `[groups, longest]`; 0 at padding.

        So are its product with a softmax over the same groups, and the gradient of that.
        """
        rows = values[self.indices].masked_fill(~self.mask, -torch.inf)
        return rows.log_softmax(1).masked_fill(~self.mask, 0)

    def softmax(self, values: Tensor) -> Tensor:
        """Return the softmax over each group, `[groups, longest]`; 0 at padding."""
        return values[self.indices].masked_fill(~self.mask, -torch.inf).softmax(1)


@dataclass(frozen=True)
class Comparisons:
    """Every positive beside the passages of its group that have a lower grade.

    `values[positives][:, None] - values[others]` is `[positives, longest]`, and `mask` marks the
    comparisons of a positive with a lower passage. That is far smaller than all pairs of a group
    with few positives, as in an evaluation over hundreds of candidates.
    """

    #: Indices of positives, `[positives]`.
    positives: Tensor
    #: Indices of all passages of the same group, `[positives, longest]`.
    others: Tensor
    #: Whether that passage has a lower grade, `[positives, longest]`.
    mask: Tensor
    #: The row of each positive's group, `[positives]`.
    rows: Tensor
    groups: PaddedGroups

    @classmethod
    def from_labels(cls, labels: Tensor, sizes: Sequence[int]) -> "Comparisons":
        """Return the comparisons within concatenated groups."""
        groups = PaddedGroups.from_sizes(sizes, labels.device)
        rows, columns = ((labels > 0)[groups.indices] & groups.mask).nonzero(as_tuple=True)
        positives, others = groups.indices[rows, columns], groups.indices[rows]
        mask = groups.mask[rows] & (labels[others] < labels[positives][:, None])
        return cls(positives, others, mask, rows, groups)

    def difference(self, values: Tensor) -> Tensor:
        """Return the values of positives minus those of the others, `[positives, longest]`."""
        return values[self.positives][:, None] - values[self.others]

    def sum_of_means(self, values: Tensor) -> Tensor:
        """Return the sum over groups of the mean value of their comparisons, a scalar.

        Args:
            values: A value for each comparison, `[positives, longest]`.
        """
        counts = self.mask.sum(1)
        group_counts = counts.new_zeros(len(self.groups.indices)).index_add_(0, self.rows, counts)
        weights = self.mask.to(values.dtype) / group_counts[self.rows].clamp(min=1)[:, None]
        return (values * weights).sum()


class Distilled(Protocol):
    """A group that may have a teacher's scores, one for each of its passages."""

    @property
    def teacher(self) -> list[float] | None:
        """Return the teacher's scores, None where the group has none."""
        ...


def teacher_scores(groups: Iterable[Distilled]) -> Tensor | None:
    """Return the teacher's scores of all pairs, float32 `[pairs]`; None if a group has none."""
    scores: list[float] = []
    for group in groups:
        if group.teacher is None:
            return None
        scores += group.teacher
    return torch.tensor(scores, dtype=torch.float32)
