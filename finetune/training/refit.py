"""A second run on all groups of `--data_path`, with what the first run chose.

The queries that a run holds out for validation and test are labels that it does not train on: an
eighth of 400 groups, a fifth of 200. The second run has the steps, the learning rate and the blend
of the first one, and chooses nothing. Metrics, calibration and fusion are those of the first run,
as in scikit-learn's `CalibratedClassifierCV(ensemble=False)`.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from rerank_plugin.engine.scores import ScoringError
from rerank_plugin.errors import OptionError
from rerank_plugin.io.disk_errors import saving

from ..blending.describe import describe_refit
from ..blending.weights import blend_weights
from ..config import FinetuneConfig
from ..evaluation.metrics import METRIC
from .blend import base_weights
from .callbacks import LastStep, ProgressLine, Stopwatch
from .checkpoint import RESUMES, latest_checkpoint
from .collapse_guard import TrainingStoppedError
from .data import RunData
from .distributed import is_main_process, is_sharded, wait_for_everyone
from .interrupt import Interruption
from .loop import make_trainer, train_steps
from .model import prepare_model
from .model_selection import SURE, ModelSelection, win_probability
from .run_dir import RunDir
from .trainer import RerankTrainer

logger = logging.getLogger(__name__)


def check_refit(config: FinetuneConfig) -> None:
    """Check that the weights can be trained once more.

    Raises:
        OptionError: each process holds a shard of them.
    """
    if config.refit and is_sharded(config.trainer):
        raise OptionError("refit", "not supported with FSDP or DeepSpeed")


def refit(
    config: FinetuneConfig,
    run_dir: RunDir,
    data: RunData,
    first: RerankTrainer,
    selection: ModelSelection,
) -> dict[str, Any] | None:
    """Train once more on all groups, and return the entry `refit` of `metrics.json`.

    The weights are in the folder `refitted` of the run, unless they are worse on the validation
    queries than those of the first run, although they were trained on them. Where the base model
    is kept there is nothing to repeat, and the result is None.

    Args:
        config: The options of the run.
        run_dir: The folders of the run; a resumed run has the result already, or a checkpoint.
        data: The groups.
        first: The trainer of the first run, whose memory is released.
        selection: The kept model of the first run.

    Raises:
        KeyboardInterrupt: a signal stopped the run, after a checkpoint.
    """
    if selection.step == 0:
        logger.warning("--refit: the base model is kept, so nothing is trained once more")
        return None
    if "refit" not in run_dir.state:
        release(first)
        record = {
            "groups": len(data.whole),
            "held_out": len(data.whole) - len(data.train),
            "steps": selection.step,
            "kept": train_again(config, run_dir, data, selection),
        }
        run_dir.keep(refit=record)
    record = run_dir.state["refit"]
    logger.log(logging.INFO if record["kept"] else logging.WARNING, "%s", describe_refit(record))
    return dict(record)


def release(trainer: RerankTrainer) -> None:
    """Release the memory of a trainer on its device."""
    assert trainer.model is not None
    trainer.model.to("cpu")
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train_again(
    config: FinetuneConfig, run_dir: RunDir, data: RunData, selection: ModelSelection
) -> bool:
    """Train and save the weights, and return whether they can be kept."""
    work = run_dir.work / "refit"
    config = second_config(config, selection.step)
    model = prepare_model(config, run_dir, selection.trainer.args.device)
    trainer = make_trainer(
        config,
        model,
        data.whole,
        data.validation,
        folder=work,
        learning_rate=run_dir.state["lr"],
        stopwatch=Stopwatch(),
        evaluates_first=False,
    )
    trainer.remove_callback(PrinterCallback)
    progress, interruption = ProgressLine(trainer.pairs_per_second), Interruption()
    for callback in (trainer.guard, progress, LastStep(trainer.stopwatch), interruption):
        trainer.add_callback(callback)
    logger.info("--refit: training on all %d groups", len(data.whole))
    try:
        train_steps(trainer, progress, interruption, latest_checkpoint(work))
    except (ScoringError, TrainingStoppedError) as error:
        logger.warning("--refit: training stopped: %s", error)
        return False
    assert trainer.model is not None
    if selection.alpha != 1:
        blend_weights(trainer.model, base_weights(config, run_dir), selection.alpha)
    evaluation = trainer.evaluate_groups(data.validation)
    logger.info(
        "--refit: %s on the validation queries is %.4f with the new weights, which were trained on "
        "these queries, and %.4f with those of the first run",
        METRIC,
        evaluation.means[METRIC],
        selection.kept.means[METRIC],
    )
    if win_probability(evaluation, selection.kept) >= SURE:
        return False
    save(trainer, run_dir.refitted)
    return True


def second_config(config: FinetuneConfig, steps: int | None) -> FinetuneConfig:
    """Return the options of the second run: so many steps without an evaluation."""
    trainer = {name: value for name, value in config.trainer.items() if name != "eval_steps"}
    trainer |= {"max_steps": steps, "eval_strategy": "no", "report_to": "none"}
    return replace(config, trainer=trainer, early_stopping=None)


def save(trainer: RerankTrainer, folder: Path) -> None:
    """Save the model of a trainer in a folder that is complete or missing."""
    staged = folder.with_suffix(".new")
    if is_main_process():
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
    wait_for_everyone()
    with saving(staged, again=RESUMES):
        trainer.save_model(str(staged), _internal_call=True)
    if is_main_process():
        staged.rename(folder)
    wait_for_everyone()
