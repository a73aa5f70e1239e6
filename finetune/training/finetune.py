"""A training run from the first line of data to the trained folder."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.scorer import Scorer, ScoringError
from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import saving
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.adapters import Base
from rerank_plugin.model.device import resolve_device, warn_of_slow_products
from rerank_plugin.model.families import usable_dtype
from rerank_plugin.model.head import keep_one_label
from rerank_plugin.model.loaded import LoadedModel, quiet_transformers
from rerank_plugin.model.loading import DEFAULT_MAX_LENGTH, load_model, resolve_max_length
from rerank_plugin.model.names import distinct_names
from rerank_plugin.model.settings import RerankSettings, is_adapter

from ..argument_names import OURS
from ..config import FREE, FinetuneConfig
from ..data.dataset import GroupDataset
from ..evaluation.calibration import Calibration
from ..evaluation.comparison import Comparison
from ..evaluation.scoring import Evaluation
from ..evaluation.significance import compare_metrics
from ..export.hub import HubRepository
from ..export.model_folder import (
    fold_calibration,
    merge_adapter,
    prepare_config,
    prepare_tokenizer,
    write_records,
)
from ..export.target import check_not_the_base
from ..losses import DEFAULT_LOSS, make_loss
from ..losses.base import Loss
from ..report.report import ComparisonReport
from .arguments import plateau_warmup_steps, product_dtype, step_groups, training_arguments
from .callbacks import History, LastStep, PlateauWarmup, ProgressLine
from .checkpoint import RESUMES
from .collapse_guard import CollapseGuard, TrainingStoppedError
from .distributed import (
    check_launcher,
    first_process_first,
    gathered,
    is_sharded,
    meet,
    rank,
    wait,
    world_size,
)
from .dropout import set_dropout
from .heap import kept_memory
from .interrupt import Interruption
from .learning_rate import given_or_default_rate
from .lr_finder import Sweep
from .model_selection import METRIC, KeepBest
from .reporters import spare_reporters
from .run_dir import RunFolder
from .stopwatch import Stopwatch
from .trainer import RerankTrainer
from .training_data import load_data

logger = logging.getLogger(__name__)

#: Tokens of a forward and backward pass, by device. A backward pass keeps what a forward pass
#: leaves; on a CPU, twice as many are no faster.
TOKEN_BUDGET = {"cuda": 16_384, "mps": 8_192, "cpu": 2_048}


@dataclass(frozen=True)
class FinetuneResult:
    """What a run found and where its model lies."""

    #: Mean metrics on the held-out queries before the first step, and of the model that was kept.
    before: dict[str, float]
    after: dict[str, float]
    #: Their paired difference, with 95% intervals.
    difference: dict[str, Any]
    #: Whether any step beat the model that the run started from, by nDCG@10.
    improved: bool
    model_dir: Path
    #: The entries of `history.jsonl`.
    history: list[dict[str, float]]


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune a reranker; it is evaluated before the first step, during training and after.

    The folder holds the model with the best nDCG@10 on queries that choose; if none beats the model
    that the run started from beyond chance, it holds that one, and `improved` is false. What it is
    worth is reported on other queries. A run that was interrupted goes on when it is started again
    with the same options, and ends with the same weights.

    Raises:
        InputError: an option, a file or the model cannot be used; nothing is left behind.
        UploadError: the folder is finished, and `--push_to_hub` failed.
        SavingError: the disk is full or broken; the same call goes on from the last checkpoint.
        KeyboardInterrupt: the run was stopped; so does it then.
    """
    check_launcher()
    # Fields may have been assigned since it was made: everything is checked once more.
    config = replace(config)
    device = resolve_device(config.device)
    if world_size() > 1:
        meet(on_cpu=device.type == "cpu")
    if rank() > 0:
        # What is to be said, the first process says.
        logging.getLogger("rerank_plugin").setLevel(logging.ERROR)
    target = expanded(config.finetune_model_dir)
    if config.lora and not config.merge:
        check_not_the_base(target, config.model_name_or_path)
    folder = RunFolder(target, resumable(config), overwrite=config.overwrite)
    try:
        repository = hub_repository(config, target)
        result = Run(config, folder, device).result()
    except BaseException:
        folder.leave()
        raise
    if repository:
        repository.upload(result.model_dir)
    return result


def hub_repository(config: FinetuneConfig, target: Path) -> HubRepository | None:
    """Return the repository that `--push_to_hub` uploads to; the first process alone does so."""
    if not config.trainer.get("push_to_hub"):
        return None
    with first_process_first():
        if rank() > 0:
            return None
        return HubRepository.create(config.trainer, default_name=target.absolute().name)


def resumable(config: FinetuneConfig) -> dict[str, Any]:
    """The options that a resumed run must share with the one that it goes on with."""
    record = {name: value for name, value in config.as_record().items() if name not in FREE}
    trainer = config.trainer.items()
    record["trainer"] = {name: value for name, value in trainer if name not in OURS}
    # As they come back from JSON.
    values: dict[str, Any] = json.loads(json.dumps({**record, "processes": world_size()}))
    return values


class Run:
    """One run: its data, its model and its trainer, made in the order in which they can fail.

    Args:
        config: The options.
        folder: Where it works.
        device: Where it trains.
    """

    def __init__(self, config: FinetuneConfig, folder: RunFolder, device: torch.device) -> None:
        self.config = config
        self.folder = folder
        stopwatch = Stopwatch()
        given = make_loss(config.loss, temperature=config.temperature) if config.loss else None
        with first_process_first():
            self.data = load_data(config, folder)
        if config.loss and given and given.needs_teacher:
            for groups in (self.data.train, self.data.validation, self.data.test):
                groups.require_teacher("loss", config.loss)
        # Before the model: a newly initialised head is drawn from this seed.
        transformers.set_seed(config.seed)
        loaded = load_model(
            config.model_name_or_path, new_head=True, trust_remote_code=config.trust_remote_code
        )
        self.loss_name = config.loss or DEFAULT_LOSS[loaded.has_new_head]
        loss = given or make_loss(self.loss_name)
        self.max_length = resolve_max_length(
            config.max_len,
            default=DEFAULT_MAX_LENGTH,
            config=loaded.model.config,
            option="max_len",
        )
        encoder = PairEncoder(loaded.tokenizer, max_length=self.max_length, option="max_len")
        prepare_config(loaded.model.config, RerankSettings().normalize)
        prepare_tokenizer(loaded.tokenizer, self.max_length)
        set_dropout(loaded.model, config.dropout)
        #: Of what an adapter is put on.
        self.base_fingerprint = Base.of(loaded, config.model_name_or_path).fingerprint
        if folder.state.get("base", self.base_fingerprint) != self.base_fingerprint:
            raise folder.changed("model_name_or_path", "the model is")
        folder.keep(base=self.base_fingerprint)
        self.dtype = dtype = usable_dtype(product_dtype(config, device), loaded.model.config)
        warn_of_slow_products(dtype, device)
        if not config.lora:
            keep_one_label(loaded.model)
        self.labels = int(loaded.model.config.num_labels or 1)
        model = with_adapter(config, loaded, device, dtype) if config.lora else loaded.model
        scorer = Scorer(
            loaded.model,
            encoder,
            token_budget=config.token_budget or TOKEN_BUDGET[device.type],
            trained=model,
        )
        logger.info("loss: %s", self.loss_name)
        rate = self.learning_rate(loaded, scorer, loss, device, dtype)
        arguments = training_arguments(
            config,
            folder=str(folder.work),
            device=device,
            dtype=dtype,
            lr=rate,
            groups=len(self.data.train),
            resumed=folder.checkpoint is not None,
        )
        self.trainer = RerankTrainer(
            model=model,
            args=arguments,
            scorer=scorer,
            loss=loss,
            train_groups=self.data.train,
            eval_groups=self.data.validation,
            group_size=config.train_group_size,
            stopwatch=stopwatch,
            guard=CollapseGuard(),
        )
        self.history = History(folder.history)
        self.best = KeepBest(folder.model, self.trainer, patience=config.early_stopping)
        self.interruption = Interruption()
        # Steps have as many pairs on every process, or nearly.
        self.progress = ProgressLine(
            lambda: self.trainer.train_pairs * world_size() / stopwatch.seconds
        )

    def learning_rate(
        self,
        loaded: LoadedModel,
        scorer: Scorer,
        loss: Loss,
        device: torch.device,
        dtype: torch.dtype,
    ) -> float:
        """The rate that was given, measured, or suits what is loaded; a resumed run knows it."""
        config = self.config
        known: float | None = self.folder.state.get("lr")
        if known is not None:
            return known
        rate = given_or_default_rate(config, loaded)
        if config.lr == "auto":
            torch.nn.Module.to(scorer.model, device)
            sweep = Sweep(
                scorer,
                loss=loss,
                groups=self.data.train,
                group_size=config.train_group_size,
                step_groups=step_groups(config),
                seed=config.seed,
                dtype=dtype,
            )
            with kept_memory():
                rate = gathered(sweep.best(rate))[0]
        self.folder.keep(lr=rate)
        return rate

    def result(self) -> FinetuneResult:
        """Train, then put the trained folder in its place."""
        before = self.train()
        self.best.settle()
        after = self.worth_of_the_kept(before)
        metrics = {
            **compare_metrics(before.values, after.values),
            "improved": self.best.improved,
            "best_step": self.best.step,
            "validation": compare_metrics(self.best.before.values, self.best.kept.values),
        }
        self.say_what_it_is_worth(metrics)
        if rank() == 0:
            self.publish(metrics, before, after)
        wait()
        return FinetuneResult(
            before=metrics["before"],
            after=metrics["after"],
            difference=metrics["difference"],
            improved=metrics["improved"],
            model_dir=self.folder.target,
            history=self.history.entries,
        )

    def train(self) -> Evaluation:
        """Run the trainer's loop; returns what the test queries say of the first model."""
        trainer, config, stopwatch = self.trainer, self.config, self.trainer.stopwatch
        trainer.remove_callback(PrinterCallback)
        spare_reporters(trainer, is_wanted="report_to" in config.trainer)
        report = BeforeTraining(self.folder, trainer, self.data.test)
        carried: list[Any] = [self.history, self.best]
        if config.reduces_on_plateau:
            carried.append(PlateauWarmup(plateau_warmup_steps(config, len(self.data.train))))
        trainer.carried |= {type(item).__name__: item for item in carried}
        for callback in (
            report,
            *carried,
            trainer.guard,
            self.progress,
            LastStep(stopwatch),
            self.interruption,
        ):
            trainer.add_callback(callback)
        checkpoint = str(self.folder.checkpoint) if self.folder.checkpoint else None
        if checkpoint:
            logger.info("going on from %s", checkpoint)
        broken = False
        try:
            with kept_memory(), self.interruption.listening():
                trainer.train(resume_from_checkpoint=checkpoint)
        except (ScoringError, TrainingStoppedError) as error:
            if self.best.step is None:
                raise
            self.progress.close()
            logger.warning("training stopped, the model chosen so far is kept: %s", error)
            broken = True
        finally:
            self.progress.close()
        stopwatch.stop()
        if trainer.is_deepspeed_enabled:
            # Models that are loaded from here on are whole ones.
            unset_hf_deepspeed_config()
        if self.interruption.stops and trainer.state.global_step < trainer.state.max_steps:
            step = trainer.state.global_step
            logger.warning("stopped behind step %d: the same command goes on from there", step)
            raise KeyboardInterrupt
        if trainer.args.eval_strategy == "no" and not broken:
            trainer.evaluate()
            self.best.keep(trainer.state)
            logger.warning("--eval_strategy no: the last weights are kept, better or not")
        pairs = sum(gathered(trainer.train_pairs))
        self.history.add(
            {
                "step": trainer.state.global_step,
                "epoch": trainer.state.epoch or 0.0,
                "train_seconds": stopwatch.seconds,
                "train_pairs": pairs,
                "train_pairs_per_second": pairs / stopwatch.seconds,
            }
        )
        return report.found

    def worth_of_the_kept(self, before: Evaluation) -> Evaluation:
        """What the test queries say of the model that is kept."""
        if self.best.step == 0:
            return before
        wait()
        if self.best.step != self.trainer.state.global_step:
            with quiet_transformers():
                self.trainer.load_weights(
                    self.folder.model, trust_remote_code=self.config.trust_remote_code
                )
        return self.trainer.rank(self.data.test)

    def say_what_it_is_worth(self, metrics: dict[str, Any]) -> None:
        """Tell of what the figures alone might hide."""
        if self.config.lora_4bit:
            logger.warning(
                "the figures are those of a base in 4 bits, and the adapter will stand on the "
                "whole one: `rerank-plugin evaluate` says what it is worth there"
            )
        _, high = metrics["difference"]["interval_95"][METRIC]
        if metrics["improved"] and high < 0:
            logger.warning(
                "the queries that report contradict those that chose the model: nDCG@10 changed by "
                "%+.4f; hold out more queries (--eval_queries) before you use it",
                metrics["difference"][METRIC],
            )

    @property
    def facts(self) -> dict[str, Any]:
        """What the run found out by itself, and how long it took."""
        last, scorer = self.history.entries[-1], self.trainer.scorer
        return {
            "learning rate": self.folder.state["lr"],
            "device": scorer.device,
            "precision of products": self.dtype,
            "steps": self.trainer.state.global_step,
            "kept step": self.best.step,
            "training seconds": f"{last['train_seconds']:.1f}",
            "pairs a second": f"{last['train_pairs_per_second']:.1f}",
        }

    def fold(self, calibration: Calibration | None, model: Path) -> None:
        """Put the calibration into the weights of a model."""
        if calibration is None:
            logger.warning("--fold_calibration: the queries that report say too little for one")
        else:
            fit = calibration.scaling
            trust = self.config.trust_remote_code
            fold_calibration(model, fit.scale, fit.bias, trust_remote_code=trust)

    def publish(self, metrics: dict[str, Any], before: Evaluation, after: Evaluation) -> None:
        """Write the records beside the weights, and put the folder in its place.

        Args:
            metrics: What `metrics.json` will hold.
            before: What the queries that report say of the first model.
            after: And of the kept one.
        """
        config, folder = self.config, self.folder
        with saving(folder.copy, again=RESUMES):
            changes = config.merge or config.fold_calibration
            model = folder.copy_model() if changes else folder.model
            if config.merge:
                merge_adapter(model, trust_remote_code=config.trust_remote_code)
            calibration = Calibration.fit(after.scored_pairs(self.data.test))
            if config.fold_calibration:
                self.fold(calibration, model)
            meaning = calibration.settings(folded=config.fold_calibration) if calibration else {}
            settings = RerankSettings(
                max_length=self.max_length,
                base_model=config.model_name_or_path,
                base_fingerprint=self.base_fingerprint,
                data={
                    "fingerprint": self.data.fingerprint,
                    "train_groups": len(self.data.train),
                    "validation_groups": len(self.data.validation),
                    "test_groups": len(self.data.test),
                    "skipped_lines": self.data.skipped,
                },
                options={**config.as_record(), "loss": self.loss_name},
                metrics=metrics,
                **meaning,
            )
            self.write_report(model, settings, (before, after), calibration)
            write_records(model, settings, labels=self.labels)
            folder.publish(model)

    def write_report(
        self,
        model: Path,
        settings: RerankSettings,
        evaluations: tuple[Evaluation, Evaluation],
        calibration: Calibration | None,
    ) -> None:
        """Write report.html and its pictures; a run without them is as good a run."""
        names = distinct_names(self.config.model_name_or_path, self.folder.target)
        report = ComparisonReport(
            title=f"{names[1]}, fine-tuned from {names[0]}",
            names=names,
            comparison=Comparison.from_evaluations(self.data.test, names, evaluations),
            normalize=settings.normalize,
            calibration=calibration,
            history=self.history.entries,
            kept_step=self.best.step,
            facts={"Data": settings.data, "Run": self.facts, "Options": settings.options},
        )
        try:
            report.write(model)
        except OSError:
            # What else is written would meet the same disk: the same command resumes.
            raise
        except Exception as error:
            logger.warning("report.html is not written: %s: %s", type(error).__name__, error)


class BeforeTraining(TrainerCallback):
    """What the test queries say of the model before the first step; a resumed run knows it."""

    def __init__(self, folder: RunFolder, trainer: RerankTrainer, groups: GroupDataset) -> None:
        self.folder = folder
        self.trainer = trainer
        self.groups = groups
        self._found: Evaluation | None = None

    @property
    def found(self) -> Evaluation:
        """The evaluation."""
        assert self._found is not None, "no evaluation yet"
        return self._found

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate, unless that was done before an interruption."""
        known = self.folder.state.get("before")
        if known is None:
            self._found = self.trainer.rank(self.groups)
            self.folder.keep(before=self._found.to_dict(with_logits=True))
        else:
            self._found = Evaluation.from_dict(known)


def with_adapter(
    config: FinetuneConfig, loaded: LoadedModel, device: torch.device, dtype: torch.dtype
) -> Any:
    """The model with a LoRA adapter to train."""
    from .lora import add_adapter, check_4bit

    if is_adapter(config.model_name_or_path):
        raise OptionError(
            "lora", f"{config.model_name_or_path} is an adapter itself: merge it first"
        )
    sharded = is_sharded(config.trainer)
    if config.lora_4bit:
        check_4bit(device, sharded=sharded)
    return add_adapter(
        loaded,
        base=config.model_name_or_path,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        rslora=config.lora_rslora,
        dora=config.lora_dora,
        # FSDP and DeepSpeed put weights of one precision together, and cast them on their own.
        dtype=torch.float32 if sharded else dtype,
        in_4bit=config.lora_4bit,
    )
