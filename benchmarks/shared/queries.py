"""Queries of the data sets that share no topic with the training queries, and their candidates.

The topic of a passage is its article, where ids are `article#number`, else the passage itself.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIDES = ("train", "dev", "test")


class Query(NamedTuple):
    """A query and the ids of its relevant passages."""

    text: str
    relevant: list[str]


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def topic(passage: str) -> str:
    """Return the topic of a passage by its id."""
    return passage.rsplit("#", 1)[0]


class QuerySet:
    """The queries of a data set.

    Args:
        data: The folder of the set.
    """

    def __init__(self, data: Path) -> None:
        self.data = data

    @cached_property
    def passages(self) -> dict[str, str]:
        """Return the texts of passages by their ids."""
        return {row["id"]: row["text"] for row in lines(self.data / "corpus.jsonl")}

    @cached_property
    def queries(self) -> list[Query]:
        """Return the queries with a relevant passage, in the order of the file."""
        relevant: dict[str, list[str]] = {}
        for line in (self.data / "qrels.tsv").read_text("utf-8").splitlines():
            query, passage, grade = line.split("\t")
            if grade.isdigit() and int(grade) > 0:
                relevant.setdefault(query, []).append(passage)
        rows = lines(self.data / "queries.jsonl")
        return [Query(r["text"], relevant[r["id"]]) for r in rows if r["id"] in relevant]

    @cached_property
    def given(self) -> dict[str, list[str]]:
        """Return the queries of the files of groups, by side."""
        return {s: [g["query"] for g in lines(self.data / f"{s}.jsonl")] for s in SIDES}

    def select(self, side: str, limit: int | None = None) -> list[Query]:
        """Return the queries of a file of groups, and then others with topics of that side alone.

        Queries with topics of no side are dev and test queries in turns.
        """
        by_text = {query.text: query for query in self.queries}
        sides = {
            name: {topic(p) for text in texts for p in by_text[text].relevant}
            for name, texts in self.given.items()
        }
        known = {text for texts in self.given.values() for text in texts}
        others = [query for query in self.queries if query.text not in known]
        more, turn = [], 0
        for index in np.random.default_rng(0).permutation(len(others)).tolist():
            topics = {topic(passage) for passage in others[index].relevant}
            owners = [name for name in SIDES if topics & sides[name]]
            if not owners:
                turn += 1
                owners = [SIDES[1 + turn % 2]]
            if owners == [side]:
                more.append(others[index])
        return [*(by_text[text] for text in self.given[side]), *more][:limit]

    def search(self, queries: Sequence[Query], depth: int) -> list[tuple[list[str], list[float]]]:
        """Return the ids and scores of the passages that BM25 finds for queries."""
        from rerank_plugin.finetune.data.corpus import Corpus
        from rerank_plugin.finetune.data.reason_counts import ReasonCounts
        from rerank_plugin.finetune.mining.bm25 import Bm25

        ids = list(self.passages)
        with tempfile.TemporaryDirectory() as work:
            path = Path(work)
            corpus = Corpus.build(str(self.data / "corpus.jsonl"), path, set(), ReasonCounts())
            found = Bm25(corpus, path).search([query.text for query in queries], depth)
            corpus.close()
        return [([ids[i] for i in hits.positions.tolist()], hits.scores.tolist()) for hits in found]
