"""Queries and positives that training data shares with evaluation data."""

from collections.abc import Sequence

from ..data.groups import Group
from ..text.duplicates import SimilarTexts, profile
from ..text.normalize import key_words, text_digest, text_key
from .examples import Examples, shortened

#: From this Jaccard similarity on two texts are near-duplicates.
SIMILAR = 0.8


class Overlap:
    """Texts that training data shares with evaluation data, gathered group by group.

    Args:
        groups: The queries of the evaluation groups with their positives.
    """

    def __init__(self, groups: Sequence[tuple[str, list[str]]]) -> None:
        self._texts = [query for query, _ in groups]
        self._queries = {text_digest(query) for query in self._texts}
        self._similar = SimilarTexts([query_words(query) for query in self._texts], least=SIMILAR)
        positives = {text_digest(text): text for _, texts in groups for text in texts}
        shingles = [profile(text).shingles for text in positives.values()]
        self._positives = SimilarTexts(shingles, least=SIMILAR)
        #: The digests of evaluation queries that are training queries, and the first of them.
        self.same: set[int] = set()
        self.example = ""
        #: Training queries that are near-duplicates of evaluation queries.
        self.near = Examples()
        #: The number of the evaluation's positives, and the indices of those shared with training.
        self.positives = len(positives)
        self.shared: set[int] = set()
        self._nearest: dict[int, int | None] = {}

    def add(self, group: Group, where: str) -> None:
        """Compare one training group."""
        if self.is_same(group.query):
            self.same.add(text_digest(group.query))
            self.example = self.example or shortened(group.query)
        elif (index := self.nearest(group.query)) is not None:
            query = shortened(self._texts[index])
            self.near.add(f"{where}: {shortened(group.query)} is nearly {query}")
        for text in group.pos:
            number = text_digest(text)
            if number not in self._nearest:
                self._nearest[number] = self._positives.find(profile(text).shingles)
            if (index := self._nearest[number]) is not None:
                self.shared.add(index)

    def is_same(self, query: str) -> bool:
        """Return whether a training query is an evaluation query."""
        return text_digest(query) in self._queries

    def nearest(self, query: str) -> int | None:
        """Return the index of an evaluation query that a training query nearly equals."""
        return self._similar.find(query_words(query))

    def leaks(self, query: str) -> bool:
        """Return whether a training query is an evaluation query, or nearly."""
        return self.is_same(query) or self.nearest(query) is not None


def query_words(query: str) -> frozenset[str]:
    """Return the words that nearly equal queries share."""
    return frozenset(key_words(text_key(query)))
