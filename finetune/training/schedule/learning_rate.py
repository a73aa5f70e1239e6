"""The learning rate of a run: given, found by `--lr auto`, or the default for the model."""

import logging
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from rerank_plugin.model.loaded import LoadedModel

from ...config import FinetuneConfig
from ...data.dataset import GroupDataset
from ..arguments import step_groups
from ..distributed import gather
from ..model import TrainableModel
from ..run_dir import RunDir
from ..trainer import freed_memory_kept, without_cudnn_attention
from .lr_finder import LearningRateFinder

logger = logging.getLogger(__name__)

#: The hidden size for which the table's rates are: that of base-size models.
BASE_HIDDEN_SIZE = 768

#: The groups of an optimizer step with which the rates were measured.
BASE_STEP_GROUPS = 8


@dataclass(frozen=True)
class DefaultRates:
    """The rates of models of one kind, at the hidden size of base-size models."""

    full: float
    lora: float
    #: The power of the hidden size by which larger models take smaller rates.
    power: int
    #: Whether the scores mean nothing before training.
    untrained: bool


#: By what is trained. The rates for a newly initialised head were measured at a hidden size of 384
#: (all-MiniLM-L6-v2 on SQuAD and on the sample data), those for a language model at 576
#: (SmolLM2-135M-Instruct on SQuAD), and scaled by the formula below; by it, a language model of 7
#: billion parameters gets the rates that are usual for such models. The ones for a trained reranker
#: are those that its makers publish.
RATES = {
    "a newly initialised scoring head": DefaultRates(5e-5, 4e-4, power=2, untrained=True),
    "a general language model": DefaultRates(7.5e-5, 1.1e-3, power=1, untrained=True),
    "a trained reranker": DefaultRates(1e-5, 1e-4, power=2, untrained=False),
}


def choose_learning_rate(
    config: FinetuneConfig, run_dir: RunDir, model: TrainableModel, groups: GroupDataset
) -> float:
    """Return the learning rate of a run; a resumed run takes that of the interrupted one."""
    known: float | None = run_dir.state.get("lr")
    if known is not None:
        return known
    rate = given_or_default_rate(config, model.loaded)
    if config.lr == "auto":
        rate = find_learning_rate(config, model, groups, default=rate)
    run_dir.keep(lr=rate)
    return rate


def find_learning_rate(
    config: FinetuneConfig, model: TrainableModel, groups: GroupDataset, *, default: float
) -> float:
    """Return the rate that the learning-rate finder chooses around the default one."""
    torch.nn.Module.to(model.scorer.model, model.device)
    finder = LearningRateFinder(
        model.scorer,
        loss=model.loss,
        groups=groups,
        group_size=config.train_group_size,
        step_groups=step_groups(config),
        seed=config.seed,
        dtype=model.dtype,
    )
    with freed_memory_kept(), without_cudnn_attention():
        return gather(finder.best(default))[0]


def kind_of(loaded: LoadedModel) -> str:
    """Return what a model is before training, a key of `RATES`."""
    if loaded.has_new_head:
        return "a newly initialised scoring head"
    return "a trained reranker" if loaded.is_reranker else "a general language model"


def default_learning_rate(
    config: PreTrainedConfig, kind: str, *, lora: bool, step_groups: int
) -> float:
    """Return the default rate for a model of a kind in `RATES`; smaller models take larger ones.

    rate = table rate * (768 / hidden size) ^ power, the factor at most 4; for an untrained model
    also * sqrt(step groups / 8), at most 1: steps of fewer groups are noisier.

    An untrained model learns next to nothing within an epoch at the rates that suit a trained
    reranker, and a trained reranker is damaged by the rates that an untrained one needs.
    """
    rates = RATES[kind]
    hidden = getattr(config, "hidden_size", BASE_HIDDEN_SIZE)
    rate = rates.lora if lora else rates.full
    rate *= min(4.0, (BASE_HIDDEN_SIZE / hidden) ** rates.power)
    return rate * min(1.0, (step_groups / BASE_STEP_GROUPS) ** 0.5) if rates.untrained else rate


def given_or_default_rate(config: FinetuneConfig, loaded: LoadedModel) -> float:
    """Return the given rate, or the default one for the model; `auto` starts from the default."""
    kind = kind_of(loaded)
    default = default_learning_rate(
        loaded.model.config, kind, lora=config.lora, step_groups=step_groups(config)
    )
    method = "LoRA" if config.lora else "full"
    if isinstance(config.lr, str):
        return default
    if config.lr is None:
        logger.info("learning rate: %.2g (%s, %s fine-tuning)", default, kind, method)
        return default
    if RATES[kind].untrained and config.lr < default / 4:
        logger.warning(
            "--lr %.2g is low for %s (%s fine-tuning): the default is %.2g",
            config.lr,
            kind,
            method,
            default,
        )
    return config.lr
