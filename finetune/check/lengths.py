"""How long pairs are, in tokens or in characters."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..data.groups import Group

if TYPE_CHECKING:
    from rerank_plugin.engine.encoder import PairEncoder

PERCENTILES = (50, 90, 99, 100)

#: Pairs whose tokens are counted at once.
PAIRS_AT_ONCE = 4096


class Lengths:
    """How long pairs are, in tokens where there is a tokenizer, else in characters."""

    def __init__(self, encoder: "PairEncoder | None", max_len: int | None) -> None:
        self.max_len = max_len
        self._encoder = encoder
        self._waiting: list[tuple[str, str]] = []
        self._parts: list[npt.NDArray[np.int32]] = []

    def add(self, group: Group) -> None:
        """Take the pairs of one group."""
        self._waiting += [(group.query, document) for document in group.documents]
        if len(self._waiting) >= PAIRS_AT_ONCE:
            self._count()

    def all(self) -> npt.NDArray[np.int32]:
        """The lengths of all pairs."""
        self._count()
        return np.concatenate(self._parts)

    def _count(self) -> None:
        if self._encoder is None:
            lengths = np.array([len(query) + len(text) for query, text in self._waiting], np.int32)
        else:
            lengths = np.asarray(self._encoder.lengths(self._waiting), np.int32)
        self._parts.append(lengths)
        self._waiting = []


def percentiles(lengths: npt.NDArray[np.int32]) -> str:
    """The percentiles of lengths, as text."""
    values = np.percentile(lengths, PERCENTILES)
    shown = [f"{int(value)} ({name}%)" for name, value in zip(PERCENTILES, values, strict=True)]
    return ", ".join(shown).replace("(100%)", "(longest)").replace("(50%)", "(median)")
