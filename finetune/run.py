"""A training run from the first line of data to the trained folder."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback

from rerank_plugin.device import resolve_device
from rerank_plugin.encoding import PairEncoder
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.jsonl import SkippedLines
from rerank_plugin.loading import (
    DEFAULT_MAX_LENGTH,
    LoadedModel,
    load_model,
    resolve_max_length,
)
from rerank_plugin.scoring import Scorer, ScoringError
from rerank_plugin.settings import RerankSettings

from .callbacks import History, KeepBest, PlateauWarmup, ProgressLine, StopClock
from .config import FinetuneConfig
from .dataset import GroupDataset
from .dropout import set_dropout
from .groups import query_key
from .heap import kept_memory
from .index_cache import cache_folder
from .learning_rate import default_learning_rate
from .losses import make_loss
from .metrics import comparison
from .plots import plot_curves
from .run_folder import RunFolder
from .split import FEW_QUERIES, split_by_query
from .stopwatch import Stopwatch
from .trained_folder import merge_adapter, prepare_config, prepare_tokenizer, write_records
from .trainer import RerankTrainer
from .training_arguments import plateau_warmup_steps, training_arguments

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


@dataclass(frozen=True)
class Data:
    """The groups of a run, on their two sides."""

    train: GroupDataset
    held_out: GroupDataset
    fingerprint: str
    skipped: int


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune a reranker; it is evaluated before the first step, during training and after.

    The folder holds the model with the best nDCG@10 on the held-out queries; if no step beats the
    model that the run started from, it holds that one, and `improved` is false.

    Raises:
        InputError: an option, a file or the model cannot be used; nothing is left behind.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("training runs in one process: start it without torchrun or accelerate")
    device = resolve_device(config.device)
    run = RunFolder(Path(config.finetune_model_dir).expanduser(), overwrite=config.overwrite)
    try:
        return Run(config, run, device).result()
    except BaseException as error:
        # Nothing is thrown away that took time to make.
        if not run.model.exists():
            run.discard()
        elif isinstance(error, KeyboardInterrupt):
            logger.warning("interrupted: the best model so far lies in %s", run.model)
        raise


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
        self.stopwatch = Stopwatch()
        self.loss = make_loss(config.loss, temperature=config.temperature)
        self.data = load_data(config, folder)
        if self.loss.needs_teacher:
            for groups in (self.data.train, self.data.held_out):
                groups.require_teacher("loss", config.loss)
        # Before the model: a fresh head is drawn from this seed.
        transformers.set_seed(config.seed)
        loaded = load_model(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
        self.labels = int(loaded.model.config.num_labels or 1)
        self.max_length = resolve_max_length(
            config.max_len,
            default=DEFAULT_MAX_LENGTH,
            config=loaded.model.config,
            option="max_len",
        )
        encoder = PairEncoder(loaded.tokenizer, max_length=self.max_length, option="max_len")
        prepare_config(loaded.model.config, RerankSettings().normalize)
        prepare_tokenizer(loaded.tokenizer, self.max_length)
        arguments = training_arguments(
            config,
            folder=str(folder.work),
            device=device,
            lr=learning_rate(config, loaded),
            groups=len(self.data.train),
        )
        set_dropout(loaded.model, config.dropout)
        model = with_adapter(config, loaded) if config.lora else loaded.model
        self.trainer = RerankTrainer(
            model=model,
            args=arguments,
            scorer=Scorer(
                loaded.model,
                encoder,
                token_budget=config.token_budget or TOKEN_BUDGET[device.type],
                trained=model,
            ),
            loss=self.loss,
            train_groups=self.data.train,
            eval_groups=self.data.held_out,
            group_size=config.train_group_size,
            stopwatch=self.stopwatch,
        )
        self.history = History(folder.history)
        self.best = KeepBest(folder.model, self.trainer)

    def result(self) -> FinetuneResult:
        """Train, then put the trained folder in its place."""
        self.train()
        metrics = comparison(self.best.before.values, self.best.kept.values)
        config, model = self.config, self.folder.model
        if config.merge:
            merge_adapter(model, trust_remote_code=config.trust_remote_code)
        plot_curves(self.history.entries, model / "training_curves.png")
        settings = RerankSettings(
            max_length=self.max_length,
            base_model=config.model_name_or_path,
            data={
                "fingerprint": self.data.fingerprint,
                "train_groups": len(self.data.train),
                "held_out_groups": len(self.data.held_out),
                "skipped_lines": self.data.skipped,
            },
            options=config.as_record(),
            metrics={**metrics, "best_step": self.best.step},
        )
        write_records(model, settings, labels=self.labels)
        self.folder.publish()
        return FinetuneResult(
            before=metrics["before"],
            after=metrics["after"],
            difference=metrics["difference"],
            improved=metrics["improved"],
            model_dir=self.folder.target,
            history=self.history.entries,
        )

    def train(self) -> None:
        """Run the trainer's loop, and write the times down."""
        trainer, config = self.trainer, self.config
        trainer.remove_callback(PrinterCallback)
        progress = ProgressLine()
        for callback in (self.history, self.best, progress, StopClock(self.stopwatch)):
            trainer.add_callback(callback)
        if config.reduces_on_plateau:
            trainer.add_callback(PlateauWarmup(plateau_warmup_steps(config, len(self.data.train))))
        try:
            with kept_memory():
                trainer.train()
        except ScoringError as error:
            if self.best.step is None:
                raise
            progress.close()
            logger.warning("training stopped, the best model so far is kept: %s", error)
        finally:
            progress.close()
        self.stopwatch.stop()
        if trainer.args.eval_strategy == "no":
            trainer.evaluate()
            self.best.keep(trainer.state)
            logger.warning("--eval_strategy no: the last weights are kept, better or not")
        seconds = self.stopwatch.seconds
        self.history.add(
            {
                "step": trainer.state.global_step,
                "epoch": trainer.state.epoch or 0.0,
                "train_seconds": seconds,
                "train_pairs": trainer.train_pairs,
                "train_pairs_per_second": trainer.train_pairs / seconds,
            }
        )


def load_data(config: FinetuneConfig, folder: RunFolder) -> Data:
    """Read and check all groups, and hold queries out where no others are given."""
    cache = cache_folder()
    skipped = SkippedLines(folder.skipped_lines) if config.on_bad_line == "skip" else None
    groups = GroupDataset.build(config.data_path, cache, skipped)
    if config.eval_data_path is None:
        train, held_out = split_by_query(
            groups.queries, wanted=config.eval_queries, seed=config.seed
        )
        sides = groups.select(train), groups.select(held_out)
    else:
        sides = groups, GroupDataset.build(config.eval_data_path, cache, skipped)
        known = {query_key(query) for query in groups.queries}
        repeated = sum(query_key(query) in known for query in sides[1].queries)
        if repeated:
            logger.warning(
                "--eval_data_path repeats %d training queries of %d: its figures flatter the model",
                repeated,
                len(sides[1]),
            )
    if len(sides[1]) < FEW_QUERIES:
        logger.warning("only %d queries to evaluate on: weak evidence", len(sides[1]))
    if config.teacher_margin is not None:
        sides = sides[0].without_false_negatives(config.teacher_margin), sides[1]
    count = skipped.count if skipped else 0
    if count:
        written = Path(config.finetune_model_dir) / folder.skipped_lines.name
        logger.warning("%d bad lines skipped, written down in %s", count, written)
    return Data(*sides, fingerprint=groups.fingerprint, skipped=count)


def learning_rate(config: FinetuneConfig, loaded: LoadedModel) -> float:
    """The rate that was given, or the default for what is loaded; both are told."""
    suits = default_learning_rate(
        loaded.model.config,
        fresh_head=loaded.has_fresh_head,
        lora=config.lora,
        step_groups=config.step_groups,
    )
    what = "a fresh scoring head" if loaded.has_fresh_head else "a trained reranker"
    how = "LoRA" if config.lora else "full"
    if config.lr is None:
        logger.info("%s, %s fine-tuning: learning rate %.2g", what, how, suits)
        return suits
    if loaded.has_fresh_head and config.lr < suits / 4:
        logger.warning(
            "--lr %.2g is low for %s (%s fine-tuning), it may learn little: the default is %.2g",
            config.lr,
            what,
            how,
            suits,
        )
    return config.lr


def with_adapter(config: FinetuneConfig, loaded: LoadedModel) -> Any:
    """The model with a LoRA adapter to train."""
    from .lora import add_adapter

    if (Path(config.model_name_or_path) / "adapter_config.json").is_file():
        raise OptionError(
            "lora", f"{config.model_name_or_path} is an adapter itself: merge it first"
        )
    return add_adapter(
        loaded,
        base=config.model_name_or_path,
        rank=config.lora_rank,
        alpha=config.lora_alpha or 2 * config.lora_rank,
        dropout=config.lora_dropout,
    )
