"""The order of tokens in a packed row: each shared prefix, then the rests of its pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from rerank_plugin.engine.boundaries import Boundaries, Keys, PooledTokens
from rerank_plugin.engine.template import EncodedPair, Ids


@dataclass(frozen=True)
class Segment:
    """Tokens of a packed row that see each other, and those of a prefix before them."""

    ids: Ids
    types: Ids
    #: The position of the first token in its pair.
    position: int = 0
    #: The index of the prefix among the segments, if it is shared.
    prefix: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Layout:
    """The segments of a packed row, and for each pair the index of its last one."""

    segments: list[Segment]
    last: list[int]

    @classmethod
    def from_pairs(cls, pairs: Sequence[EncodedPair]) -> Self:
        """Return pairs one after another."""
        return cls([Segment(pair.ids, pair.types) for pair in pairs], [*range(len(pairs))])

    @classmethod
    def with_shared_prefixes(cls, pairs: Sequence[EncodedPair]) -> Self:
        """Return each distinct prefix once, followed by the rest of each of its pairs.

        That of a single pair, too, so that a pair is computed alike whatever pairs are around it.
        """
        segments: list[Segment] = []
        last = [0] * len(pairs)
        for shared, indices in by_prefix(pairs):
            prefix = len(segments) if shared else None
            if shared:
                first = pairs[indices[0]]
                segments.append(Segment(first.ids[:shared], first.types[:shared]))
            for index in indices:
                pair = pairs[index]
                last[index] = len(segments)
                segments.append(Segment(pair.ids[shared:], pair.types[shared:], shared, prefix))
        return cls(segments, last)

    def boundaries(self, *, causal: bool, multiple: int = 1) -> Boundaries:
        """Return the boundaries of the segments.

        Args:
            causal: Whether the last token represents a pair, and not the first one.
            multiple: The pooled tokens are filled up to a multiple of this many.
        """
        own = Boundaries.from_lengths([len(segment) for segment in self.segments])
        every = range(len(self.segments))
        has_prefixes = any(segment.prefix is not None for segment in self.segments)
        keys = self._keys(own.offsets64, every) if has_prefixes else None
        seen = (
            self._keys(own.offsets64, self.last) if has_prefixes else Keys.from_lengths(own.lengths)
        )
        rows = own.offsets64[1:][self.last] - 1 if causal else own.offsets64[:-1][self.last]
        rows = nn.functional.pad(rows, (0, -len(rows) % multiple))
        pooled = replace(Boundaries.from_lengths([1] * len(self.last)), keys=seen)
        return replace(own, keys=keys, pooled=PooledTokens(rows, pooled))

    def _keys(self, offsets: Tensor, indices: Sequence[int]) -> Keys:
        """Return the keys of some segments."""
        ranges = [torch.arange(start, end) for start, end in pairwise(offsets.tolist())]
        rows = []
        for index in indices:
            prefix = self.segments[index].prefix
            own = ranges[index]
            rows.append(own if prefix is None else torch.cat([ranges[prefix], own]))
        return replace(Keys.from_lengths([len(row) for row in rows]), rows=torch.cat(rows))


def by_prefix(pairs: Sequence[EncodedPair]) -> list[tuple[int, list[int]]]:
    """Return the length of each distinct prefix, and the indices of its pairs.

    At least the last token of a pair is not part of its prefix.
    """
    groups: dict[bytes, tuple[int, list[int]]] = {}
    for index, pair in enumerate(pairs):
        shared = min(pair.shared, len(pair) - 1)
        _, indices = groups.setdefault(pair.ids[:shared].tobytes(), (shared, []))
        indices.append(index)
    return list(groups.values())
