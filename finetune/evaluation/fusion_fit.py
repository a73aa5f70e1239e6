"""Fit how much a retriever counts beside a reranker, and measure it on other queries.

The weights of logits and of a retriever's scores or ranks are those of a conditional logit model
(McFadden 1974): the softmax of the fused scores of a query is the probability that a candidate is
the relevant one. One weight can be zero: then the reranker alone ranks, or the retriever alone. The
form is the one with the highest nDCG@10. All of this is done once with all queries, and for the
reported figures once for every fold of queries on the other folds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.scores import Logits
from rerank_plugin.fusion import Fusion, scale
from rerank_plugin.model.settings import FUSION_FORMS, RerankSettings

from ..data.splits import deal
from .calibration import Calibration, Floats
from .fusion_figures import FusionFigures, RetrievedQueries
from .metrics import METRIC
from .significance import EQUAL

#: The description of no fusion.
NOTHING_ADDED = (
    "The retriever adds nothing to the reranker on these queries: its weight is 0, and rankings "
    "are those of the reranker alone."
)

#: Folds of queries.
FOLDS = 5

#: A penalty of the squared weights, of inputs with a deviation of 1: of the size of one query.
RIDGE = 1.0

#: Iterations of Newton's method at most; a fit takes about eight.
STEPS = 50


@dataclass(frozen=True)
class Weights:
    """The weights of a logit and of what the retriever counts; one of them may be 0."""

    logit_weight: float
    weight: float


def fit_weights(queries: RetrievedQueries, form: str) -> Weights:
    """Fit the weights of a form of fusion by maximum likelihood.

    The likelihood of a query is the mean over its relevant candidates of the logarithm of their
    probability. Queries without a relevant candidate, or with nothing else, say nothing.
    """
    told = [q for q in queries.queries if 0 < sum(g > 0 for g in q.grades) < len(q.grades)]
    if not told:
        return Weights(1.0, 0.0)
    columns = [np.stack([query.logits, query.features(form)]) for query in told]
    deviations = np.sqrt(np.mean([column.var(axis=1) for column in columns], axis=0))
    deviations = np.where(deviations > 0, deviations, 1.0)
    inputs = np.concatenate(columns, axis=1) / deviations[:, None]
    relevant = [np.array(query.grades) > 0 for query in told]
    targets = np.concatenate([mask / mask.sum() for mask in relevant])
    sizes = np.array([len(mask) for mask in relevant])
    logit, retrieval = (maximum_likelihood(inputs, targets, sizes) / deviations).tolist()
    if retrieval <= 0:
        return Weights(1.0, 0.0)
    return Weights(1.0, retrieval / logit) if logit > 0 else Weights(0.0, retrieval)


def maximum_likelihood(inputs: Floats, targets: Floats, sizes: npt.NDArray[np.int64]) -> Floats:
    """Return the weights of inputs, `[inputs, pairs]`, by Newton's method.

    Args:
        inputs: The inputs of all pairs.
        targets: The probability of each pair, 1 in sum over the pairs of a query.
        sizes: The number of pairs of each query.
    """
    starts = np.cumsum(sizes) - sizes
    weights = np.zeros(len(inputs))
    for _ in range(STEPS):
        fused = weights @ inputs
        powers = np.exp(fused - np.repeat(np.maximum.reduceat(fused, starts), sizes))
        expected = powers / np.repeat(np.add.reduceat(powers, starts), sizes)
        means = np.add.reduceat(inputs * expected, starts, axis=1)
        gradient = inputs @ (expected - targets) + RIDGE * weights
        curvature = (inputs * expected) @ inputs.T - means @ means.T + RIDGE * np.eye(len(inputs))
        step = np.linalg.solve(curvature, gradient)
        weights -= step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return weights


@dataclass(frozen=True)
class FittedFusion:
    """The form and the weights that were chosen on some queries."""

    form: str
    #: The weights by form: those of `rank` are there for lists without scores, too.
    weights: dict[str, Weights]
    #: The mean over queries of the mean and of the deviation of their best scores.
    scale: dict[str, float]

    @classmethod
    def fit(cls, queries: RetrievedQueries) -> Self:
        """Fit weights for both forms, and choose the one with the highest nDCG@10.

        Where neither is better than the reranker alone, the weight of the retriever is 0.
        """
        weights = {form: fit_weights(queries, form) for form in FUSION_FORMS}
        scales = np.array([scale(query.scores) for query in queries.queries]).mean(axis=0)
        alone = dict.fromkeys(FUSION_FORMS, Weights(1.0, 0.0))
        retriever = {form: Weights(0.0, weights[form].weight or 1.0) for form in FUSION_FORMS}
        choices = [("rank", alone), ("score", weights), ("rank", weights), ("score", retriever)]
        scale_record = {"mean": float(scales[0]), "spread": float(scales[1])}
        fitted = [cls(form, chosen, scale_record) for form, chosen in choices]
        values = [queries.ndcg(choice.fused(queries)) for choice in fitted]
        # The first one that no other beats: the reranker alone where nothing is better.
        best = next(i for i, value in enumerate(values) if value >= max(values) - EQUAL)
        return fitted[best]

    @property
    def uses_retriever(self) -> bool:
        """Return whether the retriever counts at all."""
        return self.weights[self.form].weight > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of `fusion` in `rerank.json`, without figures."""
        terms = {form: asdict(weights) for form, weights in self.weights.items()}
        return {"form": self.form, **terms, "scale": self.scale}

    def fused(self, queries: RetrievedQueries, form: str | None = None) -> list[Logits]:
        """Return the fused scores of every query's candidates, as a ranking has them."""
        fusion = Fusion(RerankSettings(fusion=self.to_dict() | {"form": form or self.form}))
        return [
            fusion.fuse(q.logits.astype(np.float32), q.scores.tolist())[0] for q in queries.queries
        ]


def cross_fitted(queries: RetrievedQueries) -> list[Logits]:
    """Return fused scores of every query, by the fusion that the other folds chose."""
    dealt = deal(queries.digests, 0)
    fused: list[Logits] = [np.empty(0, np.float32)] * len(queries)
    for fold in range(FOLDS):
        held_out = np.isin(queries.digests, dealt[fold::FOLDS], kind="sort")
        rest = queries.select(np.flatnonzero(~held_out))
        indices = np.flatnonzero(held_out)
        rows = FittedFusion.fit(rest).fused(queries.select(indices))
        for index, row in zip(indices.tolist(), rows, strict=True):
            fused[index] = row
    return fused


@dataclass(frozen=True)
class FusionFit:
    """A fusion that was fitted on all queries, and its cross-fitted figures."""

    #: Those of every query by a fit on others.
    figures: FusionFigures
    #: The `fusion` of `rerank.json`; empty where the retriever adds nothing.
    record: dict[str, Any]

    @classmethod
    def fit(cls, queries: RetrievedQueries, settings: RerankSettings) -> Self:
        """Fit a fusion for a model, with a calibration and thresholds of the fused scores."""
        fitted = FittedFusion.fit(queries)
        figures = FusionFigures.measure(queries, cross_fitted(queries))
        improves = figures.fused[METRIC] > figures.reranker[METRIC] + EQUAL
        if not (fitted.uses_retriever and improves):
            return cls(figures, {})
        record = fitted.to_dict() | asdict(figures)
        for form in FUSION_FORMS:
            record[form] |= calibrated(queries, fitted.fused(queries, form), settings)
        return cls(figures, record)


def calibrated(
    queries: RetrievedQueries, fused: Sequence[Logits], settings: RerankSettings
) -> dict[str, Any]:
    """Return the calibration and the thresholds of fused scores, on the scale of a folder."""
    calibration = Calibration.fit(queries.scored_pairs(fused))
    if calibration is None:
        return {}
    fitted = calibration.put_into(settings)
    return {"calibration": fitted.calibration, "thresholds": fitted.thresholds}


def describe_fusion(record: dict[str, Any]) -> str:
    """Describe a fusion in plain words, from the `fusion` of `rerank.json`."""
    if not record:
        return NOTHING_ADDED
    counted = "scores" if record["form"] == "score" else "ranks"
    term = record[record["form"]]
    how = f"{term['weight']:.3g} times the retriever's {counted}"
    how = f"the logit and {how}" if term["logit_weight"] else f"{how} alone"
    text = f"Where the retriever's {counted} are given, {how} rank together."
    if "fused" not in record:  # written by hand
        return text
    low, high = record["differences"]["reranker"]["interval_95"][METRIC]
    return (
        f"{text} On {record['fused']['queries']} queries that were not fitted, {METRIC} is "
        f"{record['fused'][METRIC]:.3f} with the fusion, {record['reranker'][METRIC]:.3f} by the "
        f"reranker alone (95% interval of the difference: {low:+.3f} to {high:+.3f}) and "
        f"{record['retriever'][METRIC]:.3f} by the retriever alone."
    )
