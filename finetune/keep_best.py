"""The best model of a run: chosen on queries that are not trained on, step 0 included."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.jsonl import write_json

from .checkpoint import saving
from .evaluation import Evaluation
from .metrics import improvement_probability
from .processes import gathered, rank
from .trainer import RerankTrainer

logger = logging.getLogger(__name__)

#: What is known of the kept model, in its folder while the run lasts.
RECORD = "kept.json"

#: What models are compared by.
METRIC = "ndcg@10"

#: A step takes the base's place only if it is better on this share of bootstrap samples of the
#: choosing queries. Among several evaluations of a model that is none the better, one is above the
#: base by chance more often than not.
EVIDENCE = 0.9


class KeepBest(TrainerCallback):
    """Saves the model whenever it beats every earlier one, and the base beyond chance.

    Args:
        folder: Where the best model stands; it changes by renames, so it is always a whole one.
        trainer: Whose model is saved, after each of its evaluations.
        patience: Evaluations without a better model after which the run ends; none for never.
    """

    def __init__(self, folder: Path, trainer: RerankTrainer, *, patience: int | None) -> None:
        self.folder = folder
        self.trainer = trainer
        self.patience = patience
        #: The step of the model that is kept; none before the first evaluation.
        self.step: int | None = None
        self._before: Evaluation | None = None
        self._kept: Evaluation | None = None
        #: Evaluations since the last better one.
        self._worse = 0

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

    @property
    def improved(self) -> bool:
        """Whether the model that is kept beats the base beyond chance."""
        return self.step != 0 and self.beats_the_base(self.kept)

    def beats_the_base(self, found: Evaluation) -> bool:
        """Whether an evaluation is above the one before the first step, beyond chance."""
        before = self.before.values[METRIC]
        return improvement_probability(before, found.values[METRIC]) >= EVIDENCE

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the model if it is the best so far; end a run that finds none any more."""
        latest = self.trainer.latest
        if self._before is None:
            self._before = latest
            self.keep(state)
        elif latest.means[METRIC] > self.kept.means[METRIC] and self.beats_the_base(latest):
            self.keep(state)
            self._worse = 0
        else:
            self._worse += 1
            control.should_training_stop |= self._gives_up

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End a run that had run out of patience when it was interrupted."""
        control.should_training_stop |= self._gives_up

    @property
    def _gives_up(self) -> bool:
        return self.patience is not None and self._worse >= self.patience

    def keep(self, state: TrainerState) -> None:
        """Keep the model as it is now, whatever the one before."""
        staged, replaced = places(self.folder)
        if state.is_world_process_zero:
            shutil.rmtree(staged, ignore_errors=True)
        with saving(staged):
            self.trainer.save_model(str(staged), _internal_call=True)
            if state.is_world_process_zero:
                kept = {"step": state.global_step, "kept": self.trainer.latest.as_record()}
                write_json(staged / RECORD, kept)
        if state.is_world_process_zero:
            shutil.rmtree(replaced, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(replaced)
            staged.rename(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        self.step, self._kept = state.global_step, self.trainer.latest

    def settle(self) -> None:
        """At the end of a run: make sure that what is known is known of the model in the folder.

        A run that was killed may have kept a later model than its checkpoint knows of, and the one
        that resumed it, where products are not the same every time, none.
        """
        path, found = self.folder / RECORD, None
        if rank() == 0 and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
        record = gathered(found)[0]
        if record is not None and record["step"] != self.step:
            self.step, self._kept = record["step"], Evaluation.from_record(record["kept"])
            logger.warning("kept is the model of step %d, of before an interruption", self.step)

    def as_record(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON."""
        return {
            "step": self.step,
            "before": self.before.as_record(),
            "kept": self.kept.as_record(),
            "worse": self._worse,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on from what `as_record` gave."""
        self.step, self._worse = record["step"], record["worse"]
        self._before = Evaluation.from_record(record["before"])
        self._kept = Evaluation.from_record(record["kept"])


def places(folder: Path) -> tuple[Path, Path]:
    """Where the next model is written, and where the one before stands until it is there."""
    return folder.with_suffix(".new"), folder.with_suffix(".old")


def recover(folder: Path) -> None:
    """Bring the model back whose replacement a kill interrupted."""
    _, replaced = places(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
