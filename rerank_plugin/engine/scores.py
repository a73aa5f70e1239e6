"""From raw logits to the scores that a user sees, in float32."""

from math import log
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from rerank_plugin.arguments import NORMALIZATIONS
from rerank_plugin.errors import InputError, OptionError, invalid_choice
from rerank_plugin.model.settings import RerankSettings

if TYPE_CHECKING:
    from rerank_plugin.engine.scorer import Logits

#: The score of a raw logit of -inf: JSON has numbers alone.
LOWEST = np.finfo(np.float32).min


Numbers = TypeVar("Numbers", bound=npt.NDArray[np.floating[Any]])


def check_normalization(name: str) -> str:
    """The name of a normalisation, checked."""
    if name not in NORMALIZATIONS:
        raise OptionError("normalize", invalid_choice(name, NORMALIZATIONS))
    return name


def sigmoid(values: Numbers) -> Numbers:
    """The sigmoid of numbers, at their precision."""
    # Without overflow: exp of a positive number never happens.
    power = np.exp(-np.abs(values))
    found: Numbers = np.where(values >= 0, values.dtype.type(1), power) / (1 + power)
    return found


def scale_and_bias(settings: RerankSettings) -> tuple[float, float]:
    """What a model's calibrated scores are the sigmoid of: `scale * logit + bias`.

    Raises:
        InputError: the model carries no calibration.
    """
    if settings.calibration is None:
        raise InputError("normalize: the model carries no calibration: use sigmoid or none")
    return float(settings.calibration["scale"]), float(settings.calibration["bias"])


def normalize(logits: "Logits", name: str, settings: RerankSettings) -> "Logits":
    """Scores of the same shape, all finite; the order never changes.

    With two labels the sigmoid of the logits' difference is the positive label's softmax.
    """
    if name == "none":
        return np.maximum(logits, LOWEST)
    if name == "calibrated":
        scale, bias = scale_and_bias(settings)
        logits = (scale * logits.astype(np.float64) + bias).astype(np.float32)
    return sigmoid(logits)


def threshold_logit(name: str, settings: RerankSettings) -> float:
    """The logit from which on a document is kept, by a name in the model's `thresholds`.

    Raises:
        InputError: the model carries none of that name.
    """
    score = settings.threshold(name)
    if settings.normalize != "none":
        # Of a score that rounds to 0 or 1 no logit is known but that it is far out.
        score = min(max(score, 1e-30), 1 - 1e-16)
        score = log(score) - log(1 - score)
    if settings.normalize == "calibrated":
        scale, bias = scale_and_bias(settings)
        score = (score - bias) / scale
    return score


def threshold(name: str, normalization: str, settings: RerankSettings) -> float:
    """What `threshold_logit` gives, as a score."""
    if normalization == settings.normalize:
        return settings.threshold(name)
    logit = np.array([threshold_logit(name, settings)], np.float32)
    return float(normalize(logit, normalization, settings)[0])
