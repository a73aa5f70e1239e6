"""The boundaries of the pairs in a packed row, and the keys that their tokens see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Consecutive segments of a row of tokens."""

    #: The start of each segment, and the end: int32 `[segments + 1]`, on the CPU and on the
    #: model's device.
    offsets: Tensor
    on_device: Tensor
    #: The same in int64. Nested tensors match only if their offsets are the same tensor object,
    #: also when a layer is computed once more for its gradient.
    offsets64: Tensor
    lengths: tuple[int, ...]
    longest: int
    #: The number of tokens of all segments; the row may be longer.
    tokens: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Self:
        """Return consecutive segments, on the CPU."""
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(lengths), 0, dtype=torch.int32, out=offsets[1:])
        return cls(offsets, offsets, offsets.long(), tuple(lengths), max(lengths), sum(lengths))

    def to(self, device: torch.device) -> Self:
        """Return the same segments for a model on a device."""
        on_device = self.offsets.to(device, non_blocking=True)
        return replace(self, on_device=on_device, offsets64=on_device.long())


@dataclass(frozen=True)
class Keys(Segments):
    """The keys that each segment of a packed row sees, where they are not just its own tokens."""

    #: The indices of their tokens in the packed row, int64 `[tokens]`, on the model's device; None
    #: for all of its tokens in their order.
    rows: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Return the same keys for a model on a device."""
        rows = None if self.rows is None else self.rows.to(device, non_blocking=True)
        return replace(super().to(device), rows=rows)

    def select(self, tensor: Tensor) -> Tensor:
        """Return the rows of the keys, `[row, heads, head size]` to `[tokens, heads, head size]`.

        The gradients of a shared prefix, one for each pair, are summed in float32.
        """
        if self.rows is None:
            return tensor
        if torch.is_grad_enabled() and tensor.requires_grad:
            return tensor.float().index_select(0, self.rows).to(tensor.dtype)
        return tensor.index_select(0, self.rows)


@dataclass(frozen=True)
class Boundaries(Segments):
    """The segments of a packed row; passed through a model as one keyword.

    A segment is a pair, or in a row with `keys` a shared prefix, or the rest of a pair.
    """

    #: The keys of the segments; None if a segment sees its own tokens alone.
    keys: Keys | None = None
    #: The token of each pair that represents it; None in the boundaries of these tokens alone.
    pooled: "PooledTokens | None" = None

    def to(self, device: torch.device) -> Self:
        """Return the same boundaries for a model on a device."""
        return replace(
            super().to(device),
            keys=None if self.keys is None else self.keys.to(device),
            pooled=None if self.pooled is None else self.pooled.to(device),
        )


@dataclass(frozen=True)
class PooledTokens:
    """The tokens of a packed row whose last hidden states represent the pairs, one for each.

    The first ones of the pairs, or the last ones for a causal model.
    """

    #: Their indices in the row, int64, on the model's device, one for each pair; filled up to the
    #: multiple of tokens that the row is filled up to.
    rows: Tensor
    #: Their own boundaries, with the keys that each of them sees.
    boundaries: Boundaries

    @property
    def pairs(self) -> int:
        """Return the number of pairs."""
        return self.boundaries.tokens

    def to(self, device: torch.device) -> Self:
        """Return the same tokens for a model on a device."""
        rows = self.rows.to(device, non_blocking=True)
        return replace(self, rows=rows, boundaries=self.boundaries.to(device))

    def select(self, tensor: Tensor) -> Tensor:
        """Return their rows, `[tokens, …]` to `[pairs and filling, …]`."""
        return tensor.index_select(0, self.rows)

    def select_angles(self, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of their rotary positions, `[1, tokens, size]`."""
        cosine, sine = (self.select(table[0])[None] for table in angles)
        return cosine, sine
