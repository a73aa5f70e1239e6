"""The model card of a trained folder, from `model_card.md.j2`."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rerank_plugin.io.paths import expanded
from rerank_plugin.model.names import SNAPSHOT
from rerank_plugin.model.settings import RerankSettings, is_adapter

from ..blending.describe import describe_blend, describe_general, describe_refit
from ..evaluation.calibration import describe_calibration
from ..evaluation.fusion_fit import describe_fusion

TEMPLATE = Path(__file__).with_name("model_card.md.j2")

#: The Hub's name of the task.
HUB_TASK = "text-ranking"

#: The meaning of a score, by the name of the normalisation.
SCORES = {
    "sigmoid": "the sigmoid of the logit, from 0 to 1",
    "calibrated": "the calibrated probability that the passage is relevant",
    "none": "the raw logit",
}


def hub_id(model: str) -> str | None:
    """Return the Hub id of a model; None for a folder, whose path is private."""
    snapshot = SNAPSHOT.search(model)
    if snapshot:
        return snapshot[1].replace("--", "/")
    folder = expanded(model)
    return None if folder.is_absolute() or folder.exists() else model


def model_card(
    folder: Path,
    settings: RerankSettings,
    *,
    name: str,
    labels: int,
    is_modular: bool = False,
    has_prompt: bool = False,
) -> ModelCard:
    """Return the card of a trained folder, with metadata and results for the Hub.

    Args:
        folder: The folder, with its weights and plots.
        settings: Its `rerank.json`.
        name: The name of the model, for the title, the usage and the `model-index`.
        labels: The number of labels of its head.
        is_modular: Whether it, or the base of its adapter, is a modular reranker.
        has_prompt: Whether it is a language model.
    """
    metrics, calibration = settings.metrics, settings.calibration
    card: ModelCard = ModelCard.from_template(
        card_data(folder, settings, name, is_modular=is_modular),
        template_path=str(TEMPLATE),
        name=name,
        base=settings.base_model,
        groups=trained_groups(settings),
        is_refitted=is_refitted(settings),
        is_trained=bool(settings.options),
        quantization=settings.quantization,
        fusion=describe_fusion(settings.fusion) if settings.fusion else None,
        refit=describe_refit(metrics["refit"]) if "refit" in metrics else None,
        blend=describe_blend(metrics["blend"]) if "blend" in metrics else None,
        general=describe_general(metrics["general"]) if "general" in metrics else None,
        metrics=metrics,
        rows=card_rows(metrics) if metrics else [],
        has_curves=(folder / "training_curves.png").is_file(),
        is_adapter=is_adapter(folder),
        labels=labels,
        is_modular=is_modular,
        has_prompt=has_prompt,
        max_length=settings.max_length,
        score=SCORES[settings.normalize],
        calibration=describe_calibration(calibration) if calibration else None,
        thresholds=settings.thresholds,
    )
    return card


def trained_groups(settings: RerankSettings) -> int | None:
    """Return the number of groups that the weights were trained on, if it is known."""
    refitted = is_refitted(settings)
    groups: int | None = (
        settings.metrics["refit"]["groups"] if refitted else settings.data.get("train_groups")
    )
    return groups


def is_refitted(settings: RerankSettings) -> bool:
    """Return whether the weights are those of a second run, which the metrics do not measure."""
    return bool(settings.metrics.get("refit", {}).get("kept"))


def card_data(
    folder: Path, settings: RerankSettings, name: str, *, is_modular: bool
) -> ModelCardData:
    """Return the metadata of a card, with the test metrics as its `model-index`."""
    metrics = settings.metrics.get("after", {})
    library = "sentence-transformers" if is_modular else "transformers"
    results = [
        EvalResult(
            task_type=HUB_TASK,
            dataset_type="unknown",
            dataset_name="test queries",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in metrics.items()
        if metric != "queries"
    ]
    return ModelCardData(
        base_model=settings.base_model,
        library_name="peft" if is_adapter(folder) else library,
        pipeline_tag=HUB_TASK,
        tags=["reranker", "cross-encoder", "rerank-plugin"],
        model_name=name,
        eval_results=results or None,
    )


def card_rows(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row for each metric: before, after, and their difference with its interval."""
    rows = []
    for name, after in metrics["after"].items():
        if name == "queries":
            continue
        change = metrics["difference"][name]
        low, high = metrics["difference"]["interval_95"][name]
        rows.append(
            {
                "name": name,
                "before": f"{metrics['before'][name]:.4f}",
                "after": f"{after:.4f}",
                "difference": f"{change:+.4f} ({low:+.4f} to {high:+.4f})",
            }
        )
    return rows
