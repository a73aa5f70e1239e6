"""Losses by name: one class per file, each with the contract of `base.Loss`.

Importing this package does not import torch: options are checked without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .registry import DEFAULT_LOSS, LOSSES, LossTerm, parse_loss

if TYPE_CHECKING:
    from .base import Loss

__all__ = ["DEFAULT_LOSS", "LOSSES", "LossTerm", "make_loss", "parse_loss"]


def make_loss(spelling: str, *, temperature: float | None = None) -> "Loss":
    """Return the loss of a spelling such as `listnet` or `softmax_cross_entropy+0.1:ranknet`.

    Args:
        spelling: A name, or a weighted sum of names.
        temperature: The temperature of `kl_divergence`; default 1.

    Raises:
        OptionError: an unknown loss, or a sum that cannot be parsed.
    """
    from .weighted_sum import WeightedSum

    terms = parse_loss(spelling)
    losses = [make_term(term.name, temperature) for term in terms]
    if len(terms) == 1 and terms[0].weight == 1:
        return losses[0]
    return WeightedSum(list(zip((term.weight for term in terms), losses, strict=True)))


def make_term(name: str, temperature: float | None) -> "Loss":
    """Return a loss by its name, which is also that of its module."""
    kind = getattr(import_module(f".{name}", __name__), LOSSES[name])
    loss: Loss = kind() if temperature is None or name != "kl_divergence" else kind(temperature)
    return loss
