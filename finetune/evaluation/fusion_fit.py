"""Fit how much a retriever counts beside a reranker, and measure it on other queries.

The weights of logits and of a retriever's scores or ranks are those of a conditional logit model
(McFadden 1974): the softmax of the fused scores of a query is the probability that a candidate is
the relevant one. One weight can be zero: then the reranker alone ranks, or the retriever alone. The
form is the one with the highest nDCG@10. All of this is done once with all queries, and for the
reported figures once for every fold of queries on the other folds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rerank_plugin.engine.scores import Logits
from rerank_plugin.fusion import Fusion, rank_features, ranks_of, scale, score_features
from rerank_plugin.model.settings import FUSION_FORMS, RerankSettings

from ..data.splits import Hashes, deal
from ..text.normalize import text_digest
from .calibration import FEWEST_QUERIES, Calibration, Floats, ScoredPairs
from .judged_query import GradedQuery
from .metrics import METRIC, METRICS, QueryValues, ScoredQuery, mean_metrics, query_metrics
from .significance import EQUAL, paired_difference

#: Folds of queries.
FOLDS = 5

#: A penalty of the squared weights, of inputs with a deviation of 1: of the size of one query.
RIDGE = 1.0

#: Iterations of Newton's method at most; a fit takes about eight.
STEPS = 50


@dataclass(frozen=True)
class RetrievedQuery:
    """The candidates of a query in the order of the retriever, `[candidates]`."""

    logits: Floats
    scores: Floats
    grades: list[int]
    missed: list[int]

    @classmethod
    def from_graded(cls, logits: Logits, query: GradedQuery) -> Self | None:
        """Return a query with its logits; None where the retriever's scores are not known."""
        if query.retrieval is None:
            return None
        scores, grades = np.asarray(query.retrieval, np.float64), np.asarray(query.labels)
        # The positives of a group are in front, which must not decide between equal scores.
        order = np.lexsort((grades, -scores))
        return cls(
            logits[order].astype(np.float64), scores[order], grades[order].tolist(), query.missed
        )

    def ranked_by(self, scores: Floats | Logits) -> ScoredQuery:
        """Return the query with other scores of its candidates, for metrics."""
        return ScoredQuery(scores.astype(np.float32), self.grades, self.missed)

    def features(self, form: str) -> Floats:
        """Return what the retriever counts in a form of fusion."""
        if form == "score":
            return score_features(self.scores)
        return rank_features(ranks_of(self.scores))


@dataclass(frozen=True)
class RetrievedQueries:
    """Queries whose candidates have logits and retrieval scores."""

    queries: list[RetrievedQuery]
    digests: Hashes
    #: Queries that were left out, as they have no retrieval scores.
    without: int = 0

    @classmethod
    def from_judged(cls, logits: Sequence[Logits], judged: Iterable[GradedQuery]) -> Self:
        """Return the queries that have retrieval scores, with the logits of their candidates."""
        queries, digests, without = [], [], 0
        for row, query in zip(logits, judged, strict=True):
            retrieved = RetrievedQuery.from_graded(row, query)
            if retrieved is None:
                without += 1
                continue
            queries.append(retrieved)
            digests.append(text_digest(query.query))
        return cls(queries, np.array(digests, np.uint64), without)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def are_enough(self) -> bool:
        """Return whether a fit can be expected to hold for other queries."""
        return len(np.unique(self.digests)) >= FEWEST_QUERIES

    def select(self, indices: npt.NDArray[np.int64]) -> "RetrievedQueries":
        """Return some of the queries."""
        return RetrievedQueries([self.queries[i] for i in indices], self.digests[indices])

    def metrics(
        self, scores: Iterable[Floats | Logits], names: Sequence[str] = METRICS
    ) -> dict[str, QueryValues]:
        """Return metrics of every query by scores of its candidates, each `[queries]`."""
        pairs = zip(self.queries, scores, strict=True)
        return query_metrics((query.ranked_by(row) for query, row in pairs), names)

    def ndcg(self, scores: Iterable[Floats | Logits]) -> float:
        """Return the mean of the metric that chooses the form."""
        return float(self.metrics(scores, [METRIC])[METRIC].mean())

    def scored_pairs(self, scores: Sequence[Floats | Logits]) -> ScoredPairs:
        """Return all candidates with some scores, for a calibration."""
        return ScoredPairs(
            np.concatenate(scores).astype(np.float64),
            np.concatenate([np.array(query.grades) > 0 for query in self.queries]),
            np.repeat(self.digests, [len(query.grades) for query in self.queries]),
        )


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
    """A fusion that was fitted on all queries, and its cross-fitted figures.

    Attributes:
        retriever: The mean metrics of the retriever alone, and the number of `queries`.
        reranker: Those of the reranker alone.
        fused: Those of the fusion, of every query by a fit on others.
        differences: The paired differences of the fusion to the `retriever` and to the `reranker`,
            with `interval_95`, `p_value` and the numbers of `better` and `worse` queries.
        record: The `fusion` of `rerank.json`; empty where the retriever adds nothing.
    """

    retriever: dict[str, float]
    reranker: dict[str, float]
    fused: dict[str, float]
    differences: dict[str, Any]
    record: dict[str, Any]

    @classmethod
    def fit(cls, queries: RetrievedQueries, settings: RerankSettings) -> Self:
        """Fit a fusion for a model, with a calibration and thresholds of the fused scores."""
        fitted = FittedFusion.fit(queries)
        retriever = queries.metrics(query.scores for query in queries.queries)
        reranker = queries.metrics(query.logits for query in queries.queries)
        fused = queries.metrics(cross_fitted(queries))
        means = {
            "retriever": mean_metrics(retriever),
            "reranker": mean_metrics(reranker),
            "fused": mean_metrics(fused),
        }
        differences = {
            "retriever": paired_difference(retriever, fused),
            "reranker": paired_difference(reranker, fused),
        }
        improves = means["fused"][METRIC] > means["reranker"][METRIC] + EQUAL
        record: dict[str, Any] = {}
        if fitted.uses_retriever and improves:
            record = fitted.to_dict() | {**means, "differences": differences}
            for form in FUSION_FORMS:
                record[form] |= calibrated(queries, fitted.fused(queries, form), settings)
        return cls(**means, differences=differences, record=record)


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
    """Describe a fusion in a sentence, from the `fusion` of `rerank.json`."""
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
