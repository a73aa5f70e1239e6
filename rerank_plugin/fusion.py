"""Fusion: how much a retriever's scores or ranks count beside the logits of a reranker.

The fused score of a document is `logit_weight * logit + weight * feature`. The feature is

- of the form `score`, the retriever's score less the mean of the query's best `HEAD` scores, in
  units of their standard deviation: the same on any scale of scores, and for any number of
  documents from `HEAD` on, so that a longer list does not change the order of its first ones;
- of the form `rank`, `1 / (RANK_CONSTANT + rank)` with ranks from 1 (Cormack, Clarke and Büttcher
  2009, "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods").

A list in which a score is missing or not a finite number is counted by rank, in its own order. So
is one whose scores rise from its first document to its last, as distances do.
"""

import logging
from dataclasses import replace
from math import inf
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.scores import Logits
from rerank_plugin.inputs import RetrievalScores
from rerank_plugin.model.settings import FUSION_FORMS, RerankSettings

logger = logging.getLogger(__name__)

Features = npt.NDArray[np.float64]

#: The best scores of a query, whose mean and standard deviation are the scale of all its scores.
HEAD = 20

#: Documents at the top count more than with the 60 of retrieval: of the first 20 hits, the last one
#: then counts about a third of the first one.
RANK_CONSTANT = 10

#: The largest feature, which far outlying scores get.
FARTHEST = 1e6

TINY = float(np.finfo(np.float64).tiny)

#: Scores are on another scale if they spread this many times as much as those of the fit, or less
#: by it, or if their mean is this many of its standard deviations away.
OTHER_SCALE = 20.0


def score_features(scores: Features) -> Features:
    """Return scores on a scale of their own: less the mean of the best ones, over their spread."""
    mean, spread = scale(scores)
    # A spread of rounding errors is none.
    if spread <= 1e-9 * max(float(np.abs(scores).max()), TINY):
        return np.zeros(len(scores))
    # Not of the difference, which can be too large for a float.
    return np.clip(scores / spread - mean / spread, -FARTHEST, FARTHEST)


def scale(scores: Features) -> tuple[float, float]:
    """Return the mean and the standard deviation of the best scores of a query."""
    best = np.sort(scores)[::-1][:HEAD]
    # Squares of very large scores are no floats.
    unit = max(float(np.abs(best).max()), TINY)
    return float((best / unit).mean()) * unit, float((best / unit).std()) * unit


def rank_features(ranks: Features) -> Features:
    """Return what ranks count, which are from 1."""
    return 1 / (RANK_CONSTANT + ranks)


def ranks_of(scores: Features) -> Features:
    """Return ranks from 1, by falling score; equal scores have the mean of their ranks."""
    _, inverse, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Features = (last - (counts - 1) / 2)[inverse]
    return ranks


class Fusion:
    """The fusion that was fitted for a model.

    Args:
        settings: The settings of the model, with their `fusion`.
    """

    def __init__(self, settings: RerankSettings) -> None:
        self._record = settings.fusion
        #: The settings by the form of a fusion, with its own calibration and thresholds.
        self.settings = {
            form: with_calibration(settings, self._record[form])
            for form in FUSION_FORMS
            if form in self._record
        }
        self._warned: set[str] = set()

    @classmethod
    def from_settings(cls, settings: RerankSettings) -> Self | None:
        """Return the fusion of a model; None if it has none."""
        return cls(settings) if settings.fusion else None

    def fuse(self, logits: Logits, scores: RetrievalScores) -> tuple[Logits, RerankSettings]:
        """Return fused scores in place of logits, and the settings that turn them into scores.

        A logit of -inf, that of a blank document, remains.

        Args:
            logits: The logits of a query's documents, `[documents]`.
            scores: The retriever's scores of the same documents.
        """
        form, features = self._features(scores)
        term = self._record[form]
        fused = term["weight"] * features
        if term["logit_weight"]:
            fused = fused + term["logit_weight"] * logits.astype(np.float64)
        fused = np.where(np.isneginf(logits), -inf, fused)
        return fused.astype(np.float32), self.settings[form]

    def _features(self, scores: RetrievalScores) -> tuple[str, Features]:
        """Return the form by which scores count, and their features."""
        known = np.array([np.nan if score is None else score for score in scores], np.float64)
        in_order = np.arange(1.0, len(known) + 1)
        if not len(known) or np.isnan(known).any() or self._are_distances(known):
            return "rank", rank_features(in_order)
        if self._record["form"] == "rank":
            return "rank", rank_features(ranks_of(known))
        self._check_scale(known)
        return "score", score_features(known)

    def _are_distances(self, scores: Features) -> bool:
        """Return whether scores rise all the way down the list, and warn once if they do."""
        if len(scores) < 3 or not (np.diff(scores) > 0).all():
            return False
        self.warn(
            "retrieval scores rise from the first document to the last, as distances do: the order "
            "of the documents counts in their place"
        )
        return True

    def _check_scale(self, scores: Features) -> None:
        """Warn once of scores whose scale is clearly not that of the fit."""
        if len(scores) < 3:
            return
        fitted_mean, fitted_spread = self._record["scale"]["mean"], self._record["scale"]["spread"]
        mean, spread = scale(scores)
        ratio = spread / fitted_spread if fitted_spread else 1.0
        is_far = abs(mean - fitted_mean) > OTHER_SCALE * max(fitted_spread, spread)
        if is_far or ratio > OTHER_SCALE or 0 < ratio < 1 / OTHER_SCALE:
            self.warn(
                f"retrieval scores are on another scale (mean {mean:.3g}, deviation {spread:.3g}) "
                f"than those that their weight was fitted on ({fitted_mean:.3g}, "
                f"{fitted_spread:.3g}): with another retriever, run rerank-plugin fuse again"
            )

    def warn_of_no_scores(self) -> None:
        """Warn once that a ranking was asked for without the scores of the retriever."""
        self.warn(
            "the model was fused with a retriever, but no retrieval_scores are given: the model "
            "alone ranks"
        )

    def warn(self, message: str) -> None:
        """Log a warning once."""
        if message[:30] not in self._warned:
            self._warned.add(message[:30])
            logger.warning("%s", message)


def with_calibration(settings: RerankSettings, term: dict[str, Any]) -> RerankSettings:
    """Return settings with the calibration and the thresholds of a form of fusion, if it has them.

    Where the fit found none, those of the logits are the nearest there is.
    """
    if not term.get("calibration"):
        return settings
    return replace(
        settings, calibration=term["calibration"], thresholds=term.get("thresholds") or {}
    )
