"""FlagEmbedding's training data: `query`, `pos`, `neg`, perhaps `pos_scores` and `neg_scores`.

The retriever's scores and the grades of our own groups are read, too, and a list of `labels` for
all passages, those of `pos` first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches

from rerank_plugin.io.jsonl import DataPath

from ..data.groups import SCORE_FIELDS, SCORES
from ..data.other_formats import other_format
from ..data.reason_counts import ReasonCounts
from .labelled_query import LabelledQuery, Passage, id_text
from .rows import Row, read_rows

#: The fields that are read.
FLAGEMBEDDING_FIELDS = ("query", "pos", "neg", *SCORE_FIELDS, "pos_labels")

#: Other known fields, which are not misspelt; those for embedding models are left out.
KNOWN = ("id", "idx", "instruction", "labels", "prompt", "type")


def read_flagembedding(data_path: DataPath, counts: ReasonCounts) -> Iterator[LabelledQuery]:
    """Yield one record a line; `neg` may be missing or empty. Other fields are counted."""
    for row in read_rows(data_path):
        for name in row.values:
            check_name(row, name)
        pos, neg = scored_passages(row, "pos"), scored_passages(row, "neg")
        fields, labels = FLAGEMBEDDING_FIELDS, row.values.get("labels")
        if isinstance(labels, list) and len(labels) == len(pos) + len(neg):
            pos, neg = relabelled(row, [*pos, *neg])
            fields = (*fields, "labels")
        row.count_others((*fields, "id"), counts)
        id = id_text(row.values.get("id"))
        yield LabelledQuery(row.text("query"), pos, neg, id, row.where, row.instruction)


def relabelled(row: Row, passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """Return the positives, with their labels, and the negatives by a list of labels for all."""
    labelled = list(zip(passages, row.numbers("labels"), strict=True))
    return (
        [replace(passage, label=label) for passage, label in labelled if label > 0],
        [passage for passage, label in labelled if label <= 0],
    )


def check_name(row: Row, name: str) -> None:
    """Check that an unknown field is not a missing one with its name misspelt."""
    if name in (*FLAGEMBEDDING_FIELDS, *KNOWN):
        return
    for meant in get_close_matches(name.lower(), FLAGEMBEDDING_FIELDS, n=1):
        if meant not in row.values:
            raise row.error(f"unknown field {name!r}, and no {meant!r}: rename or remove it")


def scored_passages(row: Row, name: str) -> list[Passage]:
    """Return the passages of one side with their scores."""
    if row.values.get(name) is None and name == "neg":
        return []
    if name not in row.values:
        raise row.error(f"no column {name!r}, expected a list of texts{other_format(row.values)}")
    texts = row.texts(name)
    scores = (numbers(row, f"{name}_{kind}", len(texts)) for kind in SCORES)
    passages = [Passage(*values) for values in zip(texts, *scores, strict=True)]
    if name == "neg" or row.values.get("pos_labels") is None:
        return passages
    labels = numbers(row, "pos_labels", len(texts))
    return [
        replace(passage, label=label)
        for passage, label in zip(passages, labels, strict=True)
        if label is not None
    ]


def numbers(row: Row, field: str, count: int) -> Sequence[float | None]:
    """Return the numbers of a field, one for each text; None for each where there is no field."""
    if row.values.get(field) is None:
        return [None] * count
    values = row.numbers(field)
    if len(values) != count:
        raise row.error(f"{field!r} has {len(values)} numbers for {count} texts")
    return values
