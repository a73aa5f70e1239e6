"""Labels and candidates of groups, chosen by the scores of a teacher."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data.groups import Group


def with_scores(group: Group, scores: Sequence[float]) -> Group:
    """Return a group with the teacher's scores of its documents."""
    count = len(group.pos)
    return replace(group, pos_scores=list(scores[:count]), neg_scores=list(scores[count:]))


def relabelled(group: Group) -> Group:
    """Return a scored group whose only positive is the document that the teacher scores best."""
    assert group.teacher is not None
    order = np.argsort(-np.array(group.teacher), kind="stable").tolist()
    documents, retrieval = group.documents, group.retrieval
    best, others = order[:1], order[1:]
    return replace(
        group,
        pos=[documents[index] for index in best],
        neg=[documents[index] for index in others],
        pos_scores=[group.teacher[index] for index in best],
        neg_scores=[group.teacher[index] for index in others],
        pos_retrieval_scores=retrieval and [retrieval[index] for index in best],
        neg_retrieval_scores=retrieval and [retrieval[index] for index in others],
        pos_labels=None,
    )


def thinned(group: Group, candidates: int) -> Group:
    """Return a scored group with its positives and some negatives, at most `candidates` in all.

    At least one negative is kept.
    """
    assert group.neg_scores is not None
    count = max(1, candidates - len(group.pos))
    chosen = set(stratified(group.neg_scores, count))
    return group.keep("neg", [index in chosen for index in range(len(group.neg))])


def stratified(scores: Sequence[float], count: int) -> list[int]:
    """Return the indices of scores that are spread evenly over their range.

    For each of `count` points from the highest to the lowest score, equally far apart, the nearest
    score that is left is taken. The best alone would be near each other and teach little about the
    scale; random ones would nearly all be low.
    """
    left = np.array(scores, np.float64)
    if count >= len(left):
        return list(range(len(left)))
    chosen = []
    for point in np.linspace(left.max(), left.min(), count):
        nearest = int(np.nanargmin(np.abs(left - point)))
        chosen.append(nearest)
        left[nearest] = np.nan
    return chosen
