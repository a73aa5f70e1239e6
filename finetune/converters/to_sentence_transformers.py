"""Groups as sentence-transformers' training data, in the formats of its `mine_hard_negatives`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from rerank_plugin.errors import InputError

from ..data.groups import Group
from ..data.reason_counts import ReasonCounts

#: The formats, by the names that sentence-transformers gives them.
FORMATS = ("labeled-list", "labeled-pair", "triplet", "n-tuple", "pair")

#: Those with a column for teacher scores.
SCORED = ("triplet", "n-tuple")


def fitting(groups: Iterable[Group], output_format: str, counts: ReasonCounts) -> Iterator[Group]:
    """Yield groups as far as a format can hold them; what it has no column for is counted.

    Raises:
        InputError: n-tuples, which are columns, of groups with unequally many negatives; a
            column of scores that some groups have and others have not.
    """
    size, scored = None, None
    for group in groups:
        size = size or len(group.neg)
        scored = bool(group.teacher) if scored is None else scored
        if output_format == "n-tuple" and len(group.neg) != size:
            raise InputError(
                f"--output_format: an n-tuple has equally many negatives in every row: the "
                f"first group has {size}, {group.query!r} has {len(group.neg)}; labeled-list and "
                "triplet take any number"
            )
        if output_format not in SCORED:
            if group.pos_scores or group.neg_scores:
                counts[f"groups with teacher scores, for which {output_format} has no column"] += 1
        elif bool(group.teacher) != scored:
            one, other = ("all", "not all") if scored else ("not all", "all")
            raise InputError(
                f"--output_format: passages of the first group {one} have teacher scores, those of "
                f"{group.query!r} {other}: a {output_format} has a column of them or none; "
                "labeled-list has none"
            )
        elif not scored and (group.pos_scores or group.neg_scores):
            counts["groups of which some passages have no score: without scores"] += 1
        count_without_column(group, counts)
        if output_format != "labeled-list":
            graded = (
                f"groups with grades, for which {output_format} has no column: labeled-list has"
            )
            counts[graded] += group.pos_labels is not None
            group = replace(group, pos_labels=None)
        if output_format == "pair":
            counts["negatives, for which pair has no column"] += len(group.neg)
            group = replace(group, neg=[])
        yield group


def count_without_column(group: Group, counts: ReasonCounts) -> None:
    """Count what no format has a column for."""
    without = "of groups, for which the format has no column"
    counts[f"retrieval scores {without}"] += group.retrieval is not None
    counts[f"ids {without}"] += group.id is not None
    counts[f"instructions {without}"] += bool(group.instruction)


def rows(group: Group, output_format: str) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a group.

    `labeled-list` has one row (query, docs, labels), `labeled-pair` one for every passage,
    `triplet` one for every positive and negative, `n-tuple` and `pair` one for every positive.
    Grades are the labels of lists; those of pairs are 1 and 0, as binary cross-entropy needs them.
    Teacher scores go with triplets and n-tuples, where sentence-transformers looks for them.
    """
    if output_format == "labeled-list":
        yield {"query": group.query, "docs": group.documents, "labels": group.labels}
    elif output_format == "labeled-pair":
        for text, label in zip(group.documents, group.labels, strict=True):
            yield {"query": group.query, "passage": text, "label": label}
    elif output_format == "pair":
        yield from ({"query": group.query, "positive": text} for text in group.pos)
    else:
        yield from tuples(group, output_format)


def tuples(group: Group, output_format: str) -> Iterator[Mapping[str, object]]:
    """Yield the triplets or n-tuples of a group."""
    for index, positive in enumerate(group.pos):
        first: dict[str, object] = {"query": group.query, "positive": positive}
        scores = []
        if group.pos_scores and group.neg_scores:
            scores = [group.pos_scores[index], *group.neg_scores]
        if output_format == "n-tuple":
            negatives = {f"negative_{number}": text for number, text in enumerate(group.neg, 1)}
            yield {**first, **negatives, **({"scores": scores} if scores else {})}
            continue
        for number, text in enumerate(group.neg, 1):
            pair_scores = {"scores": [scores[0], scores[number]]} if scores else {}
            yield {**first, "negative": text, **pair_scores}
