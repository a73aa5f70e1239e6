"""The learning rate that a run takes where none is given."""

import logging

from transformers import PreTrainedConfig

from rerank_plugin.model.loaded import LoadedModel

from ..config import FinetuneConfig
from .arguments import step_groups

logger = logging.getLogger(__name__)

#: Hidden size of the table's rates, that of base models.
BASE_HIDDEN_SIZE = 768

#: Groups of an optimizer step that the rates were measured with.
BASE_STEP_GROUPS = 8

#: Learning rate by (newly initialised head, LoRA). The rates for a newly initialised head were
#: measured at a hidden size of 384 (all-MiniLM-L6-v2 on SQuAD and on the sample data) and scaled
#: by the formula below; the ones for a trained reranker are those that its makers publish.
RATES = {
    (True, False): 5e-5,
    (False, False): 1e-5,
    (True, True): 4e-4,
    (False, True): 1e-4,
}


def default_learning_rate(
    config: PreTrainedConfig, *, new_head: bool, lora: bool, step_groups: int
) -> float:
    """A rate by what is trained: smaller models take larger ones.

    rate = table rate * (768 / hidden size) ^ 2, the factor at most 4; for a newly initialised
    head also * sqrt(step groups / 8), at most 1: steps of fewer groups are noisier.

    A newly initialised head on a small encoder learns nothing within an epoch at the rates that
    suit a trained reranker, and a trained reranker is damaged by the rates that such a head needs.
    """
    hidden = getattr(config, "hidden_size", BASE_HIDDEN_SIZE)
    rate = RATES[new_head, lora] * min(4.0, (BASE_HIDDEN_SIZE / hidden) ** 2)
    return rate * min(1.0, (step_groups / BASE_STEP_GROUPS) ** 0.5) if new_head else rate


def given_or_default_rate(config: FinetuneConfig, loaded: LoadedModel) -> float:
    """The rate that was given, else the default for what is loaded; `auto` starts from that."""
    suits = default_learning_rate(
        loaded.model.config,
        new_head=loaded.has_new_head,
        lora=config.lora,
        step_groups=step_groups(config),
    )
    what = "a newly initialised scoring head" if loaded.has_new_head else "a trained reranker"
    how = "LoRA" if config.lora else "full"
    if isinstance(config.lr, str):
        return suits
    if config.lr is None:
        logger.info("%s, %s fine-tuning: learning rate %.2g", what, how, suits)
        return suits
    if loaded.has_new_head and config.lr < suits / 4:
        logger.warning(
            "--lr %.2g is low for %s (%s fine-tuning), it may learn little: the default is %.2g",
            config.lr,
            what,
            how,
            suits,
        )
    return config.lr
