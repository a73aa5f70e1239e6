"""The last step of a run: records, report and model card beside the weights, then the rename."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rerank_plugin.io.disk_errors import saving
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.names import distinct_names, short_name
from rerank_plugin.model.settings import RerankSettings, is_adapter

from ..config import FinetuneConfig
from ..evaluation.calibration import Calibration
from ..evaluation.comparison import Comparison
from ..evaluation.fusion_figures import RetrievedQueries
from ..evaluation.fusion_fit import FusionFit, describe_fusion
from ..evaluation.scoring import Evaluation
from ..export.model_card import hub_id
from ..export.model_folder import fold_calibration, merge_adapter, write_records
from ..export.sentence_transformers import write_prompt_files
from ..report.report import ComparisonReport
from ..report.sections import run_sections
from .checkpoint import RESUMES
from .data import RunData
from .distributed import is_main_process, wait_for_everyone
from .model import TrainableModel
from .run_dir import RunDir

logger = logging.getLogger(__name__)

#: Options that name files and folders.
PATHS = (
    "data_path",
    "eval_data_path",
    "test_data_path",
    "general_data_path",
    "finetune_model_dir",
)


@dataclass(frozen=True)
class Outcome:
    """The results of training, for the records of the trained folder."""

    #: The evaluations of the test queries, of the base model and of the kept model.
    before: Evaluation
    after: Evaluation
    #: The contents of `metrics.json`.
    metrics: dict[str, Any]
    #: The entries of `history.jsonl`.
    history: list[dict[str, float]]
    #: The number of optimizer steps.
    steps: int

    def with_metrics(self, more: dict[str, Any]) -> "Outcome":
        """Return these results with more entries of `metrics.json`."""
        return replace(self, metrics={**self.metrics, **more})


def publish(
    config: FinetuneConfig, run_dir: RunDir, data: RunData, model: TrainableModel, outcome: Outcome
) -> None:
    """Write the records of a run beside its weights, and rename the folder into place.

    The main process does so while the others wait.
    """
    if is_main_process():
        with saving(run_dir.copy, again=RESUMES):
            calibration = Calibration.fit(outcome.after.scored_pairs(data.test))
            folder = finished_model(config, run_dir, calibration)
            settings = run_settings(config, data, model, outcome, calibration)
            settings = fused_settings(config, settings, data, outcome, calibration)
            facts = {
                "Data": settings.data,
                "Run": run_facts(run_dir, model, outcome),
                "Options": settings.options,
            }
            name = card_name(config)
            names = distinct_names(config.model_name_or_path, name)
            evaluations = outcome.before, outcome.after
            report = ComparisonReport(
                title=f"{names[1]}, fine-tuned from {names[0]}",
                names=names,
                comparison=Comparison.from_evaluations(data.test, names, evaluations),
                normalize=settings.normalize,
                calibration=calibration,
                history=outcome.history,
                kept_step=outcome.metrics["best_step"],
                facts=facts,
                sections=run_sections(settings),
            )
            write_report(report, folder)
            if model.loaded.prompt and not is_adapter(folder):
                write_prompt_files(folder, model.loaded.prompt, model.loaded.tokenizer)
            write_records(folder, settings, name=name, loaded=model.loaded)
            run_dir.publish(folder)
    wait_for_everyone()


def finished_model(
    config: FinetuneConfig, run_dir: RunDir, calibration: Calibration | None
) -> Path:
    """Return the folder to publish: the trained model, or a merged or calibrated copy of it."""
    if not (config.merge or config.fold_calibration):
        return run_dir.trained
    folder, trust = run_dir.copy_model(), config.trust_remote_code
    if config.merge:
        merge_adapter(folder, trust_remote_code=trust)
    if config.fold_calibration and calibration:
        scaling = calibration.scaling
        fold_calibration(folder, scaling.scale, scaling.bias, trust_remote_code=trust)
    elif config.fold_calibration:
        logger.warning("--fold_calibration: too few test queries to fit a calibration")
    return folder


def run_settings(
    config: FinetuneConfig,
    data: RunData,
    model: TrainableModel,
    outcome: Outcome,
    calibration: Calibration | None,
) -> RerankSettings:
    """Return the contents of `rerank.json`, without paths of this machine."""
    fitted = calibration.settings(folded=config.fold_calibration) if calibration else {}
    return RerankSettings(
        max_length=model.max_length,
        instruction=model.scorer.encoder.instruction or None,
        base_model=hub_id(config.model_name_or_path),
        base_fingerprint=model.base_fingerprint,
        data={
            "fingerprint": data.fingerprint,
            "train_groups": len(data.train),
            "validation_groups": len(data.validation),
            "test_groups": len(data.test),
            "skipped_lines": data.skipped,
        },
        options={**without_paths(config.to_dict()), "loss": model.loss_name},
        metrics=outcome.metrics,
        **fitted,
    )


def fused_settings(
    config: FinetuneConfig,
    settings: RerankSettings,
    data: RunData,
    outcome: Outcome,
    calibration: Calibration | None,
) -> RerankSettings:
    """Return settings with a fusion, where enough test queries have retrieval scores.

    Like the calibration it is fitted on the test queries, which did not choose the model.
    """
    logits = outcome.after.logits or []
    if config.fold_calibration and calibration:
        scale, bias = calibration.scaling.scale, calibration.scaling.bias
        logits = [scale * row + bias for row in logits]
    queries = RetrievedQueries.from_judged(logits, data.test)
    if not queries.are_enough:
        return settings
    fit = FusionFit.fit(queries, settings)
    logger.info("%s", describe_fusion(fit.record))
    return replace(settings, fusion=fit.record)


def without_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run with the names of files and folders instead of their paths."""
    trainer = options["trainer"].items()
    public: dict[str, Any] = {name: file_names(options[name]) for name in PATHS}
    # A configuration may be a path, too.
    public["trainer"] = {
        name: file_names(value) if Path(str(value)).is_absolute() else value
        for name, value in trainer
    }
    model = options["model_name_or_path"]
    public["model_name_or_path"] = hub_id(model) or short_name(model)
    return {**options, **public}


def file_names(paths: str | list[str] | None) -> str | list[str] | None:
    """Return paths without their folders."""
    if paths is None:
        return None
    return Path(paths).name if isinstance(paths, str) else [Path(path).name for path in paths]


def card_name(config: FinetuneConfig) -> str:
    """Return the name of the trained model: its id on the Hub, or the name of its folder."""
    folder = expanded(config.finetune_model_dir).absolute().name
    return str(config.trainer.get("hub_model_id") or folder)


def run_facts(run_dir: RunDir, model: TrainableModel, outcome: Outcome) -> dict[str, Any]:
    """Return what the run chose by itself, and how long it took, for the report."""
    last = outcome.history[-1]
    return {
        "learning rate": run_dir.state["lr"],
        "device": model.scorer.device,
        "precision": model.dtype,
        "steps": outcome.steps,
        "kept step": outcome.metrics["best_step"],
        "training seconds": f"{last['train_seconds']:.1f}",
        "pairs per second": f"{last['train_pairs_per_second']:.1f}",
    }


def write_report(report: ComparisonReport, folder: Path) -> None:
    """Write report.html and its pictures; a run without them is complete all the same."""
    try:
        report.write(folder)
    except OSError:
        # The disk would fail for the other files too; the same command resumes.
        raise
    except Exception as error:  # matplotlib and jinja2 raise errors of any class
        logger.warning("report.html was not written: %s: %s", type(error).__name__, error)
