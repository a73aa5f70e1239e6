"""The blend of the kept model with the base, chosen after the last step."""

import logging
from functools import cached_property

from torch import Tensor

from rerank_plugin.errors import OptionError
from rerank_plugin.model.head import keep_one_label
from rerank_plugin.model.loaded import quiet_transformers

from ..blending.choice import Choice, Trial, choose_blend
from ..blending.describe import describe_blend
from ..blending.weights import blend_weights
from ..config import FinetuneConfig
from ..evaluation.scoring import Evaluation
from .data import RunData
from .distributed import is_sharded, wait_for_everyone
from .model import TrainableModel, check_base, load_base_model
from .model_selection import ModelSelection
from .run_dir import RunDir
from .schedule.learning_rate import kind_of
from .trainer import RerankTrainer

logger = logging.getLogger(__name__)


def check_blend(config: FinetuneConfig, model: TrainableModel) -> None:
    """Check that a blend that was asked for can be made.

    Raises:
        OptionError: the base is no trained reranker, or each process holds a shard of the weights.
    """
    if config.blend in ("auto", 1):
        return
    kind = kind_of(model.loaded)
    if kind != "a trained reranker":
        problem = f"requires a trained reranker as the base model, not {kind}"
        raise OptionError("blend", problem)
    if is_sharded(config.trainer):
        raise OptionError("blend", "not supported with FSDP or DeepSpeed: use --blend 1")


def blend_kept_model(
    trainer: RerankTrainer,
    selection: ModelSelection,
    config: FinetuneConfig,
    run_dir: RunDir,
    data: RunData,
    model: TrainableModel,
    general_before: Evaluation | None,
) -> Choice | None:
    """Blend the kept model with the base, as `--blend` says; None where there is nothing to blend.

    The folder of the kept model has the blend then. `general_before` is the evaluation of the base
    on the general queries, if there are any.
    """
    if config.blend == 1 or selection.step == 0 or kind_of(model.loaded) != "a trained reranker":
        return None
    if trainer.is_sharded:
        logger.info("--blend auto: weights are not blended with FSDP or DeepSpeed")
        return None
    blender = Blender(trainer, selection, config, run_dir, data)
    choice = blender.choice(general_before)
    if selection.alpha != choice.chosen.alpha:
        blender.apply(choice.chosen.alpha)
        selection.replace(choice.chosen.validation, choice.chosen.alpha)
    logger.info("%s", describe_blend(choice.record))
    return choice


class Blender:
    """Makes blends of the kept model with the base, and evaluates them.

    Evaluations are kept in the state of the run: a resumed run does not repeat them.

    Args:
        trainer: Its model gets the weights.
        selection: The kept model.
        config: The options of the run.
        run_dir: The folders of the run.
        data: The queries.
    """

    def __init__(
        self,
        trainer: RerankTrainer,
        selection: ModelSelection,
        config: FinetuneConfig,
        run_dir: RunDir,
        data: RunData,
    ) -> None:
        self.trainer = trainer
        self.selection = selection
        self.config = config
        self.run_dir = run_dir
        self.data = data

    def choice(self, general_before: Evaluation | None) -> Choice:
        """Return the blend that the option sets, or the one that the queries choose."""
        if isinstance(self.config.blend, str):
            return choose_blend(self.trial, self.selection.beats_the_base, general_before)
        trial = self.trial(self.config.blend)
        return Choice(trial, [trial])

    def trial(self, alpha: float) -> Trial:
        """Return the evaluation of a blend, unless an interrupted run has it already."""
        known = self.run_dir.state.get("blend", {})
        records = known.get("trials", []) if known.get("step") == self.selection.step else []
        for record in records:
            if record["alpha"] == alpha:
                return Trial.from_dict(record)
        trial = self._evaluated(alpha)
        trials = [*records, trial.to_dict()]
        self.run_dir.keep(blend={"step": self.selection.step, "trials": trials})
        return trial

    def _evaluated(self, alpha: float) -> Trial:
        general, validation = self.data.general, self.selection.kept
        if alpha == 1 and general is None:
            return Trial(alpha, validation)
        self.apply(alpha)
        if alpha != 1:
            validation = self.trainer.evaluate_groups(self.data.validation)
        if general is None:
            return Trial(alpha, validation)
        return Trial(alpha, validation, self.trainer.evaluate_groups(general, with_loss=False))

    def apply(self, alpha: float) -> None:
        """Give the trainer's model the weights of a blend."""
        wait_for_everyone()
        with quiet_transformers():
            self.trainer.load_weights(
                self.run_dir.model, trust_remote_code=self.config.trust_remote_code
            )
        assert self.trainer.model is not None
        if alpha != 1:
            blend_weights(self.trainer.model, self.base, alpha)

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The weights before training."""
        return base_weights(self.config, self.run_dir)


def base_weights(config: FinetuneConfig, run_dir: RunDir) -> dict[str, Tensor]:
    """Return the weights before training, read from the base model again."""
    loaded = load_base_model(config)
    check_base(config, run_dir, loaded)
    if not config.lora:
        keep_one_label(loaded.model)
    return dict(loaded.model.named_parameters())
