"""Duplicates: copies of texts, and near-duplicates, which share most of their word shingles."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from .normalize import key_words, text_key

#: Words of a shingle: texts rarely share a run of so many by chance.
SHINGLE = 3

#: From this overlap on two passages are near-duplicates.
OVERLAP = 0.8

Shingles = frozenset[tuple[str, ...]]


def shingles(text_words: Sequence[str]) -> Shingles:
    """Return all runs of `SHINGLE` words; a shorter text is one run."""
    runs = zip(*(text_words[start:] for start in range(SHINGLE)), strict=False)
    return frozenset(runs) or frozenset([tuple(text_words)] if text_words else [])


def overlap(first: Shingles, second: Shingles) -> float:
    """Return the common shingles ÷ those of the smaller text (Szymkiewicz-Simpson), from 0 to 1.

    Not Jaccard's share of all shingles: a window that is cut a little longer around a passage has
    all of the passage's content.
    """
    smaller = min(len(first), len(second))
    return len(first & second) / smaller if smaller else 0.0


@dataclass(frozen=True)
class Profile:
    """The features by which a text is compared."""

    #: The same for all copies of the text.
    key: str
    shingles: Shingles


@lru_cache(maxsize=1024)
def profile(text: str) -> Profile:
    """Return a text's profile; cached, as many queries have the same passages."""
    key = text_key(text)
    return Profile(key, shingles(key_words(key)))


class Duplicates:
    """Finds the copies and near-duplicates of some texts.

    Args:
        texts: The texts that others are compared with.
        least: The overlap from which on a text is a near-duplicate.
    """

    def __init__(self, texts: Iterable[str], *, least: float = OVERLAP) -> None:
        self.least = least
        self._profiles = [profile(text) for text in texts]
        self._keys = {known.key for known in self._profiles}

    def has(self, text: str) -> bool:
        """Return whether a text is a copy or a near-duplicate of one of them."""
        return profile(text).key in self._keys or self.has_nearly(text)

    def has_nearly(self, text: str) -> bool:
        """Return whether a text is a near-duplicate of one of them, but not a copy."""
        wanted = profile(text)
        return wanted.key not in self._keys and any(
            overlap(wanted.shingles, known.shingles) >= self.least for known in self._profiles
        )


class SimilarTexts:
    """Finds a text that another one is similar to, exactly and without comparing all.

    Two sets with a Jaccard similarity of `least` share one of their few rarest members, so only
    texts that share one of those are compared (prefix filtering, Bayardo et al. 2007).

    Args:
        texts: The members of each text: its shingles, or its words.
        least: The similarity from which on two texts are similar.
    """

    def __init__(self, texts: Sequence[frozenset[Hashable]], *, least: float) -> None:
        self.least = least
        self._texts = texts
        self._counts = Counter(member for members in texts for member in members)
        self._index: dict[Hashable, list[int]] = {}
        for index, members in enumerate(texts):
            for member in self._prefix(members):
                self._index.setdefault(member, []).append(index)

    def find(self, members: frozenset[Hashable]) -> int | None:
        """Return the index of the first text that is similar to one with these members."""
        compared = {i for member in self._prefix(members) for i in self._index.get(member, ())}
        for index in sorted(compared):
            if jaccard(members, self._texts[index]) >= self.least:
                return index
        return None

    def _prefix(self, members: frozenset[Hashable]) -> list[Hashable]:
        rarest = sorted(members, key=lambda member: (self._counts[member], repr(member)))
        return rarest[: len(members) - ceil(self.least * len(members)) + 1] if members else []


def jaccard(first: frozenset[Hashable], second: frozenset[Hashable]) -> float:
    """Return the common members ÷ all members, from 0 to 1."""
    common = len(first & second)
    return common / (len(first) + len(second) - common) if common else 0.0
