"""The options of a training run."""

from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from rerank_plugin.errors import OptionError, invalid_choice
from rerank_plugin.options import THREADS_HELP, check_options, option, typed_value

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

#: Training arguments that the run itself uses, and their types.
COUNTED = {"gradient_accumulation_steps": (int,), "max_steps": (int,), "warmup_steps": (int, float)}

#: Options that do not change what a run computes: a resumed run may change them.
FREE = ("overwrite", "fail_if_not_better", "threads")

#: Options that must be more than 0, if they are numbers.
POSITIVE_NUMBERS = (
    "batch_size",
    "total_epoch",
    "max_len",
    "lr",
    "eval_queries",
    "patience",
    "token_budget",
    "threads",
    "early_stopping",
)


@dataclass(kw_only=True)
class FinetuneConfig:
    """Fine-tune a cross-encoder on jsonl groups, evaluated before, during and after training.

    Raises:
        OptionError: a value is invalid; the message starts with the name of the option.
    """

    model_name_or_path: str = option(help="the base model: a hub id or a folder")
    data_path: str | list[str] = option(
        help="training groups: .jsonl or .jsonl.gz files, folders or globs"
    )
    finetune_model_dir: str = option(help="the folder for the trained model")
    eval_data_path: str | list[str] | None = option(
        None, help="validation groups; default: queries held out from the training groups"
    )
    test_data_path: str | list[str] | None = option(
        None, help="test groups; default: half of the validation queries"
    )
    general_data_path: str | list[str] | None = option(
        None,
        help="groups of other topics, on which the model must not become worse: ranked before and "
        "after training, and when --blend is chosen",
    )
    eval_queries: int | None = option(
        None,
        help="queries to hold out without --eval_data_path; default: 5% of them, from 50 to 500, "
        "and at most a fifth",
    )
    on_bad_line: str = option(
        "error",
        choices=("error", "skip"),
        help="stop at an invalid line, or skip, count and save it",
    )
    overwrite: bool = option(False, help="replace an earlier trained folder or an unfinished run")
    train_group_size: int = option(
        8,
        help="passages of a group in a step: one positive, the others negatives or lower positives",
    )
    loss: str | None = option(
        None,
        help=f"{', '.join(LOSSES)}, or a weighted sum such as softmax_cross_entropy+0.1:ranknet; "
        f"default: {DEFAULT_LOSS[True]} for a newly initialised head, {DEFAULT_LOSS[False]} for a "
        "trained reranker",
    )
    temperature: float | None = option(
        None, help="with --loss kl_divergence: above 1 softens the teacher's scores; default 1"
    )
    teacher_margin: float | None = option(
        None,
        help="leave out negatives whose teacher score is not at least this much below that of the "
        "lowest positive: they may be relevant",
    )
    max_len: int | None = option(
        None,
        aliases=("max_length",),
        help="the maximum length of a pair in tokens, longer documents are truncated; default 512, "
        "or the model's limit if that is lower",
    )
    instruction: str | None = option(
        None,
        help="the instruction of groups without one, for language models; kept in the trained "
        "folder; default: the base model's",
    )
    batch_size: int = option(8, help="groups per step and device")
    total_epoch: float | str = option(
        "auto",
        words=("auto",),
        help="epochs: passes over the training groups; auto: by their number and the model",
    )
    lr: float | str | None = option(
        None,
        words=("auto",),
        help="learning rate, or auto to try several for a few steps each; default: by the model's "
        "size, its head and --lora",
    )
    scoring_tokens: str | None = option(
        None,
        help="the tokens of a language model whose logits make the score, as in yes,no, or one "
        "alone; default: the reranker's own, else yes,no",
    )
    dropout: float = option(0.0, help="dropout of hidden states; attention weights have none")
    factor: float | None = option(
        None,
        help="multiply the learning rate by this when the validation loss stops falling; default "
        "0.3 with --patience",
    )
    patience: int | None = option(
        None,
        help="evaluations without a lower loss before --factor applies; default 8 with --factor",
    )
    early_stopping: int | None = option(
        None, help="stop after this many evaluations without a better model"
    )
    lora: bool = option(False, help="train a LoRA adapter and the head instead of all weights")
    lora_r: int = option(16, aliases=("lora_rank",), help="rank of the adapter")
    lora_alpha: int = option(
        32, help="scale of the adapter, over its rank: one learning rate then suits every rank"
    )
    lora_dropout: float = option(0.0, help="dropout before the adapter")
    lora_target_modules: str | None = option(
        None,
        aliases=("lora_targets",),
        help="layers with an adapter, by the ends of their names, as in query,value; default: all "
        "linear layers of the encoder's layers",
    )
    use_rslora: bool = option(
        False,
        aliases=("lora_rslora",),
        help="rank-stabilised LoRA: scale by the square root of the rank",
    )
    use_dora: bool = option(
        False, aliases=("lora_dora",), help="DoRA: train magnitude and direction separately; slower"
    )
    load_in_4bit: bool = option(
        False,
        aliases=("lora_4bit",),
        help="QLoRA: keep the base in 4 bits, by bitsandbytes; CUDA only",
    )
    merge: bool = option(False, help="with --lora: merge the adapter, and save a plain model")
    blend: float | str = option(
        "auto",
        words=("auto",),
        help="the share of the fine-tuned weights in the trained folder, the rest are the base's: "
        "above 0, 1 for the fine-tuned weights alone, or auto to choose it on the validation "
        "queries; for trained rerankers",
    )
    refit: bool = option(
        False,
        help="train once more at the end, on all groups of --data_path, with the steps, the rate "
        "and the blend of the kept model, and keep these weights; the figures are those without "
        "the held-out groups",
    )
    fold_calibration: bool = option(
        False,
        help="put the calibration into the last layer, so that the sigmoid of a logit is a "
        "probability for every loader",
    )
    fail_if_not_better: bool = option(
        False, help="exit with code 3 if no checkpoint beats the base model"
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 …")
    dtype: str = option(
        "auto", help="precision of matrix products: auto, float32, bfloat16 or float16"
    )
    token_budget: int | None = option(
        None,
        help="tokens of a forward and backward pass; fewer use less memory for the same step; "
        "default: by the device",
    )
    threads: int | None = option(None, help=THREADS_HELP)
    seed: int = option(42, help="fixes the held-out queries, a new head and all sampling")
    trust_remote_code: bool = option(False, help="run code that comes with the model")
    #: Options of transformers.TrainingArguments, by their names there.
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        self._check_numbers()
        self._check_loss()
        self._check_lora()
        self._check_trainer()
        self._check_schedule()
        named = Path(self.finetune_model_dir).name != ""
        self._check_range("finetune_model_dir", named, "the path of a folder")

    def _check_numbers(self) -> None:
        """Check the ranges of numbers."""
        if self.train_group_size < 2:
            raise OptionError(
                "train_group_size",
                f"must be at least 2, a positive and a negative, not {self.train_group_size}",
            )
        for name in POSITIVE_NUMBERS:
            value = getattr(self, name)
            holds = value is None or isinstance(value, str) or value > 0
            self._check_range(name, holds, "more than 0")
        self._check_range("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295")
        blends = isinstance(self.blend, str) or 0 < self.blend <= 1
        self._check_range("blend", blends, "more than 0 and at most 1")
        self._check_range("factor", self.factor is None or 0 < self.factor < 1, "in (0, 1)")
        self._check_range("dropout", 0 <= self.dropout < 1, "in [0, 1)")

    def _check_schedule(self) -> None:
        """Check that a plateau schedule and early stopping have evaluations to follow."""
        if self.trainer.get("eval_strategy") == "no":
            self._check(
                "eval_strategy",
                not self.reduces_on_plateau,
                "no is not allowed with --factor and --patience, which follow the validation loss",
            )
            self._check(
                "eval_strategy",
                self.early_stopping is None,
                "no is not allowed with --early_stopping, which counts evaluations",
            )
        self._check(
            "refit",
            not (self.refit and self.reduces_on_plateau),
            "not allowed with --factor and --patience, which follow the validation loss",
        )
        self._check(
            "refit",
            not (self.refit and self.eval_data_path is not None),
            "not allowed with --eval_data_path: all groups of --data_path are trained on already",
        )
        self._check(
            "lr_scheduler_type",
            not self.reduces_on_plateau or "lr_scheduler_type" not in self.trainer,
            "not allowed with --factor and --patience, which are a schedule",
        )

    def _check_trainer(self) -> None:
        """Check that training arguments can be set, and have valid values."""
        for name, reason in RESERVED.items():
            if name in self.trainer:
                raise OptionError(name, f"cannot be set: {reason}")
        for ours, theirs in TWINS.items():
            if theirs in self.trainer:
                raise OptionError(theirs, f"use --{ours}")
        for name, kinds in COUNTED.items():
            if name in self.trainer:
                self.trainer[name] = typed_value(name, self.trainer[name], kinds)
        self._check_trainer_numbers()
        self._check_companions()

    def _check_trainer_numbers(self) -> None:
        """Check the ranges of numbers among the training arguments."""
        for name, value in self.trainer.items():
            if isinstance(value, float):
                self._check_range(name, isfinite(value), "a finite number")
            if isinstance(value, int | float):
                self._check_range(name, name not in POSITIVE or value > 0, "more than 0")
                self._check_range(name, name not in NOT_NEGATIVE or value >= 0, "at least 0")
        steps = self.trainer.get("max_steps", -1)
        self._check_range("max_steps", steps > 0 or steps == -1, "more than 0, or -1 for all")

    def _check_companions(self) -> None:
        """Check that training arguments have the others that they require."""
        for name in self.trainer:
            needed = BESIDE.get(name, ())
            holds = not needed or any(self.trainer.get(other) for other in needed)
            self._check(name, holds, f"requires --{' or --'.join(needed)}")
        for name, strategy in INTERVALS.items():
            by_steps = self.trainer.get(strategy, "steps") == "steps"
            self._check(name, name not in self.trainer or by_steps, f"requires --{strategy} steps")
        optimizer = str(self.trainer.get("optim", WITHOUT_ARGS[0]))
        if "optim_args" in self.trainer:
            takes = optimizer not in WITHOUT_ARGS
            self._check("optim_args", takes, f"has no effect on --optim {optimizer}")
        if "optim_target_modules" in self.trainer:
            by_layers = optimizer.startswith(BY_LAYERS)
            self._check("optim_target_modules", by_layers, "requires --optim galore_… or apollo_…")
        if "torch_compile_mode" in self.trainer:
            check_compile_mode(self.trainer["torch_compile_mode"])
        self._check(
            "save_strategy",
            self.trainer.get("save_strategy") != "best",
            "best is not supported, the newest checkpoint is kept (choose from no, steps, epoch)",
        )

    def _check_lora(self) -> None:
        """Check the options of LoRA adapters."""
        for name in ("merge", "lora_target_modules", "use_rslora", "use_dora", "load_in_4bit"):
            self._check(name, self.lora or not getattr(self, name), "requires --lora")
        folds = self.fold_calibration and self.lora and not self.merge
        self._check("fold_calibration", not folds, "requires --merge with --lora")
        self._check(
            "load_in_4bit",
            not (self.load_in_4bit and self.use_dora),
            "not allowed with --use_dora",
        )
        self._check_range("lora_r", self.lora_r > 0, "more than 0")
        self._check_range("lora_alpha", self.lora_alpha > 0, "more than 0")
        self._check_range("lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1)")

    def _check_loss(self) -> None:
        """Check the loss and its temperature."""
        losses = [] if self.loss is None else [term.name for term in parse_loss(self.loss)]
        if self.temperature is not None:
            self._check("temperature", "kl_divergence" in losses, "requires --loss kl_divergence")
            self._check_range("temperature", self.temperature > 0, "more than 0")

    def _check_range(self, name: str, holds: bool, expected: str) -> None:
        """Check that the value of an option is as expected."""
        value = getattr(self, name, None)
        shown = self.trainer.get(name) if value is None else value
        self._check(name, holds, f"must be {expected}, not {shown!r}")

    def _check(self, name: str, holds: bool, problem: str) -> None:
        """Check that a condition of an option holds."""
        if not holds:
            raise OptionError(name, problem)

    @property
    def reduces_on_plateau(self) -> bool:
        """Return whether the learning rate follows the validation loss."""
        return self.factor is not None or self.patience is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values, without the access token."""
        record = asdict(self)
        record["trainer"].pop("hub_token", None)
        return record


def check_compile_mode(mode: object) -> None:
    """Check that torch.compile has a mode."""
    from torch._inductor import list_mode_options

    modes = list(list_mode_options())
    if mode not in modes:
        raise OptionError("torch_compile_mode", invalid_choice(mode, modes))
