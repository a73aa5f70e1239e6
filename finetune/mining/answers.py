"""Positives for queries that come with an answer: the best passage that contains it."""

import re
from collections.abc import Sequence

from ..data.corpus import Corpus
from ..text.normalize import is_unspaced, normalize_text, text_key
from .bm25 import Bm25

#: How far down its ranking a passage with the answer is looked for.
SEARCHED = 100


class Answers:
    """The answers of a query, ready to be looked for in texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def are_in(self, text: str) -> bool:
        """Whether a text contains one of the answers: whole words and signs, in any case."""
        key = f" {text_key(text)} "
        return any(contains(text, key, answer) for answer in self.texts)


def contains(text: str, key: str, answer: str) -> bool:
    """Whether an answer is in a text, of which `key` is the `text_key` between spaces."""
    if not any(character.isalnum() for character in answer):
        # Punctuation, which keys do not have.
        return "".join(normalize_text(answer).split()) in "".join(normalize_text(text).split())
    if is_unspaced(answer):
        # No words to compare: characters, whatever the spaces between them.
        return text_key(answer).replace(" ", "") in key.replace(" ", "")
    return re.search(whole(text_key(answer)), key) is not None


def whole(key: str) -> str:
    """A pattern for a key between spaces that is no part of a longer number or name.

    5 is not in 1.5, 5,000 and 5:30, and C neither in C# nor in C++.
    """
    before = r"(?<!\d [.,:] )" if key[0].isdigit() else ""
    behind = r"(?! [.,:] \d)" if key[-1].isdigit() else r"(?! #| \+ \+)"
    return f"(?<= ){before}{re.escape(key)}(?= ){behind}"


def find_answers(
    queries: Sequence[str], answers: Sequence[Answers], bm25: Bm25, corpus: Corpus
) -> list[int | None]:
    """For each query the position of the passage that contains its answer and that BM25 ranks best.

    BM25 searches for the query and its answers together: a query alone may rank the passage low.
    """
    asked = [" ".join([query, *own.texts]) for query, own in zip(queries, answers, strict=True)]
    found: list[int | None] = []
    for own, candidates in zip(answers, bm25.search(asked, SEARCHED), strict=True):
        positions = candidates.positions.tolist()
        right = (position for position in positions if own.are_in(corpus.texts([position])[0]))
        found.append(next(right, None))
    return found
