"""What happens beside the training loop: history, progress, the best model, plateau warm-up."""

import json
import shutil
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.loading import quiet_transformers

from .evaluation import Evaluation
from .stopwatch import Stopwatch
from .trainer import RerankTrainer

#: Keys of Trainer's log entries that say nothing about the run.
NOISE = ("total_flos", "train_loss", "runtime", "per_second", "queries")


class History(TrainerCallback):
    """Writes `history.jsonl`: one object a log or evaluation step, as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, float]] = []

    def add(self, entry: dict[str, float]) -> None:
        """Append one object; what is no finite number becomes null, as JSON has none."""
        self.entries.append(entry)
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
    """One line on stderr: steps, loss, the latest nDCG@10, time left."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the line."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, desc="training", unit="step", dynamic_ncols=True)

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
            self.bar.set_postfix(self.shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the line."""
        self.close()

    def close(self) -> None:
        """Leave the line as it is, so that what is said next starts one of its own."""
        if self.bar is not None:
            self.bar.close()


class KeepBest(TrainerCallback):
    """Saves the model whenever nDCG@10 is higher than ever before, step 0 included.

    Args:
        folder: Where the best model stands; it changes by renames, so it is always a whole one.
        trainer: Whose model is saved, after each of its evaluations.
    """

    def __init__(self, folder: Path, trainer: RerankTrainer) -> None:
        self.folder = folder
        self.trainer = trainer
        #: The step of the model that is kept; none before the first evaluation.
        self.step: int | None = None
        self._before: Evaluation | None = None
        self._kept: Evaluation | None = None

    @property
    def before(self) -> Evaluation:
        """The evaluation before the first step."""
        assert self._before is not None, "no evaluation yet"
        return self._before

    @property
    def kept(self) -> Evaluation:
        """The evaluation of the model that is kept."""
        assert self._kept is not None, "no evaluation yet"
        return self._kept

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last step is always evaluated, whatever the interval."""
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the model if it is the best so far."""
        latest = self.trainer.latest
        if self._before is None:
            self._before = latest
        elif latest.means["ndcg@10"] <= self.kept.means["ndcg@10"]:
            return
        self.keep(state)

    def keep(self, state: TrainerState) -> None:
        """Keep the model as it is now, whatever the one before."""
        staged, replaced = (self.folder.with_suffix(suffix) for suffix in (".new", ".old"))
        with quiet_transformers():
            self.trainer.save_model(str(staged), _internal_call=True)
        if state.is_world_process_zero:
            if self.folder.exists():
                self.folder.rename(replaced)
            staged.rename(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        self.step, self._kept = state.global_step, self.trainer.latest


class PlateauWarmup(TrainerCallback):
    """Raises the learning rate over the first steps of a plateau schedule, which knows none."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.rates: list[float] = []

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


class StopClock(TrainerCallback):
    """Stops the training clock at the last step, before anything is finished or saved."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last step is done."""
        if state.global_step >= state.max_steps:
            self.stopwatch.stop()
