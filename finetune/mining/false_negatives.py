"""A reranker that looks at negatives: what it finds as good as the positives is dropped."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from rerank_plugin.engine.encoder import Pair
from rerank_plugin.engine.scorer import Logits, ScoresPairs

from ..data.groups import Group
from .negatives import Selection

#: Logits are written down so: more digits are noise of the model's precision.
DIGITS = 4

#: Why passages are left_out, in the summary.
AS_GOOD = "passages that the reranker finds as good as a positive"


def take_scored(
    selections: Sequence[Selection],
    negatives: int,
    scorer: ScoresPairs,
    *,
    margin: float,
    left_out: "Counter[str]",
    progress: Callable[[int], Any] | None = None,
) -> list[Group]:
    """Groups of passages that score below the best positive by more than a margin, with scores.

    What a round of scoring drops is replaced by the next candidates in the next round, so no more
    is scored than is needed.

    Args:
        selections: Where the negatives come from.
        negatives: How many a group gets at most.
        scorer: The teacher; its logits become `pos_scores` and `neg_scores`.
        margin: By more than this a negative must score below the best positive, in logits.
        left_out: Counts what was left_out, by reason.
        progress: Called with a number of pairs whenever so many more are scored.
    """
    pairs = [(of.target.query, text) for of in selections for text in of.positives]
    right = cut(rounded(scorer.logits(pairs, progress)), [len(of.positives) for of in selections])
    coming = [iter(selection) for selection in selections]
    kept: list[list[tuple[str, float]]] = [[] for _ in selections]
    unfilled = list(range(len(selections)))
    while unfilled:
        tried = [list(islice(coming[i], negatives - len(kept[i]))) for i in unfilled]
        asked: list[Pair] = [
            (selections[i].target.query, text)
            for i, texts in zip(unfilled, tried, strict=True)
            for text in texts
        ]
        scores = cut(rounded(scorer.logits(asked, progress)), [len(texts) for texts in tried])
        for i, texts, own in zip(unfilled, tried, scores, strict=True):
            limit = max(right[i]) - margin
            good = [(text, score) for text, score in zip(texts, own, strict=True) if score < limit]
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
            neg=[text for text, _ in own],
            pos_scores=scores,
            neg_scores=[score for _, score in own],
            id=selection.target.id,
        )
        for selection, scores, own in zip(selections, right, kept, strict=True)
    ]


def rounded(logits: Logits) -> list[float]:
    """Logits as they are written down and compared."""
    return [round(score, DIGITS) for score in logits.tolist()]


def cut(values: list[float], sizes: Sequence[int]) -> list[list[float]]:
    """Values in lists of the given sizes."""
    iterator = iter(values)
    return [list(islice(iterator, size)) for size in sizes]
