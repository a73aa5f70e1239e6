"""Texts that say the same: copies, and passages that share most of their runs of words."""

from collections.abc import Iterable, Sequence

from .words import text_key, words

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


class Duplicates:
    """Knows the copies and near-duplicates of some texts.

    Args:
        texts: What others are compared with.
        least: The overlap from which on a text is a near-duplicate.
    """

    def __init__(self, texts: Iterable[str], *, least: float = OVERLAP) -> None:
        self.least = least
        self._keys: set[str] = set()
        self._shingles: list[Shingles] = []
        for text in texts:
            self._keys.add(text_key(text))
            self._shingles.append(shingles(words(text)))

    def has(self, text: str) -> bool:
        """Whether a text is one of them, a copy or a near-duplicate."""
        own = words(text)
        if (" ".join(own) or text_key(text)) in self._keys:
            return True
        found = shingles(own)
        return any(overlap(found, known) >= self.least for known in self._shingles)
