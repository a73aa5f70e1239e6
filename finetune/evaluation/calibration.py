"""Scores that mean something: logits to probabilities, and scores that promise a precision.

Everything is fitted on queries that were not trained on, over all their candidates. How good the
fit is, is measured on other ones of these queries than it was fitted on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.scorer import Logits
from rerank_plugin.engine.scores import sigmoid

from ..data.splits import Hashes, halves
from ..text.normalize import text_digest
from .judged import Judged

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

#: Fewer queries say too little.
FEWEST_QUERIES = 20

#: Bins of equal width in which a calibration error is measured.
BINS = 15

#: A threshold rests on so many documents at least: of fewer, those that chance put on top promise
#: more than others will hold.
FEWEST_KEPT = 50

PRECISIONS = (0.5, 0.8, 0.9, 0.95)
RECALLS = (0.9, 0.95)

#: Newton's steps of the fit; it takes about ten.
STEPS = 100


@dataclass(frozen=True)
class Scored:
    """Logits of all candidates of some queries, their relevance and their query, `[pairs]`.

    Every query counts as one, whatever groups it stands in.
    """

    logits: Numbers
    relevant: Flags
    queries: Hashes

    @classmethod
    def of_queries(cls, logits: Sequence[Logits], judged: Iterable[Judged]) -> Self:
        """The logits of every query's candidates, in their order."""
        relevant, queries = [], []
        for own in judged:
            relevant.append(np.array(own.labels) > 0)
            queries.append(np.full(len(own.labels), text_digest(own.query), np.uint64))
        return cls(
            np.concatenate(logits).astype(np.float64),
            np.concatenate(relevant),
            np.concatenate(queries),
        )

    def of(self, chosen: npt.NDArray[np.int64]) -> "Scored":
        """Some of the pairs."""
        return Scored(self.logits[chosen], self.relevant[chosen], self.queries[chosen])


@dataclass(frozen=True)
class Fit:
    """A probability is the sigmoid of `scale * logit + bias`."""

    scale: float
    bias: float

    def probabilities(self, logits: Numbers) -> Numbers:
        """Probabilities that documents are relevant, `[pairs]`."""
        return sigmoid(self.scale * logits + self.bias)


def fit(scored: Scored) -> Fit | None:
    """Scale and bias by logistic regression of right on logit.

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
    # Of logits with mean 0 and spread 1, so that Newton's steps are well behaved.
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
        # Never so far that it comes out on the flat side of the sigmoid.
        weights -= step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    scale = float(weights[0]) / spread
    if scale <= 0:
        return None
    return Fit(scale, float(weights[1]) - scale * middle)


def calibration_error(probabilities: Numbers, relevant: Flags) -> float:
    """The expected calibration error over bins of equal width.

    sum over bins of (share of pairs) |mean probability - share of positives|; Naeini et al. 2015,
    "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (AAAI).
    """
    bins = reliability(probabilities, relevant)
    return sum(count * abs(mean - share) for mean, share, count in bins) / len(relevant)


def reliability(probabilities: Numbers, relevant: Flags) -> list[tuple[float, float, int]]:
    """For every bin that is not empty: mean probability, share of positives, pairs."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    masks = [bins == number for number in range(BINS)]
    return [
        (float(probabilities[own].mean()), float(relevant[own].mean()), int(own.sum()))
        for own in masks
        if own.any()
    ]


def crossed(scored: Scored, seed: int = 0) -> Numbers | None:
    """Probabilities by fits on other queries than each pair's own; None where one half has no fit.

    One half of the queries is scored by what was fitted on the other.
    """
    probabilities = np.zeros(len(scored.logits))
    sides = halves(scored.queries, seed=seed)
    for own, other in (sides, sides[::-1]):
        found = fit(scored.of(other))
        if found is None:
            return None
        probabilities[own] = found.probabilities(scored.logits[own])
    return probabilities


def thresholds(scored: Scored) -> dict[str, float]:
    """The lowest logits from which on documents have a precision, the highest that keep a recall.

    A name is `precision@0.9` or `recall@0.95`; one that no logit gives, or that too few documents
    speak for, is left out. A threshold lies in the middle between what it keeps and what not.
    """
    order = np.argsort(-scored.logits, kind="stable")
    logits, hits = scored.logits[order], scored.relevant[order].cumsum()
    kept = np.arange(1, len(logits) + 1)
    below = np.append(logits[1:], logits[-1] - 1)
    # Documents of one logit are kept together or not at all.
    ends = (below < logits) & (kept >= FEWEST_KEPT)
    wanted = {f"precision@{share:g}": ends & (hits >= share * kept) for share in PRECISIONS}
    found = {name: np.flatnonzero(good)[-1:] for name, good in wanted.items()}
    if hits[-1] >= FEWEST_KEPT:
        for share in RECALLS:
            found[f"recall@{share:g}"] = np.flatnonzero(ends & (hits >= share * hits[-1]))[:1]
    return {
        name: float(logits[place[0]] + below[place[0]]) / 2
        for name, place in found.items()
        if len(place)
    }


@dataclass(frozen=True)
class Calibration:
    """What the scores of a model mean."""

    fit: Fit
    #: The share of relevant documents that it assumes.
    prior: float
    queries: int
    pairs: int
    #: Calibration errors of the plain sigmoid, and of fits on other queries than they are measured
    #: on.
    error_before: float
    error_after: float
    #: Logits by name.
    thresholds: dict[str, float]

    @classmethod
    def of(cls, scored: Scored) -> Self | None:
        """What some queries say of a model; None where they say too little."""
        queries = len(np.unique(scored.queries))
        if queries < FEWEST_QUERIES:
            return None
        found, probabilities = fit(scored), crossed(scored)
        if found is None or probabilities is None:
            return None
        return cls(
            found,
            float(scored.relevant.mean()),
            queries,
            len(scored.relevant),
            calibration_error(sigmoid(scored.logits), scored.relevant),
            calibration_error(probabilities, scored.relevant),
            thresholds(scored),
        )

    def record(self, *, folded: bool = False) -> dict[str, float]:
        """What `rerank.json` says of it; `folded` if the fit is part of the weights."""
        return {
            "scale": 1.0 if folded else self.fit.scale,
            "bias": 0.0 if folded else self.fit.bias,
            "prior": self.prior,
            "queries": self.queries,
            "pairs": self.pairs,
            "error_before": self.error_before,
            "error_after": self.error_after,
        }

    def settings(self, *, folded: bool) -> dict[str, Any]:
        """The entries of `rerank.json`; `folded` if the fit is part of the weights."""
        scale, bias = (self.fit.scale, self.fit.bias) if folded else (1.0, 0.0)
        scores = {
            name: float(sigmoid(np.array(scale * logit + bias)))
            for name, logit in self.thresholds.items()
        }
        return {"calibration": self.record(folded=folded), "thresholds": scores}


def meaning(calibration: Mapping[str, float]) -> str:
    """What a calibrated score is, in words, by what `rerank.json` says of it."""
    text = (
        f"A calibrated score is the sigmoid of {calibration['scale']:.3g} · logit "
        f"{calibration['bias']:+.3g}"
    )
    if "prior" not in calibration:  # written by hand
        return f"{text}."
    return (
        f"{text}: the probability that a document is relevant where {calibration['prior']:.1%} of "
        "the candidates are. Expected calibration error, on other queries than were fitted: "
        f"{calibration['error_after']:.4f}; of the plain sigmoid {calibration['error_before']:.4f}."
    )
