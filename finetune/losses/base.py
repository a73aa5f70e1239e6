"""What every loss takes and gives, and how groups of different sizes stand in one matrix."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """The contract of every loss.

    Groups stand one behind the other: `logits` and `labels` are `[pairs]`, float32, and `sizes`
    says how many pairs each group has. A label above 0 marks a positive. The result is the
    *sum* over groups, a scalar: the caller divides by the number of groups in the whole optimizer
    step.
    """

    #: Whether `teacher` must be given.
    needs_teacher: bool

    def __call__(
        self, logits: Tensor, labels: Tensor, sizes: Sequence[int], teacher: Tensor | None = None
    ) -> Tensor:
        """The sum of the groups' losses; `teacher` are a teacher's scores, `[pairs]`, float32."""
        ...

    def lowest(self, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """What no scores can bring that sum below, a scalar."""
        return labels.new_zeros(())


@dataclass(frozen=True)
class Grid:
    """Groups of different sizes as the rows of a matrix, and what of it is real.

    `values[grid.places]` is `[groups, longest]`. Behind the end of a short group stands its last
    pair again, so that every place can be read; `real` is false there.
    """

    places: Tensor
    real: Tensor

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device) -> "Grid":
        """The grid of some groups that stand one behind the other."""
        lengths = torch.tensor(sizes, device=device)[:, None]
        columns = torch.arange(max(sizes), device=device)[None]
        starts = lengths.cumsum(0) - lengths
        return cls(starts + columns.minimum(lengths - 1), columns < lengths)

    def log_softmax(self, values: Tensor) -> Tensor:
        """Logarithms of the softmax over each group, `[groups, longest]`; 0 where nothing is real.

        A product with a softmax over the same grid is 0 there, and so is its gradient.
        """
        rows = values[self.places].masked_fill(~self.real, -torch.inf)
        return rows.log_softmax(1).masked_fill(~self.real, 0)

    def softmax(self, values: Tensor) -> Tensor:
        """The softmax over each group, `[groups, longest]`; 0 where nothing is real."""
        return values[self.places].masked_fill(~self.real, -torch.inf).softmax(1)


@dataclass(frozen=True)
class Opposites:
    """Every positive beside the negatives of its group.

    `values[positives][:, None] - values[negatives]` is `[positives, longest]`, and `both` says
    which of it are pairs of a positive and a negative. That is far smaller than
    all pairs of a group with few positives, as in an evaluation over hundreds of candidates.
    """

    #: Places of positives, `[positives]`.
    positives: Tensor
    #: Places of passages of the same group, `[positives, longest]`.
    negatives: Tensor
    #: Whether that passage is a negative, `[positives, longest]`.
    both: Tensor
    #: The group of each positive, `[positives]`.
    group: Tensor
    grid: Grid

    @classmethod
    def of(cls, labels: Tensor, sizes: Sequence[int]) -> "Opposites":
        """The opposites in some groups that stand one behind the other."""
        grid = Grid.of(sizes, labels.device)
        is_positive = labels > 0
        group, column = (is_positive[grid.places] & grid.real).nonzero(as_tuple=True)
        others = grid.places[group]
        return cls(
            grid.places[group, column], others, grid.real[group] & ~is_positive[others], group, grid
        )

    def difference(self, values: Tensor) -> Tensor:
        """What a positive has over a negative, `[positives, longest]`."""
        return values[self.positives][:, None] - values[self.negatives]

    def mean_sum(self, values: Tensor) -> Tensor:
        """Values of pairs `[positives, longest]`: their means over each group's pairs, summed."""
        pairs = self.both.sum(1)
        of_group = pairs.new_zeros(len(self.grid.places)).index_add_(0, self.group, pairs)
        weights = self.both.to(values.dtype) / of_group[self.group].clamp(min=1)[:, None]
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
