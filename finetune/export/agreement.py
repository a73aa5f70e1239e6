"""Agreement of the logits of an exported model with those of the model itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np

from rerank_plugin.engine.scores import Logits
from rerank_plugin.errors import RerankError
from rerank_plugin.inputs import Pair
from rerank_plugin.io.jsonl import read_lines
from rerank_plugin.sample import sample_path

from ..data.groups import parse_group

#: The largest difference of a logit that rounding in float32 explains.
TOLERANCE = 1e-3

#: The lowest correlation of the logits of 8-bit weights with those in float32.
MIN_CORRELATION = 0.99


class ExportError(RerankError):
    """An exported model does not give the scores of the model itself."""


@dataclass(frozen=True)
class Agreement:
    """The differences of the logits of some pairs, in the runtime and in float32 here.

    Attributes:
        pairs: The number of pairs.
        largest: The largest absolute difference.
        mean: The mean absolute difference.
        correlation: Pearson's correlation coefficient.
    """

    pairs: int
    largest: float
    mean: float
    correlation: float

    @classmethod
    def from_logits(cls, logits: Logits, expected: Logits) -> Self:
        """Compare the logits of the runtime with those expected, both `[pairs]`."""
        differences = np.abs(logits - expected)
        return cls(
            pairs=len(expected),
            largest=float(differences.max()),
            mean=float(differences.mean()),
            correlation=correlation(logits, expected),
        )

    def check(self, *, int8: bool) -> None:
        """Check that the scores are those of the model.

        Raises:
            ExportError: they are not.
        """
        if int8 and not self.correlation >= MIN_CORRELATION:
            raise ExportError(
                f"the scores change too much in 8 bits: {self}; export without --int8, or use "
                "--force"
            )
        if not int8 and not self.largest <= TOLERANCE:
            raise ExportError(f"the runtime gives other scores than the model: {self}")

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.largest:.2g}, mean {self.mean:.2g}, correlation "
            f"{self.correlation:.4f} ({self.pairs} pairs)"
        )


def correlation(logits: Logits, expected: Logits) -> float:
    """Return Pearson's correlation coefficient; nan if all logits of a side are equal."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(logits, expected)[0, 1])


def sample_pairs(file: str, count: int) -> list[Pair]:
    """Return pairs of a file of the sample data, every other one a positive."""
    return list(islice(pairs_of(file), count))


def pairs_of(file: str) -> Iterator[Pair]:
    """Yield a positive and a negative of every group of the sample data."""
    for line in read_lines(sample_path(file)):
        group = parse_group(line)
        yield group.query, group.pos[0]
        yield group.query, group.neg[0]
