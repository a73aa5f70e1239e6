"""From raw logits to the scores that a user sees, in float32."""

import numpy as np

from rerank_plugin.errors import OptionError
from rerank_plugin.scoring import Logits

#: `sigmoid` gives 0 to 1, `none` the raw logits.
NORMALIZATIONS = ("sigmoid", "none")


def check_normalization(name: str) -> str:
    """The name of a normalisation, checked."""
    if name not in NORMALIZATIONS:
        raise OptionError("normalize", f"{name!r} is none of {', '.join(NORMALIZATIONS)}")
    return name


def normalize(logits: Logits, name: str) -> Logits:
    """Scores of the same shape; the order never changes.

    With two labels the sigmoid of the logits' difference is the positive label's softmax.
    """
    if name == "none":
        return logits
    # Without overflow: exp of a positive number never happens.
    power = np.exp(-np.abs(logits))
    scores: Logits = (np.where(logits >= 0, np.float32(1), power) / (1 + power)).astype(np.float32)
    return scores


def order(scores: Logits) -> list[int]:
    """Indices by falling score; ties keep their input order."""
    return [int(index) for index in np.argsort(-scores, kind="stable")]
