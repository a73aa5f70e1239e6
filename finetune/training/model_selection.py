"""Which model of a run is kept: chosen on queries that are not trained on, step 0 included."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.io.atomic import saving, write_json

from ..evaluation.scoring import Evaluation
from ..evaluation.significance import improvement_probability
from .checkpoint import RESUMES
from .distributed import gathered, rank
from .trainer import RerankTrainer

logger = logging.getLogger(__name__)

#: What is known of the kept model, in its folder while the run lasts.
RECORD = "kept.json"

#: What models are compared by.
METRIC = "ndcg@10"

#: A step takes the base's place only if it is better on this share of bootstrap samples of the
#: validation queries. Among several evaluations of a model that is none the better, one is above
#: the base by chance more often than not.
EVIDENCE = 0.9

#: An earlier step keeps its place before a later one only if it is better on this share of them.
#: The best of several evaluations is in part the luckiest one, while later weights have seen more
#: at lower rates: on other queries they are the better ones, as benchmarks/README.md shows.
SURE = 0.95


class KeepBest(TrainerCallback):
    """Saves the model that beats the base, unless an earlier one beats it, each beyond chance.

    Args:
        folder: Where the kept model stands; it changes by renames, so it is always a whole one.
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
        #: The highest one, which later ones are compared with: many that are each a little worse
        #: than the one before must not add up.
        self._best: Evaluation | None = None
        #: Evaluations since the highest one.
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

    @property
    def best(self) -> Evaluation:
        """The evaluation with the highest nDCG@10, of whichever step."""
        assert self._best is not None, "no evaluation yet"
        return self._best

    def beats_the_base(self, found: Evaluation) -> bool:
        """Whether an evaluation is above the one before the first step, beyond chance."""
        return probability(self.before, found) >= EVIDENCE

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the model if none is surely better; end a run that finds no better one any more."""
        latest = self.trainer.latest
        if self._before is None:
            self._before = self._best = latest
            self.keep(state)
            return
        better = self.beats_the_base(latest)
        if better and probability(latest, self.best) < SURE:
            self.keep(state)
        if better and latest.means[METRIC] > self.best.means[METRIC]:
            self._best, self._worse = latest, 0
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
        with saving(staged, again=RESUMES):
            self.trainer.save_model(str(staged), _internal_call=True)
            if state.is_world_process_zero:
                kept = {"step": state.global_step, "kept": self.trainer.latest.to_dict()}
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
            self.step, self._kept = record["step"], Evaluation.from_dict(record["kept"])
            logger.warning("kept is the model of step %d, of before an interruption", self.step)

    def as_record(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON."""
        return {
            "step": self.step,
            "before": self.before.to_dict(),
            "kept": self.kept.to_dict(),
            "best": self.best.to_dict(),
            "worse": self._worse,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on from what `as_record` gave."""
        self.step, self._worse = record["step"], record["worse"]
        self._before = Evaluation.from_dict(record["before"])
        self._kept = Evaluation.from_dict(record["kept"])
        self._best = Evaluation.from_dict(record["best"])


def probability(one: Evaluation, other: Evaluation) -> float:
    """The share of bootstrap samples of the queries on which the other one is better."""
    return improvement_probability(one.values[METRIC], other.values[METRIC])


def places(folder: Path) -> tuple[Path, Path]:
    """Where the next model is written, and where the one before stands until it is there."""
    return folder.with_suffix(".new"), folder.with_suffix(".old")


def recover(folder: Path) -> None:
    """Bring the model back whose replacement a kill interrupted."""
    _, replaced = places(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
