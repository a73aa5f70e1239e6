"""Lengths of pairs, in tokens or in characters."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rerank_plugin.errors import InputError
from rerank_plugin.inputs import Pair, make_pairs

from ..data.groups import Group

if TYPE_CHECKING:
    from rerank_plugin.engine.encoder import PairEncoder

PERCENTILES = (50, 90, 99, 100)

#: Pairs whose tokens are counted at once.
COUNTED_AT_ONCE = 4096


class Lengths:
    """Lengths of pairs: tokens where there is an encoder, else characters.

    Args:
        encoder: Counts tokens.
        max_len: The maximum length of a pair in tokens, for the report.
    """

    def __init__(self, encoder: "PairEncoder | None", max_len: int | None) -> None:
        self.max_len = max_len
        #: Why lengths cannot be measured: the model does not take the instruction of a group.
        self.problem: str | None = None
        self._encoder = encoder
        self._waiting: list[Pair] = []
        self._lengths: list[npt.NDArray[np.int32]] = []

    def add(self, group: Group, where: str) -> None:
        """Add the pairs of one group.

        Args:
            group: The group.
            where: Its file and line.
        """
        try:
            if self._encoder:
                self._encoder.check_instruction(group.instruction, where)
        except InputError as error:
            self.problem = self.problem or str(error)
            return
        self._waiting += make_pairs(group.query, group.documents, group.instruction)
        if len(self._waiting) >= COUNTED_AT_ONCE:
            self._count()

    def all(self) -> npt.NDArray[np.int32]:
        """Return the lengths of all pairs."""
        self._count()
        return np.concatenate(self._lengths)

    def _count(self) -> None:
        if self._encoder is None:
            lengths = np.array([sum(map(len, pair)) for pair in self._waiting], np.int32)
        else:
            lengths = np.asarray(self._encoder.lengths(self._waiting), np.int32)
        self._lengths.append(lengths)
        self._waiting = []


def percentiles(lengths: npt.NDArray[np.int32]) -> str:
    """Return the percentiles of lengths as text."""
    values = np.percentile(lengths, PERCENTILES)
    shown = [f"{int(value)} ({name}%)" for name, value in zip(PERCENTILES, values, strict=True)]
    return ", ".join(shown).replace("(100%)", "(longest)").replace("(50%)", "(median)")
