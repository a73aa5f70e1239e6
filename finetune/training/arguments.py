"""The transformers.TrainingArguments of a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import is_tensorboard_available

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.model.device import resolve_dtype

from ..argument_names import OURS
from ..config import FinetuneConfig
from .distributed import process_count

logger = logging.getLogger(__name__)

#: Evaluations of a run with fewer epochs than this; longer ones evaluate every epoch.
EVALUATIONS = 4

#: Checkpoints of a run, of which the newest is kept, and the fewest steps between two.
CHECKPOINTS, CHECKPOINT_STEPS = 20, 10

#: Half precisions, by the names of transformers' options.
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: The share of steps for warm-up; with a plateau schedule, of the steps of the first epoch.
WARMUP = 0.1

#: The default of one option of a plateau schedule where only the other is given.
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 8


def step_groups(config: FinetuneConfig) -> int:
    """Return the number of groups in an optimizer step, over all processes."""
    accumulation = int(config.trainer.get("gradient_accumulation_steps", 1))
    return config.batch_size * accumulation * process_count()


@dataclass(frozen=True)
class Steps:
    """The number of optimizer steps of an epoch, and of the run."""

    epoch: int
    run: int

    @classmethod
    def from_groups(cls, config: FinetuneConfig, groups: int) -> "Steps":
        """Return the steps for a number of training groups; the epochs are chosen already."""
        epoch = ceil(groups / step_groups(config))
        most = int(config.trainer.get("max_steps", -1))
        return cls(epoch, most if most > 0 else ceil(epoch * float(config.total_epoch)))


@contextmanager
def refused_options() -> Iterator[None]:
    """Turn the error of transformers for an option that it refuses into one line."""
    try:
        yield
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"transformers: {' '.join(str(error).split())}") from error


def training_arguments(
    config: FinetuneConfig,
    *,
    folder: str,
    device: torch.device,
    dtype: torch.dtype,
    lr: float,
    groups: int,
    evaluates_first: bool,
) -> TrainingArguments:
    """Return the training arguments of a run: our defaults, overridden by the user's.

    Raises:
        InputError: transformers refuses a value.
    """
    check_device(device)
    steps = Steps.from_groups(config, groups)
    values: dict[str, Any] = {
        **default_arguments(config, steps, device),
        **{name: value for name, value in config.trainer.items() if name not in OURS},
        **{name: dtype == half for name, half in HALF.items()},
        "output_dir": folder,
        "per_device_train_batch_size": config.batch_size,
        "num_train_epochs": float(config.total_epoch),
        "learning_rate": lr,
        "seed": config.seed,
        "use_cpu": device.type == "cpu",
        "eval_on_start": evaluates_first,
        "remove_unused_columns": False,
        # Hiding NaN would hide that a run diverges.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }
    if values["eval_strategy"] == "steps":
        values.setdefault("eval_steps", evaluation_interval(steps))
    warn_of_long_warmup(values["warmup_steps"], steps)
    with refused_options():
        arguments = TrainingArguments(**values)
    use_one_gpu(arguments)
    return arguments


def check_device(device: torch.device) -> None:
    """Check that training on a GPU uses the first one that the process sees.

    Raises:
        OptionError: it is another one.
    """
    if device.index:
        raise OptionError(
            "device",
            f"training uses the first visible GPU: set CUDA_VISIBLE_DEVICES={device.index}",
        )


def default_arguments(config: FinetuneConfig, steps: Steps, device: torch.device) -> dict[str, Any]:
    """Return our defaults of training arguments, which the user can override."""
    return {
        "eval_strategy": "steps",
        "logging_steps": max(1, steps.run // 50),
        "save_strategy": "steps",
        "save_steps": max(CHECKPOINT_STEPS, ceil(steps.run / CHECKPOINTS)),
        "report_to": "tensorboard" if is_tensorboard_available() else "none",
        "weight_decay": 0.01,
        # A tenth of fewer steps is less than one, and a whole step of warm-up has a rate of 0.
        "warmup_steps": WARMUP if steps.run * WARMUP >= 1 else 0,
        "dataloader_pin_memory": device.type == "cuda",
        **plateau(config),
        **sharding(config),
    }


def evaluation_interval(steps: Steps) -> int:
    """Return the number of steps between two evaluations: an epoch, or less in a short run."""
    if steps.run >= EVALUATIONS * steps.epoch:
        return steps.epoch
    return max(1, ceil(steps.run / EVALUATIONS))


def warn_of_long_warmup(warmup_steps: float, steps: Steps) -> None:
    """Warn of a warm-up that is longer than the run."""
    if warmup_steps > steps.run:
        logger.warning(
            "--warmup_steps %d: the run has only %d steps, and never reaches the learning rate",
            warmup_steps,
            steps.run,
        )


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Use one GPU per process: DataParallel would split a row of packed pairs."""
    if arguments.n_gpu > 1:
        logger.warning(
            "using 1 of %d GPUs: start with torchrun or accelerate launch to use all",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


def product_dtype(config: FinetuneConfig, device: torch.device) -> torch.dtype:
    """Return the precision of matrix products; the weights are float32.

    Raises:
        OptionError: two of `--dtype`, `--bf16` and `--fp16` are given, or the device does not
            support it.
    """
    trainer = config.trainer
    requested = [name for name in HALF if trainer.get(name)]
    if requested and config.dtype != "auto":
        raise OptionError(requested[0], "not allowed with --dtype, which sets the same")
    if trainer.get("fp16") and device.type == "cpu":
        raise OptionError("fp16", "float16 is not supported on a CPU: use --bf16, or leave it out")
    if requested:
        return HALF[requested[0]]
    resolved = resolve_dtype(config.dtype, device)
    if resolved == torch.int8:
        raise OptionError("dtype", "int8 is for scoring, not for training; use auto")
    refused = [dtype for name, dtype in HALF.items() if trainer.get(name) is False]
    return torch.float32 if resolved in refused else resolved


def sharding(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings of `--fsdp`: FSDP 2, which is the default of newer transformers only."""
    strategy = config.trainer.get("fsdp")
    if not strategy:
        return {}
    reshards = "shard_grad_op" not in str(strategy)
    return {"fsdp_config": {"version": 2, "reshard_after_forward": reshards}}


def plateau(config: FinetuneConfig) -> dict[str, Any]:
    """Return the schedule of `--factor` and `--patience`, which follows the validation loss."""
    if not config.reduces_on_plateau:
        return {}
    return {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {
            "mode": "min",
            "factor": config.factor or PLATEAU_FACTOR,
            "patience": config.patience or PLATEAU_PATIENCE,
        },
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def plateau_warmup_steps(config: FinetuneConfig, groups: int) -> int:
    """Return the number of warm-up steps of a plateau schedule."""
    steps = Steps.from_groups(config, groups)
    warmup = float(config.trainer.get("warmup_steps", -1))
    if warmup < 0:
        return ceil(WARMUP * steps.epoch)
    return int(warmup) if warmup >= 1 else ceil(warmup * steps.run)
