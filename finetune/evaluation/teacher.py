"""The comparison of a teacher with its student, query by query."""

import logging
from collections.abc import Iterable

import numpy as np

from ..data.groups import Group
from .metrics import METRIC, QueryValues, ScoredQuery, query_metrics
from .significance import bootstrap_interval

logger = logging.getLogger(__name__)


def teacher_values(groups: Iterable[Group]) -> QueryValues:
    """Return the nDCG@10 of the teacher on every query, `[queries]`."""
    return query_metrics([teacher_query(group) for group in groups], (METRIC,))[METRIC]


def teacher_query(group: Group) -> ScoredQuery:
    """Return the scores of the teacher for a query."""
    return ScoredQuery(np.array(group.teacher, np.float32), group.labels, group.missed)


def warn_of_teacher(teacher: QueryValues, student: QueryValues) -> None:
    """Log how the teacher compares with the student, by nDCG@10 of every query, `[queries]`."""
    means = float(teacher.mean()), float(student.mean())
    logger.info("nDCG@10 on the validation queries: teacher %.4f, student %.4f", *means)
    if (teacher == 1).all():
        logger.warning(
            "the teacher ranks all %d validation queries perfectly: if their labels are its own, "
            "as those of score --relabel, no model can be measured on them",
            len(teacher),
        )
        return
    low, high = bootstrap_interval((teacher - student)[None])[:, 0]
    if low <= 0:
        logger.warning(
            "the teacher is not better than the student before training: its nDCG@10 on the "
            "validation queries differs by %+.4f (%+.4f to %+.4f): labels may teach more than it",
            means[0] - means[1],
            low,
            high,
        )
