"""The training loop of a run: its trainer, and its steps up to the last one."""

import logging
from pathlib import Path

from ..config import FinetuneConfig
from ..data.dataset import GroupDataset
from .arguments import training_arguments
from .callbacks import NoStepLeftError, ProgressLine, Stopwatch
from .collapse_guard import CollapseGuard
from .interrupt import Interruption
from .model import TrainableModel
from .trainer import RerankTrainer

logger = logging.getLogger(__name__)


def make_trainer(
    config: FinetuneConfig,
    model: TrainableModel,
    train: GroupDataset,
    validation: GroupDataset,
    *,
    folder: Path,
    learning_rate: float,
    stopwatch: Stopwatch,
    evaluates_first: bool,
) -> RerankTrainer:
    """Return the trainer of a run.

    Args:
        config: The options of the run.
        model: Its model.
        train: The training groups.
        validation: The validation groups.
        folder: Gets the checkpoints.
        learning_rate: The highest learning rate.
        stopwatch: Measures the training time.
        evaluates_first: Evaluate before the first step.
    """
    arguments = training_arguments(
        config,
        folder=str(folder),
        device=model.device,
        dtype=model.dtype,
        lr=learning_rate,
        groups=len(train),
        evaluates_first=evaluates_first,
    )
    return RerankTrainer(
        model=model.model,
        args=arguments,
        scorer=model.scorer,
        loss=model.loss,
        train_groups=train,
        eval_groups=validation,
        group_size=config.train_group_size,
        stopwatch=stopwatch,
        guard=CollapseGuard(),
    )


def train_steps(
    trainer: RerankTrainer,
    progress: ProgressLine,
    interruption: Interruption,
    checkpoint: Path | None,
) -> None:
    """Train to the last step, from a checkpoint if there is one.

    Raises:
        ScoringError, TrainingStoppedError: training diverged.
        KeyboardInterrupt: a signal stopped the run, after a checkpoint.
    """
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
    try:
        with interruption.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except NoStepLeftError:
        pass
    finally:
        progress.close()
        trainer.stopwatch.stop()
    state = trainer.state
    if interruption.stops and state.global_step < state.max_steps:
        logger.warning("stopped after step %d: the same command resumes", state.global_step)
        raise KeyboardInterrupt
