"""The scores of several teachers for all documents, kept in a file as they are computed."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

#: Decimals of teacher scores in files.
DIGITS = 4


class RawScores:
    """Scores by teacher and document, NaN where they are not known.

    Args:
        sizes: The number of documents of each group.
        teachers: The number of teachers.
    """

    def __init__(self, sizes: Sequence[int], teachers: int) -> None:
        self._ends = np.cumsum(sizes)
        #: `[teachers, documents]`.
        self.values: npt.NDArray[np.float32] = np.full(
            (teachers, int(self._ends[-1])), np.nan, np.float32
        )
        self._lock = threading.Lock()

    def read(self, path: Path) -> None:
        """Read the lines that `recorder` has written."""
        if not path.exists():
            return
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                self._slice(record["teacher"], record["group"])[:] = record["scores"]

    def missing(self, teacher: int) -> list[int]:
        """Return the indices of the groups that a teacher has not scored."""
        first = np.concatenate([[0], self._ends[:-1]]).astype(int)
        return np.flatnonzero(np.isnan(self.values[teacher, first])).tolist()

    def recorder(
        self, teacher: int, file: IO[str], progress: Callable[[int], Any]
    ) -> Callable[[int, list[float]], None]:
        """Return a function that keeps the scores of a group; threads may call it."""

        def record(group: int, scores: list[float]) -> None:
            scores = [round(score, DIGITS) for score in scores]
            line = json.dumps({"teacher": teacher, "group": group, "scores": scores})
            with self._lock:
                self._slice(teacher, group)[:] = scores
                file.write(line + "\n")
                file.flush()
                progress(len(scores))

        return record

    def _slice(self, teacher: int, group: int) -> npt.NDArray[np.float32]:
        end = self._ends[group]
        return self.values[teacher, self._ends[group - 1] if group else 0 : end]

    def of_group(self, scores: npt.NDArray[np.float64], group: int) -> list[float]:
        """Return the rounded scores of a group among those of all documents, `[documents]`."""
        start = self._ends[group - 1] if group else 0
        return [round(score, DIGITS) for score in scores[start : self._ends[group]].tolist()]


class Average:
    """The average of teachers on a common scale.

    The logits of different models have different scales: the one with the widest would decide
    alone. So each teacher's are standardised over all documents, averaged, and given the mean and
    the standard deviation that the teachers have on average. The scores of a single teacher are
    kept as they are.

    Args:
        values: Scores of teachers, `[teachers, documents]`, which set the scales.
    """

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self._means = values.mean(1, keepdims=True, dtype=np.float64)
        self._deviations = values.std(1, keepdims=True, dtype=np.float64)

    def __call__(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the average of scores, `[teachers, documents]` to `[documents]`."""
        if len(values) == 1:
            return np.asarray(values[0], np.float64)
        scales = np.where(self._deviations > 0, self._deviations, 1)
        average = ((values - self._means) / scales).mean(0)
        return np.asarray(average * self._deviations.mean() + self._means.mean(), np.float64)
