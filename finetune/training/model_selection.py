"""The choice of the model that a run keeps, on the validation queries; step 0 is one of them."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.disk_errors import saving

from ..evaluation.metrics import METRIC
from ..evaluation.scoring import Evaluation
from ..evaluation.significance import improvement_probability
from .checkpoint import RESUMES
from .distributed import gather, is_main_process
from .trainer import RerankTrainer

logger = logging.getLogger(__name__)

#: The step and the evaluation of the kept model, in its folder during the run.
KEPT_FILE = "kept.json"

#: The kept model must beat the base model on this share of bootstrap samples of the validation
#: queries. Among several evaluations of a model that is not better than the base, one is above it
#: by chance more often than not.
EVIDENCE = 0.9

#: An earlier model is kept instead of a later one only if it is better on this share of them. The
#: best of several evaluations is in part the luckiest one, while later weights have seen more
#: groups at lower learning rates: on other queries they are better, as benchmarks/README.md shows.
SURE = 0.95


class ModelSelection(TrainerCallback):
    """Keeps the latest model that beats the base, unless an earlier one beats it beyond chance.

    Args:
        folder: The folder of the kept model; renames replace it, so it is always complete.
        trainer: Its model is saved after an evaluation.
        patience: Evaluations without a better model after which the run ends; none for never.
    """

    def __init__(self, folder: Path, trainer: RerankTrainer, *, patience: int | None) -> None:
        self.folder = folder
        self.trainer = trainer
        self.patience = patience
        #: The step of the kept model; none before the first evaluation.
        self.step: int | None = None
        #: The share of its weights in the folder, the rest being the base's.
        self.alpha = 1.0
        self._before: Evaluation | None = None
        self._kept: Evaluation | None = None
        #: The best one. Later models are compared with it: many that are each a little worse than
        #: the one before must not add up.
        self._best: Evaluation | None = None
        #: The number of evaluations since the best one.
        self._worse = 0

    @property
    def before(self) -> Evaluation:
        """Return the evaluation of the base model."""
        assert self._before is not None, "no evaluation yet"
        return self._before

    @property
    def kept(self) -> Evaluation:
        """Return the evaluation of the kept model."""
        assert self._kept is not None, "no evaluation yet"
        return self._kept

    @property
    def best(self) -> Evaluation:
        """Return the evaluation with the highest nDCG@10, whether or not its model is kept."""
        assert self._best is not None, "no evaluation yet"
        return self._best

    @property
    def improved(self) -> bool:
        """Return whether the kept model beats the base model beyond chance."""
        return self.step != 0 and self.beats_the_base(self.kept)

    def beats_the_base(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation is above that of the base model beyond chance."""
        return win_probability(self.before, evaluation) >= EVIDENCE

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the model if no earlier one is surely better; end a run that is out of patience."""
        latest = self.trainer.latest
        if self._before is None:
            self._before = self._best = latest
            self.save(state)
            return
        better = self.beats_the_base(latest)
        if better and win_probability(latest, self.best) < SURE:
            self.save(state)
        if better and latest.means[METRIC] > self.best.means[METRIC]:
            self._best, self._worse = latest, 0
        else:
            self._worse += 1
            control.should_training_stop |= self._out_of_patience

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End a resumed run that was out of patience when it was interrupted."""
        control.should_training_stop |= self._out_of_patience

    @property
    def _out_of_patience(self) -> bool:
        return self.patience is not None and self._worse >= self.patience

    def save(self, state: TrainerState) -> None:
        """Save the current model as the kept one."""
        self._save(state.global_step, self.trainer.latest, alpha=1.0)

    def replace(self, evaluation: Evaluation, alpha: float) -> None:
        """Replace the kept model by the current one, a blend of it with the base."""
        assert self.step is not None, "no evaluation yet"
        self._save(self.step, evaluation, alpha=alpha)

    def _save(self, step: int, evaluation: Evaluation, *, alpha: float) -> None:
        staged, replaced = neighbours(self.folder)
        if is_main_process():
            shutil.rmtree(staged, ignore_errors=True)
        with saving(staged, again=RESUMES):
            self.trainer.save_model(str(staged), _internal_call=True)
            if is_main_process():
                kept = {"step": step, "alpha": alpha, "kept": evaluation.to_dict()}
                write_json(staged / KEPT_FILE, kept)
        if is_main_process():
            shutil.rmtree(replaced, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(replaced)
            staged.rename(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        self.step, self.alpha, self._kept = step, alpha, evaluation

    def reconcile(self) -> None:
        """Take step, blend and evaluation from the folder of the kept model, if they differ.

        A killed run may have kept a later model than its checkpoint knows; the run that resumed it
        may not have found it again where products are not deterministic.
        """
        path, record = self.folder / KEPT_FILE, None
        if is_main_process() and path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
        record = gather(record)[0]
        if record is None or (record["step"], record["alpha"]) == (self.step, self.alpha):
            return
        if record["step"] != self.step:
            logger.warning(
                "the model of step %d is kept, from before the interruption", record["step"]
            )
        self.step, self.alpha = record["step"], record["alpha"]
        self._kept = Evaluation.from_dict(record["kept"])

    def state_dict(self) -> dict[str, Any]:
        """Return the evaluations that later ones are compared with."""
        return {
            "step": self.step,
            "before": self.before.to_dict(),
            "kept": self.kept.to_dict(),
            "best": self.best.to_dict(),
            "worse": self._worse,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the evaluations."""
        self.step, self._worse = state["step"], state["worse"]
        self._before = Evaluation.from_dict(state["before"])
        self._kept = Evaluation.from_dict(state["kept"])
        self._best = Evaluation.from_dict(state["best"])


def win_probability(before: Evaluation, after: Evaluation) -> float:
    """Return the share of bootstrap samples of the queries on which the second one is better."""
    return improvement_probability(before.values[METRIC], after.values[METRIC])


def neighbours(folder: Path) -> tuple[Path, Path]:
    """Return the folders of the next model and of the previous one, during a replacement."""
    return folder.with_suffix(".new"), folder.with_suffix(".old")


def recover(folder: Path) -> None:
    """Bring back the model whose replacement a kill interrupted."""
    _, replaced = neighbours(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
