"""Texts that say the same: copies, and passages that share most of their runs of words."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from .normalize import key_words, text_key

#: Words of a shingle: a run of so many is rarely shared by chance.
SHINGLE = 3

#: Two passages are near-duplicates from this share of common shingles on.
OVERLAP = 0.8

Shingles = frozenset[tuple[str, ...]]


def shingles(text_words: Sequence[str]) -> Shingles:
    """All runs of `SHINGLE` words; a shorter text is one run."""
    runs = zip(*(text_words[start:] for start in range(SHINGLE)), strict=False)
    return frozenset(runs) or frozenset([tuple(text_words)] if text_words else [])


def overlap(one: Shingles, other: Shingles) -> float:
    """Common shingles ÷ those of the smaller text (Szymkiewicz-Simpson), from 0 to 1.

    Not Jaccard's share of all shingles: a window that is cut a little longer around a passage
    says all that the passage says.
    """
    smaller = min(len(one), len(other))
    return len(one & other) / smaller if smaller else 0.0


@dataclass(frozen=True)
class Profile:
    """What a text is compared by."""

    #: The same for all its copies.
    key: str
    shingles: Shingles


@lru_cache(maxsize=1024)
def profile(text: str) -> Profile:
    """What a text is compared by; kept for a while, as the same passage comes for many queries."""
    key = text_key(text)
    return Profile(key, shingles(key_words(key)))


class Duplicates:
    """Knows the copies and near-duplicates of some texts.

    Args:
        texts: What others are compared with.
        least: The overlap from which on a text is a near-duplicate.
    """

    def __init__(self, texts: Iterable[str], *, least: float = OVERLAP) -> None:
        self.least = least
        self._profiles = [profile(text) for text in texts]
        self._keys = {known.key for known in self._profiles}

    def has(self, text: str) -> bool:
        """Whether a text is one of them, a copy or a near-duplicate."""
        return profile(text).key in self._keys or self.has_nearly(text)

    def has_nearly(self, text: str) -> bool:
        """Whether a text is a near-duplicate of one of them, but no copy."""
        own = profile(text)
        return own.key not in self._keys and any(
            overlap(own.shingles, known.shingles) >= self.least for known in self._profiles
        )


class SimilarTexts:
    """Finds which of some texts another one is similar to, exactly and without comparing all.

    Two sets with a Jaccard similarity of `least` share one of their few rarest members: only texts
    that share one of those are compared (prefix filtering, Bayardo et al. 2007).

    Args:
        texts: The members of each text: its shingles, or its words.
        least: The similarity from which on two texts are similar.
    """

    def __init__(self, texts: Sequence[frozenset[Hashable]], *, least: float) -> None:
        self.least = least
        self._texts = texts
        self._counts = Counter(member for members in texts for member in members)
        self._index: dict[Hashable, list[int]] = {}
        for place, members in enumerate(texts):
            for member in self._prefix(members):
                self._index.setdefault(member, []).append(place)

    def find(self, members: frozenset[Hashable]) -> int | None:
        """The place of the first text that is similar to one with these members."""
        tried = {place for member in self._prefix(members) for place in self._index.get(member, ())}
        return next(
            (
                place
                for place in sorted(tried)
                if jaccard(members, self._texts[place]) >= self.least
            ),
            None,
        )

    def _prefix(self, members: frozenset[Hashable]) -> list[Hashable]:
        rarest = sorted(members, key=lambda member: (self._counts[member], repr(member)))
        return rarest[: len(members) - ceil(self.least * len(members)) + 1] if members else []


def jaccard(one: frozenset[Hashable], other: frozenset[Hashable]) -> float:
    """Common members ÷ all members, from 0 to 1."""
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0
