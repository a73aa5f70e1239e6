"""Turn raw logits into the scores that a user sees, in float32."""

from collections.abc import Sequence
from math import log
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rerank_plugin.arguments import NORMALIZATIONS
from rerank_plugin.errors import InputError, OptionError, RerankError, invalid_choice
from rerank_plugin.model.settings import RerankSettings

Logits = npt.NDArray[np.float32]

#: The score of a raw logit of -inf, which JSON has no number for.
LOWEST = np.finfo(np.float32).min

Numbers = TypeVar("Numbers", bound=npt.NDArray[np.floating[Any]])


class ScoringError(RerankError):
    """The model returned a logit that is not a finite number."""


def concatenated(chunks: Sequence[Logits]) -> Logits:
    """Return the logits of all chunks, `[pairs]`."""
    return np.concatenate(chunks) if chunks else np.empty(0, np.float32)


def check_normalization(name: str) -> str:
    """Return the name of a normalisation.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in NORMALIZATIONS:
        raise OptionError("normalize", invalid_choice(name, NORMALIZATIONS))
    return name


def sigmoid(values: Numbers) -> Numbers:
    """Return the sigmoid of numbers, at their precision."""
    # Without overflow: exp of a positive number is never computed.
    power = np.exp(-np.abs(values))
    sigmoids: Numbers = np.where(values >= 0, values.dtype.type(1), power) / (1 + power)
    return sigmoids


def scale_and_bias(settings: RerankSettings) -> tuple[float, float]:
    """Return `scale` and `bias` of calibrated scores, the sigmoid of `scale * logit + bias`.

    Raises:
        InputError: the model has no calibration.
    """
    if settings.calibration is None:
        raise InputError("normalize: the model has no calibration; use sigmoid or none")
    return float(settings.calibration["scale"]), float(settings.calibration["bias"])


def normalize(logits: Logits, name: str, settings: RerankSettings) -> Logits:
    """Return scores of the same shape, all finite; the order never changes.

    With two labels the sigmoid of the logits' difference is the positive label's softmax.
    """
    if name == "none":
        return np.maximum(logits, LOWEST)
    if name == "calibrated":
        scale, bias = scale_and_bias(settings)
        logits = (scale * logits.astype(np.float64) + bias).astype(np.float32)
    return sigmoid(logits)


def threshold_logit(name: str, settings: RerankSettings) -> float:
    """Return a named threshold of a model as a logit.

    Raises:
        InputError: the model has no threshold of that name.
    """
    score = settings.threshold(name)
    if settings.normalize != "none":
        # A score that rounds to 0 or 1 has a logit far from 0, of unknown size.
        score = min(max(score, 1e-30), 1 - 1e-16)
        score = log(score) - log(1 - score)
    if settings.normalize == "calibrated":
        scale, bias = scale_and_bias(settings)
        score = (score - bias) / scale
    return score


def threshold(name: str, normalization: str, settings: RerankSettings) -> float:
    """Return a named threshold of a model as a score under a normalisation."""
    if normalization == settings.normalize:
        return settings.threshold(name)
    logit = np.array([threshold_logit(name, settings)], np.float32)
    return float(normalize(logit, normalization, settings)[0])
