"""The differences between model families, as a table: a new family is a row."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

logger = logging.getLogger(__name__)

#: The reason to refuse a family whose inputs are more than texts.
PAGES = "it needs the positions of words on a page, which pairs of texts do not have"


@dataclass(frozen=True)
class Family:
    """One family of models, by the `model_type` of its config."""

    #: Positions count from `pad_token_id + 1`, as in fairseq: the ones before are not usable.
    positions_after_padding: bool = False
    #: The module of the backbone after which only one token a pair is needed, "" for the backbone
    #: itself; None if the family has its own attention, so that its pairs are padded, not packed.
    last_module: str | None = None
    #: Whether a token sees only those before it, and the last one of a pair is scored.
    causal: bool = False
    #: The kind of its layers, if `fused_layers` has a faster one: "bert" (norms after attention and
    #: feed-forward), "modernbert" (norms before, rotary positions, gated) or "llama" (the same,
    #: causal).
    layers: str | None = None
    #: Whether the logit of a pair does not depend on padding. Otherwise the pairs of a batch have
    #: equal length, or a score would depend on the other pairs.
    masks_padding: bool = True
    #: Whether its code raises an error in half precision.
    float32_only: bool = False
    #: Values that override those of a checkpoint's config.
    config: Mapping[str, Any] = field(default_factory=dict)
    #: The reason why the family is refused.
    refused: str | None = None


FAMILIES = {
    "albert": Family(last_module="encoder"),
    "bert": Family(last_module="encoder", layers="bert"),
    # A short batch would replace its sparse attention by the full one for ever.
    "big_bird": Family(config={"attention_type": "original_full"}),
    "camembert": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    # In some versions of transformers: its mask is float32 whatever the model is.
    "canine": Family(masks_padding=False, float32_only=True),
    "convbert": Family(masks_padding=False),
    "data2vec-text": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    "deberta": Family(float32_only=True),
    "deberta-v2": Family(),
    "distilbert": Family(last_module=""),
    "electra": Family(last_module="", layers="bert"),
    "ernie": Family(last_module="encoder", layers="bert"),
    "esm": Family(positions_after_padding=True),
    "eurobert": Family(),
    "flaubert": Family(),
    "fnet": Family(masks_padding=False, float32_only=True),
    "funnel": Family(masks_padding=False),
    "gemma": Family(last_module="", causal=True, layers="llama"),
    "gte": Family(),
    "ibert": Family(positions_after_padding=True),
    "jina_embeddings_v3": Family(),
    "layoutlm": Family(refused=PAGES),
    "layoutlmv2": Family(refused=PAGES),
    "layoutlmv3": Family(refused=PAGES),
    "lilt": Family(refused=PAGES),
    "llama": Family(last_module="", causal=True, layers="llama"),
    "longformer": Family(positions_after_padding=True),
    "luke": Family(positions_after_padding=True),
    "markuplm": Family(refused=PAGES),
    "megatron-bert": Family(),
    "mistral": Family(last_module="", causal=True, layers="llama"),
    "mobilebert": Family(),
    "modernbert": Family(last_module="", layers="modernbert"),
    "mpnet": Family(positions_after_padding=True),
    "mra": Family(refused="its attention is zero without a special CUDA kernel"),
    "nomic_bert": Family(),
    "nystromformer": Family(refused="its attention averages over a fixed number of tokens"),
    "perceiver": Family(refused="it reads bytes, not the tokens of pairs"),
    "qwen2": Family(last_module="", causal=True, layers="llama"),
    "qwen3": Family(last_module="", causal=True, layers="llama"),
    "reformer": Family(refused="it hashes tokens at random, so equal pairs get different scores"),
    "rembert": Family(),
    "roberta": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    "roberta-prelayernorm": Family(positions_after_padding=True, last_module="encoder"),
    "roc_bert": Family(),
    "roformer": Family(),
    "squeezebert": Family(),
    "tapas": Family(refused="it reads tables, with types for rows and columns"),
    "xlm": Family(),
    "xlm-roberta": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    "xlm-roberta-xl": Family(positions_after_padding=True, last_module="encoder"),
    "xmod": Family(refused="its layers are chosen by a language, which pairs do not have"),
    "yoso": Family(masks_padding=False),
}

#: An unknown family, such as one whose code comes with the model.
UNKNOWN = Family(masks_padding=False)


def family_of(config: Any) -> Family:
    """Return the row of a model's config."""
    return FAMILIES.get(config.model_type, UNKNOWN)


def usable_dtype(dtype: torch.dtype, config: Any) -> torch.dtype:
    """Return a precision that a model's family can run in: float32 for some, with a warning."""
    if dtype == torch.float32 or not family_of(config).float32_only:
        return dtype
    logger.warning(
        "dtype %s: %s models need float32, which is used instead",
        str(dtype).removeprefix("torch."),
        config.model_type,
    )
    return torch.float32


def usable_positions(config: Any) -> int | None:
    """Return the number of tokens of the longest pair of a model, None if it is not limited."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    return positions - first_position(config)


def first_position(config: Any) -> int:
    """Return the position of a pair's first token."""
    return int(config.pad_token_id) + 1 if family_of(config).positions_after_padding else 0
