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
    positives = [selection.positives for selection in selections]
    positive_scores = score_texts(selections, positives, scorer, progress)
    limits = [max(scores) - margin for scores in positive_scores]
    candidates = [iter(selection) for selection in selections]
    kept: list[list[tuple[str, float]]] = [[] for _ in selections]
    unfilled = list(range(len(selections)))
    while unfilled:
        tried = [list(islice(candidates[i], negatives - len(kept[i]))) for i in unfilled]
        scores = score_texts([selections[i] for i in unfilled], tried, scorer, progress)
        for i, texts, logits in zip(unfilled, tried, scores, strict=True):
            scored = zip(texts, logits, strict=True)
            below = [(text, score) for text, score in scored if score < limits[i]]
            left_out[AS_GOOD] += len(texts) - len(below)
            kept[i] += below
        unfilled = [
            i
            for i, texts in zip(unfilled, tried, strict=True)
            if texts and len(kept[i]) < negatives
        ]
    return list(map(scored_group, selections, positive_scores, kept))


def scored_group(
    selection: NegativeSelection, pos_scores: list[float], negatives: list[tuple[str, float]]
) -> Group:
    """Return a group with the teacher's scores."""
    texts, scores = [text for text, _ in negatives], [score for _, score in negatives]
    return selection.group(texts, pos_scores, scores)


def score_texts(
    selections: Sequence[NegativeSelection],
    texts: Sequence[list[str]],
    scorer: ScoresPairs,
    progress: Callable[[int], Any] | None,
) -> list[list[float]]:
    """Return the scores of texts for the query of each selection."""
    pairs = [
        selection.pair(text)
        for selection, group in zip(selections, texts, strict=True)
        for text in group
    ]
    return cut(rounded(scorer.logits(pairs, progress)), [len(group) for group in texts])


def rounded(logits: Logits) -> list[float]:
    """Return logits as they are compared and written."""
    return [round(score, DIGITS) for score in logits.tolist()]


def cut(values: list[float], sizes: Sequence[int]) -> list[list[float]]:
    """Return values in lists of the given sizes."""
    iterator = iter(values)
    return [list(islice(iterator, size)) for size in sizes]
