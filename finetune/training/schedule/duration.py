"""The duration of a run: its epochs, given or chosen by the data, and the time that they take."""

import logging
import time
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch

from rerank_plugin.model.loaded import LoadedModel

from ...config import FinetuneConfig
from ...data.dataset import GroupDataset
from ..arguments import Steps, step_groups
from ..collator import MicroBatch, batch_logits
from ..data import RunData
from ..distributed import process_count
from ..run_dir import RunDir
from ..trainer import RerankTrainer, freed_memory_kept, without_cudnn_attention
from .learning_rate import kind_of

logger = logging.getLogger(__name__)

#: The fewest optimizer steps of `--total_epoch auto`, by what is trained, a key of `RATES`. Fewer
#: are measurably worse, as docs/benchmarks.md shows; 0 is one epoch.
FEWEST_STEPS = {
    "a newly initialised scoring head": 150,
    "a general language model": 0,
    "a trained reranker": 75,
}

#: The most epochs of `--total_epoch auto`.
MOST_EPOCHS = 6

#: The fewest steps of a run whose time is measured.
FEWEST_MEASURED = 12

#: The groups of a set whose passages are counted.
COUNTED_GROUPS = 32


def with_epochs(
    config: FinetuneConfig, run_dir: RunDir, loaded: LoadedModel, groups: int
) -> FinetuneConfig:
    """Return the options with a number of epochs; a resumed run has that of the interrupted one.

    Args:
        config: The options; a number of epochs among them is not changed.
        run_dir: Keeps the number of epochs.
        loaded: The model before training.
        groups: The number of training groups.
    """
    if config.total_epoch != "auto":
        return config
    epochs: int | None = run_dir.state.get("total_epoch")
    if epochs is None:
        kind = kind_of(loaded)
        epochs = default_epochs(kind, groups=groups, step_groups=step_groups(config))
        run_dir.keep(total_epoch=epochs)
        if config.trainer.get("max_steps", -1) == -1:
            logger.info("total_epoch: %d (%d groups, %s)", epochs, groups, kind)
    return replace(config, total_epoch=epochs)


def default_epochs(kind: str, *, groups: int, step_groups: int) -> int:
    """Return the fewest epochs with `FEWEST_STEPS` for a kind of model, at most `MOST_EPOCHS`."""
    epochs = ceil(FEWEST_STEPS[kind] / ceil(groups / step_groups))
    return min(max(1, epochs), MOST_EPOCHS)


def log_time_budget(config: FinetuneConfig, trainer: RerankTrainer, data: RunData) -> None:
    """Log how long a run will take, measured with a part of its first step.

    A model that transformers wraps for training is left out: alone it takes another time. So is a
    run of a few steps, which would be longer by the measurement.
    """
    steps, args = Steps.from_groups(config, len(data.train)), trainer.args
    wrapped = trainer.is_sharded or args.gradient_checkpointing or args.torch_compile
    if wrapped or steps.run < FEWEST_MEASURED:
        return
    with freed_memory_kept(), without_cudnn_attention():
        pair = PairSeconds.measure(trainer)
    rounds = evaluation_rounds(trainer, steps)
    evaluated = rounds * pairs_in(data.validation) + 2 * pairs_in(data.test)
    trained = pairs_in(data.train, config.train_group_size) * steps.run / steps.epoch
    runs = 1 + config.refit
    logger.info(
        "this machine takes about %s for %d steps, and %s for evaluations",
        in_words(runs * pair.training * trained),
        runs * steps.run,
        in_words(pair.scoring * evaluated),
    )


@dataclass(frozen=True)
class PairSeconds:
    """The seconds that a pair takes, with all processes at work."""

    training: float
    scoring: float

    @classmethod
    def measure(cls, trainer: RerankTrainer) -> "PairSeconds":
        """Measure the second of two passes; the first one allocates memory and compiles.

        Weights, gradients and the state of random generators are not changed.
        """
        device = trainer.args.device
        batches = trainer.get_train_dataloader().batch_sampler
        assert batches is not None, "a loader of groups has one"
        keys = next(iter(batches))
        collate: Any = trainer.data_collator
        step = collate([trainer.train_groups[key] for key in keys])
        batch = step["micro_batches"][0]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for _ in range(2):
                forward, backward = pass_seconds(trainer, batch)
        pairs = sum(batch["sizes"]) * process_count()
        return cls((forward + backward) / pairs, forward / pairs)


def pass_seconds(trainer: RerankTrainer, batch: MicroBatch) -> tuple[float, float]:
    """Return the seconds of the forward and of the backward pass of a micro-batch."""
    model, device = trainer.model, trainer.args.device
    assert model is not None
    model.train()
    times = [time.perf_counter()]
    # The model that the trainer wraps before its first step has this context in its forward pass.
    with trainer.accelerator.autocast():
        # The loss itself takes no time.
        loss = batch_logits(model, batch, device).sum()
    times.append(finished_at(device))
    loss.backward()
    times.append(finished_at(device))
    model.zero_grad()
    return times[1] - times[0], times[2] - times[1]


def finished_at(device: torch.device) -> float:
    """Return the time when a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def evaluation_rounds(trainer: RerankTrainer, steps: Steps) -> int:
    """Return how often a run evaluates the validation queries, before the first step included."""
    args = trainer.args
    if args.eval_strategy == "no":
        return 1
    if args.eval_strategy == "epoch":
        return 1 + ceil(steps.run / steps.epoch)
    interval = float(args.eval_steps or steps.run)
    return 1 + ceil(1 / interval if interval < 1 else steps.run / interval)


def pairs_in(groups: GroupDataset, size: int | None = None) -> float:
    """Return the number of pairs of all groups, of at most a size, estimated from some of them."""
    some = [groups[i] for i in range(0, len(groups), ceil(len(groups) / COUNTED_GROUPS))]
    counts = [min(len(group.documents), size or len(group.documents)) for group in some]
    return len(groups) * sum(counts) / len(counts)


def in_words(seconds: float) -> str:
    """Return a duration as `40 s`, `5 min` or `2.5 h`."""
    if seconds < 100:
        return f"{ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
