"""From the options of a run to transformers.TrainingArguments."""

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
from .distributed import world_size

logger = logging.getLogger(__name__)

#: Evaluations of a run that is shorter than as many epochs; longer ones evaluate every epoch.
EVALUATIONS = 4

#: Checkpoints of a run, of which the newest is kept, and steps between two at least.
CHECKPOINTS, CHECKPOINT_STEPS = 20, 10

#: Half precisions of products by the names of transformers' options.
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Share of the steps over which the rate rises; of the first epoch's under a plateau schedule.
WARMUP = 0.1

#: Under a plateau schedule, where only one of the two is given.
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 8


def step_groups(config: FinetuneConfig) -> int:
    """Return how many groups an optimizer step takes, over all processes."""
    accumulation = int(config.trainer.get("gradient_accumulation_steps", 1))
    return config.batch_size * accumulation * world_size()


@dataclass(frozen=True)
class Steps:
    """How many optimizer steps an epoch and the run have."""

    epoch: int
    run: int

    @classmethod
    def count(cls, config: FinetuneConfig, groups: int) -> "Steps":
        """The steps over a number of training groups."""
        epoch = ceil(groups / step_groups(config))
        most = int(config.trainer.get("max_steps", -1))
        return cls(epoch, most if most > 0 else ceil(epoch * config.total_epoch))


@contextmanager
def refused_options() -> Iterator[None]:
    """Turn what transformers says of an option that it cannot use into one line."""
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
    resumed: bool,
) -> TrainingArguments:
    """Transformers' arguments of a run: ours, and over them what the user gave by their names.

    Raises:
        InputError: transformers refuses a value.
    """
    if device.index:
        raise OptionError(
            "device", f"training takes the first GPU it sees: CUDA_VISIBLE_DEVICES={device.index}"
        )
    steps = Steps.count(config, groups)
    values: dict[str, Any] = {
        "eval_strategy": "steps",
        "logging_steps": max(1, steps.run // 50),
        "save_strategy": "steps",
        "save_steps": max(CHECKPOINT_STEPS, ceil(steps.run / CHECKPOINTS)),
        "report_to": "tensorboard" if is_tensorboard_available() else "none",
        "weight_decay": 0.01,
        # Of fewer steps a tenth is less than one, and a step that only warms up has a rate of 0.
        "warmup_steps": WARMUP if steps.run * WARMUP >= 1 else 0,
        "dataloader_pin_memory": device.type == "cuda",
        **plateau(config),
        **{name: value for name, value in config.trainer.items() if name not in OURS},
        **{name: dtype == half for name, half in HALF.items()},
        "output_dir": folder,
        "per_device_train_batch_size": config.batch_size,
        "num_train_epochs": config.total_epoch,
        "learning_rate": lr,
        "seed": config.seed,
        "use_cpu": device.type == "cpu",
        "eval_on_start": not resumed,
        "remove_unused_columns": False,
        # Hiding NaN would hide a model that breaks.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }
    if values["eval_strategy"] == "steps" and "eval_steps" not in config.trainer:
        long = steps.run >= EVALUATIONS * steps.epoch
        values["eval_steps"] = steps.epoch if long else max(1, ceil(steps.run / EVALUATIONS))
    with refused_options():
        arguments = TrainingArguments(**values)
    if arguments.n_gpu > 1:
        # DataParallel would cut a batch between groups; one process a GPU does not.
        logger.warning("%d GPUs are there, one of them is used", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def product_dtype(config: FinetuneConfig, device: torch.device) -> torch.dtype:
    """The precision of products, by `--dtype`, `--bf16` or `--fp16`; weights stay float32.

    Raises:
        OptionError: two of them are given, or the device has no such precision.
    """
    trainer = config.trainer
    given = [name for name in HALF if trainer.get(name)]
    if given and config.dtype != "auto":
        raise OptionError(given[0], "is the same option as --dtype: give one of them")
    if trainer.get("fp16") and device.type == "cpu":
        raise OptionError("fp16", "float16 is not for a CPU: use --bf16, or leave it out")
    if given:
        return HALF[given[0]]
    found = resolve_dtype(config.dtype, device)
    refused = [dtype for name, dtype in HALF.items() if trainer.get(name) is False]
    return torch.float32 if found in refused else found


def plateau(config: FinetuneConfig) -> dict[str, Any]:
    """The schedule of `--factor` and `--patience`, on the evaluation loss."""
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
    """Steps over which the rate rises under a plateau schedule."""
    steps = Steps.count(config, groups)
    given = float(config.trainer.get("warmup_steps", -1))
    if given < 0:
        return ceil(WARMUP * steps.epoch)
    return int(given) if given >= 1 else ceil(given * steps.run)
