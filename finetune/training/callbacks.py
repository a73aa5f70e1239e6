"""What happens beside the training loop: history, progress, plateau warm-up, the last step."""

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.cli.console import bar
from rerank_plugin.io.atomic import write_text

from .distributed import rank
from .stopwatch import Stopwatch

#: Keys of Trainer's log entries that say nothing about the run.
NOISE = ("total_flos", "train_loss", "runtime", "per_second", "queries")


class History(TrainerCallback):
    """Writes `history.jsonl`: one object a log or evaluation step, as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, float]] = []

    def as_record(self) -> int:
        """What a resumed run must know: how many entries there are."""
        return len(self.entries)

    def restore(self, count: int) -> None:
        """Go on behind the first entries of an interrupted run."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = text.splitlines()[:count]
        if rank() == 0:
            write_text(self.path, "".join(f"{line}\n" for line in lines))
        records = [json.loads(line) for line in lines]
        self.entries = [
            {name: float("nan") if value is None else value for name, value in record.items()}
            for record in records
        ]

    def add(self, entry: dict[str, float]) -> None:
        """Append one object; what is no finite number becomes null, as JSON has none."""
        self.entries.append(entry)
        if rank() > 0:
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
        """One entry; metrics lose their `eval_`, but for the loss."""
        values = {
            name if name == "eval_loss" else name.removeprefix("eval_"): value
            for name, value in (logs or {}).items()
            if not any(noise in name for noise in NOISE)
        }
        if state.is_world_process_zero and set(values) - {"epoch"}:
            self.add({"step": state.global_step, "epoch": 0.0, **values})


class ProgressLine(TrainerCallback):
    """One line on stderr: steps, loss, the latest nDCG@10, pairs a second, time left.

    Args:
        speed: Pairs a second so far.
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
        """Move on."""
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
        """Leave the line as it is, so that what is said next starts one of its own."""
        if self.bar is not None:
            self.bar.close()


class PlateauWarmup(TrainerCallback):
    """Raises the learning rate over the first steps of a plateau schedule, which knows none."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.rates: list[float] = []

    def as_record(self) -> list[float]:
        """What a resumed run must know."""
        return self.rates

    def restore(self, rates: list[float]) -> None:
        """Go on from what `as_record` gave."""
        self.rates = rates

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Set the rate of the step to come."""
        groups = optimizer.param_groups
        self.rates = self.rates or [group["lr"] for group in groups]
        if state.global_step < self.steps:
            for group, rate in zip(groups, self.rates, strict=True):
                group["lr"] = rate * (state.global_step + 1) / self.steps


class LastStep(TrainerCallback):
    """Stops the training clock at the last step, and has its model evaluated."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End a run that was interrupted behind its last step."""
        control.should_training_stop |= state.global_step >= state.max_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last step is always evaluated, whatever the interval."""
        if state.global_step >= state.max_steps:
            self.stopwatch.stop()
            control.should_evaluate |= args.eval_strategy == "steps"
