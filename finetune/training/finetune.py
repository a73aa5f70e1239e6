"""`finetune`: a training run, from the first line of data to the trained folder."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rerank_plugin.engine.cpu.threads import use_threads
from rerank_plugin.engine.scores import ScoringError
from rerank_plugin.model.device import resolve_device
from rerank_plugin.model.loaded import quiet_transformers

from ..blending.choice import Choice
from ..blending.describe import describe_general
from ..config import FinetuneConfig
from ..data.dataset import GroupDataset
from ..evaluation.metrics import METRIC
from ..evaluation.scoring import Evaluation
from ..evaluation.significance import compare_metrics
from ..export.hub import HubRepository
from .arguments import plateau_warmup_steps
from .blend import blend_kept_model, check_blend
from .callbacks import (
    History,
    LastCheckpoint,
    LastStep,
    PlateauWarmup,
    ProgressLine,
    Stopwatch,
    TeacherComparison,
    tolerate_reporters,
)
from .collapse_guard import TrainingStoppedError
from .data import RunData, check_instructions, load_data
from .distributed import (
    check_fsdp,
    check_launcher,
    gather,
    is_main_process,
    join_processes,
    main_process_first,
    wait_for_everyone,
)
from .interrupt import Interruption
from .loop import make_trainer, train_steps
from .model import TrainableModel, prepare_model
from .model_selection import ModelSelection
from .publish import Outcome, publish
from .refit import check_refit, refit
from .run_dir import RunDir, open_run_dir
from .schedule.duration import log_time_budget, with_epochs
from .schedule.learning_rate import choose_learning_rate
from .trainer import RerankTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneResult:
    """The figures of a run, and the folder of its model."""

    #: Mean metrics on the test queries, of the base model and of the kept model.
    before: dict[str, float]
    after: dict[str, float]
    #: Their paired difference, with 95% intervals.
    difference: dict[str, Any]
    #: Whether the kept model beats the base model on the validation queries, by nDCG@10.
    improved: bool
    model_dir: Path
    #: The blend with the base and the metrics of general queries, as in `metrics.json`.
    blend: dict[str, Any] | None
    general: dict[str, Any] | None
    #: The second run of `--refit`, as in `metrics.json`.
    refit: dict[str, Any] | None
    #: The entries of `history.jsonl`.
    history: list[dict[str, float]]

    @classmethod
    def from_outcome(cls, model_dir: Path, outcome: Outcome) -> "FinetuneResult":
        """Return the result of a run that has been published."""
        metrics = outcome.metrics
        return cls(
            before=metrics["before"],
            after=metrics["after"],
            difference=metrics["difference"],
            improved=metrics["improved"],
            model_dir=model_dir,
            blend=metrics.get("blend"),
            general=metrics.get("general"),
            refit=metrics.get("refit"),
            history=outcome.history,
        )


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune a reranker, evaluated before the first step, during training and after.

    The trained folder contains the model that was best on the validation queries, by nDCG@10. If
    none beat the base model beyond chance, it contains the base model. The figures are those of
    the test queries. The same call resumes an interrupted run, and ends with the same weights.

    Raises:
        InputError: an option, a file or the model cannot be used; no file is left behind.
        UploadError: the folder is finished, and `--push_to_hub` failed.
        SavingError: the disk is full or broken; the same call resumes the run.
        KeyboardInterrupt: the run was stopped; the same call resumes it.
    """
    # Fields may have been assigned since the config was made: check them once more.
    config = replace(config)
    device = start_processes(config)
    with open_run_dir(config) as run_dir:
        repository = create_repository(config, run_dir.target)
        stopwatch = Stopwatch()
        data = load_data(config, run_dir)
        model = prepare_model(config, run_dir, device)
        check_instructions(data, model.scorer.encoder)
        check_blend(config, model)
        check_refit(config)
        config = with_epochs(config, run_dir, model.loaded, len(data.train))
        rate = choose_learning_rate(config, run_dir, model, data.train)
        trainer = make_trainer(
            config,
            model,
            data.train,
            data.validation,
            folder=run_dir.work,
            learning_rate=rate,
            stopwatch=stopwatch,
            evaluates_first=run_dir.checkpoint is None,
        )
        if run_dir.checkpoint is None:
            log_time_budget(config, trainer, data)
        callbacks = add_callbacks(trainer, config, run_dir, data)
        train(trainer, callbacks, run_dir)
        outcome = evaluate_kept_model(trainer, callbacks, config, run_dir, data, model)
        if config.refit:
            record = refit(config, run_dir, data, trainer, callbacks.selection)
            outcome = outcome.with_metrics({"refit": record} if record else {})
        publish(config, run_dir, data, model, outcome)
    if repository:
        repository.upload(run_dir.target)
    return FinetuneResult.from_outcome(run_dir.target, outcome)


def start_processes(config: FinetuneConfig) -> torch.device:
    """Join the other processes of the run, and return the device to train on."""
    check_launcher()
    check_fsdp(config.trainer)
    device = resolve_device(config.device)
    use_threads(config.threads)
    join_processes(on_cpu=device.type == "cpu")
    if not is_main_process():
        logging.getLogger("rerank_plugin").setLevel(logging.ERROR)
    return device


def create_repository(config: FinetuneConfig, target: Path) -> HubRepository | None:
    """Create the Hub repository of `--push_to_hub`, in the main process."""
    if not config.trainer.get("push_to_hub"):
        return None
    with main_process_first():
        if not is_main_process():
            return None
        return HubRepository.create(config.trainer, default_name=target.absolute().name)


class BaselineEvaluation(TrainerCallback):
    """Evaluates the base model before the first step; a resumed run has the results already.

    Args:
        run_dir: Keeps the results.
        trainer: Evaluates.
        data: Its test queries are evaluated, and its general ones.
    """

    def __init__(self, run_dir: RunDir, trainer: RerankTrainer, data: RunData) -> None:
        self.run_dir = run_dir
        self.trainer = trainer
        self.data = data
        self._result: Evaluation | None = None
        #: The evaluation of the general queries, if there are any.
        self.general: Evaluation | None = None

    @property
    def result(self) -> Evaluation:
        """Return the evaluation of the test queries."""
        assert self._result is not None, "no evaluation yet"
        return self._result

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate, unless the interrupted run has done so."""
        self._result = self._evaluated("before", self.data.test)
        if self.data.general is not None:
            self.general = self._evaluated("general_before", self.data.general, with_loss=False)

    def _evaluated(self, name: str, groups: GroupDataset, *, with_loss: bool = True) -> Evaluation:
        known = self.run_dir.state.get(name)
        if known is not None:
            return Evaluation.from_dict(known)
        evaluation = self.trainer.evaluate_groups(groups, with_loss=with_loss)
        self.run_dir.keep(**{name: evaluation.to_dict(with_logits=True)})
        return evaluation


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of a run that its later steps read."""

    baseline: BaselineEvaluation
    history: History
    selection: ModelSelection
    progress: ProgressLine
    interruption: Interruption


def add_callbacks(
    trainer: RerankTrainer, config: FinetuneConfig, run_dir: RunDir, data: RunData
) -> Callbacks:
    """Add the callbacks of a run to its trainer."""
    trainer.remove_callback(PrinterCallback)
    tolerate_reporters(trainer, requested="report_to" in config.trainer)
    callbacks = Callbacks(
        baseline=BaselineEvaluation(run_dir, trainer, data),
        history=History(run_dir.history),
        selection=ModelSelection(run_dir.model, trainer, patience=config.early_stopping),
        progress=ProgressLine(trainer.pairs_per_second),
        interruption=Interruption(),
    )
    stateful: list[Any] = [callbacks.history, callbacks.selection]
    if config.reduces_on_plateau:
        stateful.append(PlateauWarmup(plateau_warmup_steps(config, len(data.train))))
    trainer.stateful |= {type(callback).__name__: callback for callback in stateful}
    if trainer.loss.needs_teacher:
        trainer.add_callback(TeacherComparison(trainer, data.validation))
    for callback in (
        callbacks.baseline,
        *stateful,
        trainer.guard,
        callbacks.progress,
        LastStep(trainer.stopwatch),
        *([LastCheckpoint()] if config.refit else []),
        callbacks.interruption,
    ):
        trainer.add_callback(callback)
    return callbacks


def train(trainer: RerankTrainer, callbacks: Callbacks, run_dir: RunDir) -> None:
    """Train to the last step, or until the run diverges; a model is kept in both cases.

    Raises:
        KeyboardInterrupt: a signal stopped the run, after a checkpoint.
    """
    selection, finished = callbacks.selection, True
    try:
        train_steps(trainer, callbacks.progress, callbacks.interruption, run_dir.checkpoint)
    except (ScoringError, TrainingStoppedError) as error:
        if selection.step is None:
            raise
        logger.warning("training stopped, the best model so far is kept: %s", error)
        finished = False
    if trainer.is_deepspeed_enabled:
        # Models that are loaded from here on are whole ones.
        unset_hf_deepspeed_config()
    if trainer.args.eval_strategy == "no" and finished:
        trainer.evaluate()
        selection.save(trainer.state)
        logger.warning("--eval_strategy no: the last weights are kept, better or not")


def training_speed(trainer: RerankTrainer) -> dict[str, float]:
    """Return the last entry of `history.jsonl`."""
    pairs, seconds = sum(gather(trainer.train_pairs)), trainer.stopwatch.seconds
    return {
        "step": trainer.state.global_step,
        "epoch": trainer.state.epoch or 0.0,
        "train_seconds": seconds,
        "train_pairs": pairs,
        "train_pairs_per_second": pairs / seconds,
    }


def evaluate_kept_model(
    trainer: RerankTrainer,
    callbacks: Callbacks,
    config: FinetuneConfig,
    run_dir: RunDir,
    data: RunData,
    model: TrainableModel,
) -> Outcome:
    """Evaluate the kept model on the test queries, and compare it with the base model."""
    selection, before = callbacks.selection, callbacks.baseline.result
    selection.reconcile()
    general = (callbacks.baseline.general, callbacks.baseline.general)
    choice = blend_kept_model(trainer, selection, config, run_dir, data, model, general[0])
    if selection.step == 0:
        after = before
    else:
        # Trials of blends have changed the weights in memory.
        load_kept_model(trainer, None if choice else selection.step, config, run_dir)
        after = trainer.evaluate_groups(data.test)
        general = general[0], general_after(trainer, choice, data)
    metrics = {
        **compare_metrics(before.values, after.values),
        "improved": selection.improved,
        "best_step": selection.step,
        "untrained_head": selection.step == 0 and model.loaded.has_new_head,
        "validation": compare_metrics(selection.before.values, selection.kept.values),
        **({"blend": choice.record} if choice else {}),
        **compared_general(*general),
    }
    add_to_history(trainer, callbacks, choice, metrics)
    warn_of_metrics(config, metrics)
    steps = trainer.state.global_step
    return Outcome(before, after, metrics, callbacks.history.entries, steps)


def general_after(
    trainer: RerankTrainer, choice: Choice | None, data: RunData
) -> Evaluation | None:
    """Return the evaluation of the general queries with the kept model, if there are any."""
    if choice or data.general is None:
        return choice.chosen.general if choice else None
    return trainer.evaluate_groups(data.general, with_loss=False)


def compared_general(before: Evaluation | None, after: Evaluation | None) -> dict[str, Any]:
    """Return the entry `general` of `metrics.json`, if there are general queries."""
    if before is None or after is None:
        return {}
    return {"general": compare_metrics(before.values, after.values)}


def add_to_history(
    trainer: RerankTrainer, callbacks: Callbacks, choice: Choice | None, metrics: dict[str, Any]
) -> None:
    """Add what was evaluated after the last step, and the speed of training."""
    step = {"step": trainer.state.global_step, "epoch": trainer.state.epoch or 0.0}
    for trial in choice.tried if choice else ():
        figures = {f"blend_{name}": value for name, value in trial.figures.items()}
        callbacks.history.add({**step, **figures})
    for side in ("before", "after") if "general" in metrics else ():
        name = f"general_{METRIC}_{side}"
        callbacks.history.add({**step, name: metrics["general"][side][METRIC]})
    callbacks.history.add(training_speed(trainer))


def load_kept_model(
    trainer: RerankTrainer, step: int | None, config: FinetuneConfig, run_dir: RunDir
) -> None:
    """Load the weights of the kept model, unless they are those of the last step."""
    wait_for_everyone()
    if step != trainer.state.global_step:
        with quiet_transformers():
            trainer.load_weights(run_dir.model, trust_remote_code=config.trust_remote_code)


def warn_of_metrics(config: FinetuneConfig, metrics: dict[str, Any]) -> None:
    """Log what the metrics alone do not show."""
    if config.load_in_4bit:
        logger.warning(
            "the metrics are those of the base in 4 bits; `rerank-plugin evaluate` measures the "
            "adapter on the full base"
        )
    if metrics["untrained_head"]:
        logger.warning(
            "the scoring head of the base model is newly initialised and ranks at random: train on "
            "a few hundred groups or for more epochs (--total_epoch), or from a trained reranker"
        )
    if "general" in metrics and metrics["general"]["difference"]["interval_95"][METRIC][1] < 0:
        logger.warning(
            "%s Add general groups to --data_path, or use a lower --lr or --lora",
            describe_general(metrics["general"]),
        )
    _, high = metrics["difference"]["interval_95"][METRIC]
    if metrics["improved"] and high < 0:
        logger.warning(
            "the test queries contradict the validation queries: nDCG@10 changed by %+.4f; hold "
            "out more queries (--eval_queries) before you use the model",
            metrics["difference"][METRIC],
        )
