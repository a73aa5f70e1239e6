"""Calibration: logits to probabilities, and score thresholds that keep a precision or a recall.

Everything is fitted on queries that were not trained on, over all their candidates. The quality of
a fit is measured on other queries than it was fitted on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.scores import Logits, sigmoid, threshold
from rerank_plugin.model.settings import RerankSettings

from ..data.splits import Hashes, halves
from ..text.normalize import text_digest
from .judged_query import JudgedQuery

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

#: Fewer queries are not enough for a fit.
FEWEST_QUERIES = 20

#: Bins of equal width in which a calibration error is measured.
BINS = 15

#: A threshold keeps at least this many documents: the precision of fewer depends on chance.
FEWEST_KEPT = 50

PRECISIONS = (0.5, 0.8, 0.9, 0.95)
RECALLS = (0.9, 0.95)

#: Iterations of Newton's method at most; a fit takes about ten.
STEPS = 100


@dataclass(frozen=True)
class ScoredPairs:
    """Logits of all candidates of some queries, their relevance and their query, `[pairs]`.

    A query that is in several groups counts once.
    """

    logits: Floats
    relevant: Flags
    queries: Hashes

    @classmethod
    def from_queries(cls, logits: Sequence[Logits], judged: Iterable[JudgedQuery]) -> Self:
        """Join the logits of every query's candidates, which are in the order of its documents."""
        relevant, queries = [], []
        for query in judged:
            relevant.append(np.array(query.labels) > 0)
            queries.append(np.full(len(query.labels), text_digest(query.query), np.uint64))
        return cls(
            np.concatenate(logits).astype(np.float64),
            np.concatenate(relevant),
            np.concatenate(queries),
        )

    def select(self, indices: npt.NDArray[np.int64]) -> "ScoredPairs":
        """Return the pairs at some indices."""
        return ScoredPairs(self.logits[indices], self.relevant[indices], self.queries[indices])


@dataclass(frozen=True)
class PlattScaling:
    """A probability is the sigmoid of `scale * logit + bias`."""

    scale: float
    bias: float

    def probabilities(self, logits: Floats) -> Floats:
        """Return the probabilities that documents are relevant, `[pairs]`."""
        return sigmoid(self.scale * logits + self.bias)


def fit_scaling(scored: ScoredPairs) -> PlattScaling | None:
    """Fit scale and bias by logistic regression of relevance on the logit.

    Platt 1999, "Probabilistic Outputs for Support Vector Machines": targets are (n + 1) / (n + 2)
    for n positives and 1 / (m + 2) for m negatives, so that a model without an error is not taken
    for infallible. None where a higher logit does not mean that a document is more likely to be
    relevant: the order never changes.
    """
    positives = int(scored.relevant.sum())
    negatives = len(scored.relevant) - positives
    if not positives or not negatives:
        return None
    targets = np.where(scored.relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Logits with mean 0 and deviation 1 make Newton's method converge.
    middle, spread = float(scored.logits.mean()), float(scored.logits.std())
    if spread == 0:
        return None
    inputs = np.stack([(scored.logits - middle) / spread, np.ones(len(targets))])
    weights = np.array([0.0, np.log(positives / negatives)])
    for _ in range(STEPS):
        expected = sigmoid(weights @ inputs)
        gradient = inputs @ (expected - targets)
        curvature = (inputs * (expected * (1 - expected))) @ inputs.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # A longer step could end where the sigmoid is flat.
        weights -= step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    scale = float(weights[0]) / spread
    if scale <= 0:
        return None
    return PlattScaling(scale, float(weights[1]) - scale * middle)


def calibration_error(probabilities: Floats, relevant: Flags) -> float:
    """Return the expected calibration error over bins of equal width.

    sum over bins of (share of pairs) |mean probability - share of positives|; Naeini et al. 2015,
    "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (AAAI).
    """
    bins = reliability(probabilities, relevant)
    return sum(count * abs(mean - share) for mean, share, count in bins) / len(relevant)


def reliability(probabilities: Floats, relevant: Flags) -> list[tuple[float, float, int]]:
    """Return mean probability, share of positives and count of pairs of every non-empty bin."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    masks = [bins == number for number in range(BINS)]
    return [
        (float(probabilities[mask].mean()), float(relevant[mask].mean()), int(mask.sum()))
        for mask in masks
        if mask.any()
    ]


def cross_fitted(scored: ScoredPairs, seed: int = 0) -> Floats | None:
    """Return probabilities by two-fold cross-fitting; None where one half has no fit.

    One half of the queries is scored by the scaling that was fitted on the other half.
    """
    probabilities = np.zeros(len(scored.logits))
    sides = halves(scored.queries, seed=seed)
    for half, other in (sides, sides[::-1]):
        scaling = fit_scaling(scored.select(other))
        if scaling is None:
            return None
        probabilities[half] = scaling.probabilities(scored.logits[half])
    return probabilities


def thresholds(scored: ScoredPairs) -> dict[str, float]:
    """Return the lowest logits that keep a precision, and the highest that keep a recall.

    A name is `precision@0.9` or `recall@0.95`; one that no logit reaches, or only with too few
    documents, is left out. A threshold is in the middle between the last logit that it keeps and
    the first that it does not.
    """
    order = np.argsort(-scored.logits, kind="stable")
    logits, hits = scored.logits[order], scored.relevant[order].cumsum()
    kept = np.arange(1, len(logits) + 1)
    below = np.append(logits[1:], logits[-1] - 1)
    # Documents of one logit are kept together or not at all.
    ends = (below < logits) & (kept >= FEWEST_KEPT)
    indices = {
        f"precision@{share:g}": np.flatnonzero(ends & (hits >= share * kept))[-1:]
        for share in PRECISIONS
    }
    if hits[-1] >= FEWEST_KEPT:
        for share in RECALLS:
            indices[f"recall@{share:g}"] = np.flatnonzero(ends & (hits >= share * hits[-1]))[:1]
    return {
        name: float(logits[index[0]] + below[index[0]]) / 2
        for name, index in indices.items()
        if len(index)
    }


@dataclass(frozen=True)
class Calibration:
    """A scaling of logits to probabilities, its quality, and score thresholds."""

    scaling: PlattScaling
    #: The share of relevant documents among those that it was fitted on.
    prior: float
    queries: int
    pairs: int
    #: Calibration errors of the plain sigmoid, and of scalings fitted on other queries.
    error_before: float
    error_after: float
    #: Logits by name.
    thresholds: dict[str, float]

    @classmethod
    def fit(cls, scored: ScoredPairs) -> Self | None:
        """Fit a calibration; None where there are too few queries, or no fit keeps the order."""
        queries = len(np.unique(scored.queries))
        if queries < FEWEST_QUERIES:
            return None
        scaling, probabilities = fit_scaling(scored), cross_fitted(scored)
        if scaling is None or probabilities is None:
            return None
        return cls(
            scaling,
            float(scored.relevant.mean()),
            queries,
            len(scored.relevant),
            calibration_error(sigmoid(scored.logits), scored.relevant),
            calibration_error(probabilities, scored.relevant),
            thresholds(scored),
        )

    def to_dict(self, *, folded: bool = False) -> dict[str, float]:
        """Return the `calibration` of `rerank.json`; `folded` if it is part of the weights."""
        return {
            "scale": 1.0 if folded else self.scaling.scale,
            "bias": 0.0 if folded else self.scaling.bias,
            "prior": self.prior,
            "queries": self.queries,
            "pairs": self.pairs,
            "error_before": self.error_before,
            "error_after": self.error_after,
        }

    def settings(self, *, folded: bool) -> dict[str, Any]:
        """Return the entries of `rerank.json`; `folded` if the scaling is part of the weights."""
        scale, bias = (self.scaling.scale, self.scaling.bias) if folded else (1.0, 0.0)
        scores = {
            name: float(sigmoid(np.array(scale * logit + bias)))
            for name, logit in self.thresholds.items()
        }
        return {"calibration": self.to_dict(folded=folded), "thresholds": scores}

    def put_into(self, settings: RerankSettings) -> RerankSettings:
        """Return settings with this calibration and its thresholds, on the scale of a folder."""
        fitted = replace(settings, normalize="sigmoid", **self.settings(folded=False))
        return replace(
            fitted,
            normalize=settings.normalize,
            thresholds={
                name: threshold(name, settings.normalize, fitted) for name in fitted.thresholds
            },
        )


def describe_calibration(calibration: Mapping[str, float]) -> str:
    """Describe calibrated scores in a sentence, from the `calibration` of `rerank.json`."""
    text = (
        f"A calibrated score is the sigmoid of {calibration['scale']:.3g} · logit "
        f"{calibration['bias']:+.3g}"
    )
    if "prior" not in calibration:  # written by hand
        return f"{text}."
    return (
        f"{text}: the probability that a document is relevant where {calibration['prior']:.1%} of "
        "the candidates are. Expected calibration error on queries that were not fitted: "
        f"{calibration['error_after']:.4f}, and {calibration['error_before']:.4f} of the plain "
        "sigmoid."
    )
