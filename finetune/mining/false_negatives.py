"""Filter false negatives: candidates that a reranker scores as high as the positives."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from rerank_plugin.engine.scorer import ScoresPairs
from rerank_plugin.engine.scores import Logits

from ..data.groups import Group
from .negatives import NegativeSelection

#: Decimals of logits in groups: more of them are noise of the model's precision.
DIGITS = 4

#: The reason in the summary.
AS_GOOD = "passages that the reranker scores as high as a positive"


def take_scored(
    selections: Sequence[NegativeSelection],
    negatives: int,
    scorer: ScoresPairs,
    *,
    margin: float,
    left_out: "Counter[str]",
    progress: Callable[[int], Any] | None = None,
) -> list[Group]:
    """Return groups with scores, whose negatives score below the best positive by a margin.

    Candidates that are dropped in a round of scoring are replaced by the next ones in the next
    round, so that no more is scored than needed.

    Args:
        selections: The candidates of each group.
        negatives: How many negatives a group has at most.
        scorer: The teacher; its logits become `pos_scores` and `neg_scores`.
        margin: A negative must score below the best positive by more than this, in logits.
        left_out: Counts the candidates that are dropped.
        progress: Called with the number of pairs scored since the last call.
    """
    pairs = [
        (selection.target.query, text) for selection in selections for text in selection.positives
    ]
    sizes = [len(selection.positives) for selection in selections]
    positive_scores = cut(rounded(scorer.logits(pairs, progress)), sizes)
    candidates = [iter(selection) for selection in selections]
    kept: list[list[tuple[str, float]]] = [[] for _ in selections]
    unfilled = list(range(len(selections)))
    while unfilled:
        tried = [list(islice(candidates[i], negatives - len(kept[i]))) for i in unfilled]
        pairs = [
            (selections[i].target.query, text)
            for i, texts in zip(unfilled, tried, strict=True)
            for text in texts
        ]
        scores = cut(rounded(scorer.logits(pairs, progress)), [len(texts) for texts in tried])
        for i, texts, logits in zip(unfilled, tried, scores, strict=True):
            limit = max(positive_scores[i]) - margin
            scored = zip(texts, logits, strict=True)
            good = [(text, score) for text, score in scored if score < limit]
            left_out[AS_GOOD] += len(texts) - len(good)
            kept[i] += good
        unfilled = [
            i
            for i, texts in zip(unfilled, tried, strict=True)
            if texts and len(kept[i]) < negatives
        ]
    return [
        Group(
            query=selection.target.query,
            pos=selection.positives,
            neg=[text for text, _ in scored_negatives],
            pos_scores=scores,
            neg_scores=[score for _, score in scored_negatives],
            id=selection.target.id,
        )
        for selection, scores, scored_negatives in zip(
            selections, positive_scores, kept, strict=True
        )
    ]


def rounded(logits: Logits) -> list[float]:
    """Return logits as they are compared and written."""
    return [round(score, DIGITS) for score in logits.tolist()]


def cut(values: list[float], sizes: Sequence[int]) -> list[list[float]]:
    """Return values in lists of the given sizes."""
    iterator = iter(values)
    return [list(islice(iterator, size)) for size in sizes]
