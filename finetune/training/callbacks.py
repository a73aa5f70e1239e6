"""Callbacks around the training loop: history, progress, the clock, warm-up, reporters."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from rerank_plugin.cli.console import bar
from rerank_plugin.io.atomic import write_text

from ..data.dataset import GroupDataset
from ..evaluation.metrics import METRIC
from ..evaluation.teacher import teacher_values, warn_of_teacher
from .distributed import is_main_process

if TYPE_CHECKING:
    from .trainer import RerankTrainer

logger = logging.getLogger(__name__)

#: Keys of Trainer's log entries that are not part of the history.
NOISE = ("total_flos", "train_loss", "runtime", "per_second", "queries")


class Stopwatch:
    """The training time: wall clock from the start, without the time inside `paused`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._paused = 0.0
        self._stopped: float | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Return the seconds so far, or until `stop`."""
        if self._stopped is not None:
            return self._stopped
        return time.perf_counter() - self._start - self._paused

    def stop(self) -> None:
        """Stop for good."""
        self._stopped = self.seconds

    def state_dict(self) -> float:
        """Return the seconds so far."""
        return self.seconds

    def load_state_dict(self, seconds: float) -> None:
        """Continue from the seconds at the checkpoint, without the lost work after it."""
        self._start, self._paused = time.perf_counter() - seconds, 0.0


class History(TrainerCallback):
    """Writes `history.jsonl`: one object for every log entry and evaluation, at once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, float]] = []

    def state_dict(self) -> int:
        """Return the number of entries."""
        return len(self.entries)

    def load_state_dict(self, count: int) -> None:
        """Keep the entries up to the checkpoint, and remove later ones from the file."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = text.splitlines()[:count]
        if is_main_process():
            write_text(self.path, "".join(f"{line}\n" for line in lines))
        records = [json.loads(line) for line in lines]
        self.entries = [
            {name: float("nan") if value is None else value for name, value in record.items()}
            for record in records
        ]

    def add(self, entry: dict[str, float]) -> None:
        """Append an entry; numbers that are not finite become null, as JSON has none."""
        self.entries.append(entry)
        if not is_main_process():
            return
        record = {name: value if isfinite(value) else None for name, value in entry.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Add an entry; metrics lose their prefix `eval_`, except the loss."""
        values = {
            name if name == "eval_loss" else name.removeprefix("eval_"): value
            for name, value in (logs or {}).items()
            if not any(noise in name for noise in NOISE)
        }
        if state.is_world_process_zero and set(values) - {"epoch"}:
            self.add({"step": state.global_step, "epoch": 0.0, **values})


class ProgressLine(TrainerCallback):
    """Shows one line on stderr: steps, loss, the latest nDCG@10, pairs per second, time left.

    Args:
        speed: Returns the pairs per second so far.
    """

    def __init__(self, speed: Callable[[], float]) -> None:
        self.speed = speed
        self.bar: tqdm[Any] | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the line."""
        if state.is_world_process_zero:
            self.bar = bar("training", "step", state.max_steps, initial=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advance by the steps done."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the latest figures."""
        logs = logs or {}
        for name, key in (("loss", "loss"), ("ndcg@10", "eval_ndcg@10")):
            if key in logs:
                self.shown[name] = f"{logs[key]:.3f}"
        if self.bar is not None:
            self.bar.set_postfix({**self.shown, "pairs/s": f"{self.speed():.1f}"})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the line."""
        self.close()

    def close(self) -> None:
        """Leave the line as it is; what is logged next starts on a new line."""
        if self.bar is not None:
            self.bar.close()


class PlateauWarmup(TrainerCallback):
    """Raises the learning rate over the first steps; a plateau schedule has no warm-up.

    Args:
        steps: The number of steps.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.rates: list[float] = []

    def state_dict(self) -> list[float]:
        """Return the learning rates after the warm-up, one for each parameter group."""
        return self.rates

    def load_state_dict(self, rates: list[float]) -> None:
        """Take over the learning rates."""
        self.rates = rates

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Set the learning rate of the step."""
        groups = optimizer.param_groups
        self.rates = self.rates or [group["lr"] for group in groups]
        if state.global_step < self.steps:
            for group, rate in zip(groups, self.rates, strict=True):
                group["lr"] = rate * (state.global_step + 1) / self.steps


class NoStepLeftError(Exception):
    """A resumed run had been interrupted after its last step."""


class LastStep(TrainerCallback):
    """Stops the training clock at the last step, and has its model evaluated.

    Args:
        stopwatch: The clock.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End a run that was interrupted after its last step, or out of patience.

        transformers checks for the end after a step only.

        Raises:
            NoStepLeftError: it was.
        """
        if control.should_training_stop or state.global_step >= state.max_steps:
            raise NoStepLeftError

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate the last step, whatever the interval."""
        if state.global_step >= state.max_steps:
            self.stopwatch.stop()
            control.should_evaluate |= args.eval_strategy == "steps"


class LastCheckpoint(TrainerCallback):
    """Saves a checkpoint of the last step where transformers saves none: a second run follows.

    A run that is interrupted in the second one resumes from it.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the last step of all."""
        if state.global_step >= state.max_steps:
            control.should_save |= args.save_strategy == "no"

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the step after which a run is out of patience."""
        if control.should_training_stop and state.global_step < state.max_steps:
            control.should_save |= args.save_strategy == "no"


class TolerantReporter(TrainerCallback):
    """Forwards events to a reporter such as TensorBoard's until one fails, which is one warning.

    Args:
        reporter: The callback of the reporter.
        requested: Whether the user asked for it: it must then be able to start.
    """

    def __init__(self, reporter: TrainerCallback, *, requested: bool) -> None:
        self.reporter = reporter
        self.requested = requested
        self.failed = False

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def event(*arguments: Any, **options: Any) -> Any:
            if self.failed:
                return None
            try:
                return getattr(self.reporter, name)(*arguments, **options)
            except Exception as error:
                # Reporters call servers and other libraries, which raise errors of any class.
                if self.requested and name in ("on_init_end", "on_train_begin"):
                    raise
                self.failed = True
                logger.warning("%s: no more logs: %s", type(self.reporter).__name__, error)
                return None

        return event


def tolerate_reporters(trainer: Trainer, *, requested: bool) -> None:
    """Let no reporter of a trainer end its run; see `TolerantReporter`."""
    kinds: tuple[type[TrainerCallback], ...] = tuple(INTEGRATION_TO_CALLBACK.values())
    handler = trainer.callback_handler
    handler.callbacks = [
        TolerantReporter(callback, requested=requested) if isinstance(callback, kinds) else callback
        for callback in handler.callbacks
    ]


class TeacherComparison(TrainerCallback):
    """Warns if a teacher does not rank the validation queries better than the student.

    A student hardly becomes better than its teacher: from one that is no better than itself it
    learns less than from labels.

    Args:
        trainer: Evaluates the student.
        groups: The validation groups, with the teacher's scores.
    """

    def __init__(self, trainer: "RerankTrainer", groups: GroupDataset) -> None:
        self.trainer = trainer
        self.groups = groups

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Compare them when the student is evaluated before the first step."""
        if state.global_step == 0:
            warn_of_teacher(teacher_values(self.groups), self.trainer.latest.values[METRIC])
