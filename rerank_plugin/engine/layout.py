"""The order of tokens in a packed row: each shared prefix, then the rests of its pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from rerank_plugin.engine.boundaries import Boundaries, Keys
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

    def boundaries(self) -> Boundaries:
        """Return the boundaries of the segments."""
        own = Boundaries.from_lengths([len(segment) for segment in self.segments])
        last = own.offsets64[1:][self.last] - 1
        return replace(own, keys=self._keys(own.offsets64), last=last)

    def _keys(self, offsets: Tensor) -> Keys | None:
        """Return the keys of the segments, if any of them has a prefix."""
        if all(segment.prefix is None for segment in self.segments):
            return None
        ranges = [torch.arange(start, end) for start, end in pairwise(offsets.tolist())]
        rows = [
            ranges[i] if segment.prefix is None else torch.cat([ranges[segment.prefix], ranges[i]])
            for i, segment in enumerate(self.segments)
        ]
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
