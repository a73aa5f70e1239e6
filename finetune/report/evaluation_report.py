"""The report of an evaluation: one model and its baseline."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rerank_plugin.io.paths import expanded
from rerank_plugin.model.names import distinct_names
from rerank_plugin.model.settings import RerankSettings

from ..evaluation.evaluate import RUN_ORDER
from ..evaluation.result import EvaluationResult
from .report import ComparisonReport
from .sections import fusion_section

#: The text of the section about a fusion.
FUSED = (
    "The retriever, the reranker and their fusion, which the model's folder contains, on these "
    "queries; each difference has its 95% interval."
)


def write_evaluation_report(result: EvaluationResult, folder: Path) -> Path:
    """Write `report.html` and its plots into a folder, and return the page's path.

    Args:
        result: An evaluation of one model and a baseline.
        folder: The folder, which is made if it does not exist.
    """
    (comparison,) = result.comparisons.values()
    baseline, model = comparison.names
    names = distinct_names(baseline, model)
    retrieved = baseline == RUN_ORDER
    facts = {"Data": result.data}
    if not retrieved:
        facts[names[0]] = model_facts(baseline)
    facts[names[1]] = model_facts(model)
    report = ComparisonReport(
        title=f"{names[1]} compared with {names[0]}",
        names=names,
        comparison=comparison,
        retrieved_first=retrieved,
        # A retriever's scores say nothing about those of a model.
        carried=None if retrieved else RerankSettings.read(expanded(model)).calibration,
        facts=facts,
        sections=[fusion_section(asdict(figures), FUSED) for figures in result.fusions.values()],
    )
    return report.write(folder)


def model_facts(model: str) -> dict[str, Any]:
    """Return what the `rerank.json` of a model's folder says about its training."""
    settings = RerankSettings.read(expanded(model))
    return {
        "folder or hub id": model,
        "base": settings.base_model,
        "normalize": settings.normalize,
        "dtype": settings.dtype,
        "trained on": settings.data.get("fingerprint"),
        "training groups": settings.data.get("train_groups"),
        "loss": settings.options.get("loss"),
        "thresholds": ", ".join(settings.thresholds) or None,
    }
