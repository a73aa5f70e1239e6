"""What differs between model families, as a table: a new family is a row."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One family of encoders, by the `model_type` of its config."""

    #: Positions count from `pad_token_id + 1`, as in fairseq: the ones before are not usable.
    positions_after_padding: bool = False
    #: The part of the backbone behind which only one token a pair is needed, "" for its end; none
    #: where attention is the family's own, so that its pairs are padded instead of packed.
    last_module: str | None = None
    #: How its layers are built, if `fused_layers` has a faster one of the kind: "bert" (norms
    #: behind attention and feed-forward) or "modernbert" (norms before, rotary positions, gated).
    layers: str | None = None


FAMILIES = {
    "albert": Family(last_module="encoder"),
    "bert": Family(last_module="encoder", layers="bert"),
    "camembert": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    "data2vec-text": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    "distilbert": Family(last_module=""),
    "electra": Family(last_module="", layers="bert"),
    "ernie": Family(last_module="encoder", layers="bert"),
    "modernbert": Family(last_module="", layers="modernbert"),
    "mpnet": Family(positions_after_padding=True),
    "roberta": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    "roberta-prelayernorm": Family(positions_after_padding=True, last_module="encoder"),
    "xlm-roberta": Family(positions_after_padding=True, last_module="encoder", layers="bert"),
    "xlm-roberta-xl": Family(positions_after_padding=True, last_module="encoder"),
}


def family_of(config: Any) -> Family:
    """The row of a model's config; families that have none are padded."""
    return FAMILIES.get(config.model_type, Family())


def usable_positions(config: Any) -> int | None:
    """How many tokens a pair can have at most under a model's config, `None` if it does not say."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    return positions - first_position(config)


def first_position(config: Any) -> int:
    """The position of a pair's first token."""
    return int(config.pad_token_id) + 1 if family_of(config).positions_after_padding else 0
