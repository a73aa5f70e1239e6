"""The result of an evaluation."""

from dataclasses import asdict, dataclass
from typing import Any

from rerank_plugin.errors import CheckFailedError

from .comparison import Comparison
from .fusion_figures import FusionFigures
from .scoring import Evaluation


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of one or several models, and their comparison with a baseline."""

    #: The evaluation of every model, by its hub id or folder.
    models: dict[str, Evaluation]
    #: The comparison of every model with the baseline; empty without one.
    comparisons: dict[str, Comparison]
    #: The metric by which models are compared.
    metric: str
    #: The baseline: a model, or the name of a run's own order; None without one.
    baseline: str | None
    #: The retriever, the model and both together, of every model that was fused with a retriever,
    #: where the retriever's scores are known.
    fusions: dict[str, FusionFigures]
    #: The data and the options of loading, as a report shows them.
    data: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the first model: means over queries, and the number of `queries`."""
        return next(iter(self.models.values())).means

    @property
    def improved(self) -> bool:
        """True if every model is better than the baseline."""
        return bool(self.comparisons) and all(
            comparison.improved for comparison in self.comparisons.values()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `rerank-plugin evaluate --output` writes."""
        records = [self._record(name) for name in self.models]
        return records[0] if len(records) == 1 else {"models": records}

    def check(self, *, fail_below: float | None = None, fail_if_not_better: bool = False) -> None:
        """Check the metric of every model.

        Raises:
            CheckFailedError: a model is below a value, or not better than the baseline.
        """
        for name, evaluation in self.models.items():
            value = evaluation.means[self.metric]
            if fail_if_not_better and not self.comparisons[name].improved:
                raise CheckFailedError(f"--fail_if_not_better: {name} is not above the baseline")
            if fail_below is not None and value < fail_below:
                problem = f"{self.metric} {value:.4f} of {name}"
                raise CheckFailedError(f"--fail_below: {problem} is below {fail_below}")

    def _record(self, name: str) -> dict[str, Any]:
        evaluation = self.models[name]
        means = evaluation.means
        per_query = {metric: values.tolist() for metric, values in evaluation.values.items()}
        record = {"model": name, **means, "after": means, "per_query": per_query}
        if name in self.comparisons:
            record |= {"baseline": self.baseline, **self.comparisons[name].to_dict()}
        if name in self.fusions:
            record["fusion"] = asdict(self.fusions[name])
        return record
