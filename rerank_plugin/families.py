"""What differs between model families, as a table: a new family is a row."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One family of encoders, by the `model_type` of its config."""

    #: Positions count from `pad_token_id + 1`, as in fairseq: the ones before are not usable.
    positions_after_padding: bool = False


FAMILIES = {
    "bert": Family(),
    "electra": Family(),
    "modernbert": Family(),
    "mpnet": Family(positions_after_padding=True),
    "roberta": Family(positions_after_padding=True),
    "camembert": Family(positions_after_padding=True),
    "xlm-roberta": Family(positions_after_padding=True),
    "xlm-roberta-xl": Family(positions_after_padding=True),
}


def usable_positions(config: Any) -> int | None:
    """How many tokens a pair can have at most under a model's config, `None` if it does not say."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    family = FAMILIES.get(config.model_type, Family())
    return positions - config.pad_token_id - 1 if family.positions_after_padding else positions
