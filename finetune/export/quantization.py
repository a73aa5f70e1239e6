"""Differences between the scores of a reranker with int8 and those in float32."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from rerank_plugin.errors import CheckFailedError

from ..evaluation.metrics import METRIC
from ..evaluation.scoring import Evaluation
from ..evaluation.significance import paired_difference
from .agreement import Agreement
from .options import LARGEST_LOSS


@dataclass(frozen=True)
class Measurement:
    """The evaluation of a model in some precision, and its speed."""

    evaluation: Evaluation
    pairs_per_second: float


@dataclass(frozen=True)
class QuantizationResult:
    """A folder that scores with int8, and how its scores differ from those in float32.

    Attributes:
        model_dir: The folder.
        float32: The mean metrics in float32, and the number of `queries`.
        int8: The same with int8.
        difference: The paired difference int8 - float32 of every metric, with `interval_95`,
            `p_value`, and the numbers of `better` and `worse` queries.
        agreement: The differences of logits.
        pairs_per_second: The speed with `float32` and `int8`.
    """

    model_dir: Path
    float32: dict[str, float]
    int8: dict[str, float]
    difference: dict[str, Any]
    agreement: Agreement
    pairs_per_second: dict[str, float]

    @classmethod
    def from_measurements(cls, model_dir: Path, float32: Measurement, int8: Measurement) -> Self:
        """Compare two measurements of the same queries."""
        before, after = float32.evaluation, int8.evaluation
        logits, expected = (
            np.concatenate(evaluation.logits or []) for evaluation in (after, before)
        )
        return cls(
            model_dir=model_dir,
            float32=before.means,
            int8=after.means,
            difference=paired_difference(before.values, after.values),
            agreement=Agreement.from_logits(logits, expected),
            pairs_per_second={
                "float32": float32.pairs_per_second,
                "int8": int8.pairs_per_second,
            },
        )

    @property
    def is_safe(self) -> bool:
        """Return whether int8 costs at most 0.005 of nDCG@10, with 95% confidence."""
        low, _ = self.difference["interval_95"][METRIC]
        return bool(low >= -LARGEST_LOSS)

    def check(self) -> None:
        """Check that int8 costs little.

        Raises:
            QuantizationError: it may cost too much.
        """
        if not self.is_safe:
            raise QuantizationError(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as JSON values; `forced` if they would not pass the check."""
        return {
            "float32": self.float32,
            "int8": self.int8,
            "difference": self.difference,
            "agreement": asdict(self.agreement),
            "pairs_per_second": self.pairs_per_second,
            "forced": not self.is_safe,
        }


class QuantizationError(CheckFailedError):
    """Scoring with int8 may cost too much; nothing is written.

    Args:
        result: The measurements.
    """

    def __init__(self, result: QuantizationResult) -> None:
        low, high = result.difference["interval_95"][METRIC]
        super().__init__(
            f"{METRIC} changes by {result.difference[METRIC]:+.4f} with int8, and the 95% "
            f"interval {low:+.4f} to {high:+.4f} reaches below -{LARGEST_LOSS}: nothing is "
            "written; give more queries, or use --force"
        )
        self.result = result
