"""FlagEmbedding's training data: `query`, `pos`, `neg`, perhaps `pos_scores` and `neg_scores`.

`prompt` and `type`, which embedding models are trained with, are left out.
"""

from collections.abc import Iterator

from rerank_plugin.jsonl import DataPath

from .judged import Judged, Passage
from .rows import Row, read_rows


def read(data_path: DataPath) -> Iterator[Judged]:
    """One record a line; `neg` may be missing or empty."""
    for row in read_rows(data_path):
        yield Judged(row.text("query"), side(row, "pos"), side(row, "neg"))


def side(row: Row, name: str) -> list[Passage]:
    """The passages of one side with their scores."""
    if row.values.get(name) is None and name == "neg":
        return []
    texts, field = row.texts(name), f"{name}_scores"
    if row.values.get(field) is None:
        return [Passage(text) for text in texts]
    scores = row.numbers(field)
    if len(scores) != len(texts):
        raise row.error(f"{field!r} has {len(scores)} numbers for {len(texts)} texts")
    return [Passage(text, score) for text, score in zip(texts, scores, strict=True)]
