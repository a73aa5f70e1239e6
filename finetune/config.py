"""The options of a training run."""

from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from rerank_plugin.errors import OptionError
from rerank_plugin.options import check_options, option, typed_value

from .argument_names import (
    BESIDE,
    BY_LAYERS,
    INTERVALS,
    NOT_NEGATIVE,
    POSITIVE,
    RESERVED,
    TWINS,
    WITHOUT_ARGS,
)
from .losses import DEFAULT_LOSS, LOSSES, parse_loss

#: Training arguments that the run computes with, and their types.
COUNTED = {"gradient_accumulation_steps": (int,), "max_steps": (int,), "warmup_steps": (int, float)}

#: Options that say nothing of what a run computes: a resumed one may have others.
FREE = ("overwrite", "fail_if_not_better")


@dataclass(kw_only=True)
class FinetuneConfig:
    """Fine-tune a cross-encoder on jsonl groups, evaluated before, during and after.

    Raises:
        OptionError: a value cannot be used; the message starts with the option's name.
    """

    model_name_or_path: str = option(help="the model to start from: a hub id or a folder")
    data_path: str | list[str] = option(
        help="training groups: .jsonl or .jsonl.gz files, folders or globs"
    )
    finetune_model_dir: str = option(help="where the trained folder will stand")
    eval_data_path: str | list[str] | None = option(
        None, help="groups to evaluate on; default: queries held out of the training groups"
    )
    test_data_path: str | list[str] | None = option(
        None,
        help="groups that report what the chosen model is worth; default: half of the evaluation "
        "queries, so that the other half chooses the model",
    )
    eval_queries: int | None = option(
        None,
        help="how many queries to hold out where there is no --eval_data_path; default: the "
        "larger of 50 and 5%, at most 500 and at most a fifth",
    )
    on_bad_line: str = option(
        "error",
        choices=("error", "skip"),
        help="what a bad line does: end the run, or be skipped, counted and written down",
    )
    overwrite: bool = option(False, help="replace an earlier trained folder or an unfinished run")
    train_group_size: int = option(
        8, help="passages of a group in a step: one positive, the rest negatives"
    )
    loss: str | None = option(
        None,
        help=f"{', '.join(LOSSES)}, or a weighted sum such as softmax_cross_entropy+0.1:ranknet; "
        f"default {DEFAULT_LOSS[True]} for a newly initialised head, {DEFAULT_LOSS[False]} for a "
        "trained reranker",
    )
    temperature: float | None = option(
        None, help="of --loss kl_divergence: above 1 the teacher's scores are softer; default 1"
    )
    teacher_margin: float | None = option(
        None,
        help="leave out negatives whose teacher score is not at least this much below that of "
        "the worst positive: they may be positives",
    )
    max_len: int | None = option(
        None,
        help="the longest pair in tokens, of a longer one the document is cut; default 512, or "
        "what the model can read if that is less",
    )
    batch_size: int = option(8, help="groups a step and device")
    total_epoch: float = option(1.0, help="passes over the training groups")
    lr: float | str | None = option(
        None,
        words=("auto",),
        help="learning rate; default by what is loaded: a newly initialised head needs a larger "
        "one than a trained reranker, a small model than a large one, LoRA than full fine-tuning; "
        "auto measures some, for a few steps each",
    )
    dropout: float = option(0.0, help="dropout of hidden states; attention weights have none")
    factor: float | None = option(
        None,
        help="multiply the learning rate by this when the evaluation loss has stopped falling; "
        "0.3 where only --patience is given",
    )
    patience: int | None = option(
        None, help="evaluations without a lower loss before --factor; 8 where only that is given"
    )
    early_stopping: int | None = option(
        None, help="end the run after so many evaluations without a better model"
    )
    lora: bool = option(False, help="train a LoRA adapter and the head instead of all weights")
    lora_rank: int = option(16, help="rank of the adapter")
    lora_alpha: int = option(
        32, help="scale of the adapter, over its rank: the learning rate then suits every rank"
    )
    lora_dropout: float = option(0.0, help="dropout in front of the adapter")
    lora_targets: str | None = option(
        None,
        help="layers that get an adapter, by the ends of their names, as query,value; default all "
        "linear layers inside the encoder's layers",
    )
    lora_rslora: bool = option(
        False, help="rank-stabilised: the adapter's scale falls with the root of its rank"
    )
    lora_dora: bool = option(False, help="DoRA: length and direction of weights apart; slower")
    lora_4bit: bool = option(
        False, help="QLoRA: keep the base in 4 bits; for CUDA GPUs, by bitsandbytes"
    )
    merge: bool = option(False, help="with --lora: save a plain model, the adapter merged into it")
    fold_calibration: bool = option(
        False,
        help="put the calibration into the last layer, so that the sigmoid of a logit is a "
        "probability for every loader",
    )
    fail_if_not_better: bool = option(
        False, help="end with exit code 3 if no step beats the model that the run started from"
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 …")
    dtype: str = option(
        "auto", help="precision of the products: auto, float32, bfloat16 or float16"
    )
    token_budget: int | None = option(
        None,
        help="tokens of a forward and backward pass: fewer need less memory, the step stays the "
        "same; default by the device",
    )
    seed: int = option(
        42, help="fixes the held-out queries, the newly initialised head and every draw"
    )
    trust_remote_code: bool = option(False, help="run code that comes with the model")
    #: Options of transformers.TrainingArguments, by their names there.
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        if self.train_group_size < 2:
            raise OptionError(
                "train_group_size",
                f"{self.train_group_size} leaves no negative to compare with: at least 2",
            )
        for name in ("batch_size", "total_epoch"):
            self._check(name, getattr(self, name) > 0, "must be more than 0")
        self._check("seed", 0 <= self.seed < 2**32, "must be from 0 to 4294967295")
        for name in (
            "max_len",
            "lr",
            "eval_queries",
            "patience",
            "token_budget",
            "early_stopping",
        ):
            value = getattr(self, name)
            holds = value is None or isinstance(value, str) or value > 0
            self._check(name, holds, "must be more than 0")
        self._check_loss()
        self._check("factor", self.factor is None or 0 < self.factor < 1, "must be in (0, 1)")
        self._check("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        self._check_lora()
        self._check_trainer()
        self._check(
            "eval_strategy",
            not self.reduces_on_plateau or self.trainer.get("eval_strategy") != "no",
            "'no' leaves --factor and --patience without an evaluation loss to follow",
        )
        self._check(
            "eval_strategy",
            self.early_stopping is None or self.trainer.get("eval_strategy") != "no",
            "'no' leaves --early_stopping without evaluations to count",
        )
        self._check(
            "lr_scheduler_type",
            not self.reduces_on_plateau or "lr_scheduler_type" not in self.trainer,
            "cannot be given together with --factor or --patience, which are a schedule",
        )
        folder = Path(self.finetune_model_dir)
        self._check("finetune_model_dir", folder.name != "", "must name a folder of its own")

    def _check_trainer(self) -> None:
        for name, reason in RESERVED.items():
            if name in self.trainer:
                raise OptionError(name, f"cannot be set: {reason}")
        for ours, theirs in TWINS.items():
            if theirs in self.trainer:
                raise OptionError(theirs, f"is --{ours} here")
        for name, kinds in COUNTED.items():
            if name in self.trainer:
                self.trainer[name] = typed_value(name, self.trainer[name], kinds)
        self._check_numbers()
        self._check_companions()

    def _check_numbers(self) -> None:
        for name, value in self.trainer.items():
            if isinstance(value, float):
                self._check(name, isfinite(value), "is not a finite number")
            if isinstance(value, int | float):
                self._check(name, name not in POSITIVE or value > 0, "must be more than 0")
                self._check(name, name not in NOT_NEGATIVE or value >= 0, "must be 0 or more")
        steps = self.trainer.get("max_steps", -1)
        self._check("max_steps", steps > 0 or steps == -1, "must be more than 0, or -1 for all")

    def _check_companions(self) -> None:
        for name in self.trainer:
            needed = BESIDE.get(name, ())
            holds = not needed or any(self.trainer.get(other) for other in needed)
            self._check(name, holds, f"is for --{' or --'.join(needed)}")
        for name, strategy in INTERVALS.items():
            given = self.trainer.get(strategy, "steps")
            self._check(
                name, name not in self.trainer or given == "steps", f"is for --{strategy} steps"
            )
        optimizer = str(self.trainer.get("optim", WITHOUT_ARGS[0]))
        if "optim_args" in self.trainer:
            takes = optimizer not in WITHOUT_ARGS
            self._check("optim_args", takes, f"has no effect on --optim {optimizer}")
        if "optim_target_modules" in self.trainer:
            by_layers = optimizer.startswith(BY_LAYERS)
            self._check("optim_target_modules", by_layers, "is for --optim galore_… or apollo_…")
        self._check(
            "save_strategy",
            self.trainer.get("save_strategy") != "best",
            "is not for checkpoints, of which the newest is kept: choose from no, steps, epoch",
        )

    def _check_lora(self) -> None:
        for name in ("merge", "lora_targets", "lora_rslora", "lora_dora", "lora_4bit"):
            self._check(name, self.lora or not getattr(self, name), "is for --lora")
        folds = self.fold_calibration and self.lora and not self.merge
        self._check("fold_calibration", not folds, "is for plain models: with --lora, --merge too")
        self._check("lora_4bit", not (self.lora_4bit and self.lora_dora), "is not for --lora_dora")
        self._check("lora_rank", self.lora_rank > 0, "must be more than 0")
        self._check("lora_alpha", self.lora_alpha > 0, "must be more than 0")
        self._check("lora_dropout", 0 <= self.lora_dropout < 1, "must be in [0, 1)")

    def _check_loss(self) -> None:
        losses = [] if self.loss is None else [term.name for term in parse_loss(self.loss)]
        if self.temperature is not None:
            self._check("temperature", "kl_divergence" in losses, "is for --loss kl_divergence")
            self._check("temperature", self.temperature > 0, "must be more than 0")

    def _check(self, name: str, holds: bool, problem: str) -> None:
        if not holds:
            value = getattr(self, name, None)
            shown = self.trainer.get(name) if value is None else value
            raise OptionError(name, f"{shown!r} {problem}")

    @property
    def reduces_on_plateau(self) -> bool:
        """Whether the learning rate follows the evaluation loss."""
        return self.factor is not None or self.patience is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values for `rerank.json`, but for the access token."""
        record = asdict(self)
        record["trainer"].pop("hub_token", None)
        return record
