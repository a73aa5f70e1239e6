"""Labels of pairs over all data that is checked, and where they contradict each other."""

from dataclasses import dataclass, field

from ..data.groups import Group
from ..text.duplicates import Duplicates
from ..text.normalize import digest, text_digest
from .examples import Examples, shortened

POSITIVE, NEGATIVE = 1, 2
BOTH = POSITIVE | NEGATIVE


@dataclass
class Labels:
    """Labels of all pairs, gathered group by group."""

    #: `POSITIVE`, `NEGATIVE` or `BOTH` by the digest of a pair.
    pairs: dict[int, int] = field(default_factory=dict)
    contradictions: Examples = field(default_factory=Examples)
    #: Negatives that are near-duplicates of positives of their group.
    near_positives: Examples = field(default_factory=Examples)

    def add(self, group: Group, where: str) -> None:
        """Add the labels of one group, and keep what is suspicious about them."""
        positives = Duplicates(group.pos)
        for text in group.neg:
            if positives.has_nearly(text):
                self.near_positives.add(f"{where}: {shortened(group.query)}: {shortened(text)}")
        for text in self.learn(group):
            self.contradictions.add(f"{where}: {shortened(group.query)}: {shortened(text)}")

    def learn(self, group: Group) -> list[str]:
        """Add the labels of one group, and return the texts that first contradict earlier ones."""
        query, contradicted = question_digest(group), []
        for label, texts in ((POSITIVE, group.pos), (NEGATIVE, group.neg)):
            for text in texts:
                pair = pair_digest(query, text)
                known = self.pairs.get(pair, 0)
                self.pairs[pair] = known | label
                if known and known != BOTH and known | label == BOTH:
                    contradicted.append(text)
        return contradicted

    def is_both(self, group: Group, text: str) -> bool:
        """Return whether a passage is a positive of a query in one group, a negative in another."""
        pair = pair_digest(question_digest(group), text)
        return self.pairs.get(pair, 0) == BOTH


def question_digest(group: Group) -> int:
    """Return 64 bits of a query and its instruction, which may make other passages relevant."""
    query = text_digest(group.query)
    return query ^ digest(group.instruction) if group.instruction else query


def pair_digest(query: int, text: str) -> int:
    """Return 64 bits of a pair, from the digest of its query and its passage."""
    return query ^ (text_digest(text) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
