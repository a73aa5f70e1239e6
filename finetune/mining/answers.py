"""Positives of queries with answers: the best passage that contains an answer."""

import re
from collections.abc import Sequence

from ..data.corpus import Corpus
from ..text.normalize import is_unspaced, normalize_text, text_key
from .bm25 import Bm25
from .retrieval import Hits

#: How many of the passages that BM25 ranks best are searched for the answer.
SEARCHED = 100


class Answers:
    """The answers of a query."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def are_in(self, text: str) -> bool:
        """Return whether a text contains one of the answers: whole words and signs, in any case."""
        key = f" {text_key(text)} "
        return any(contains(text, key, answer) for answer in self.texts)


def contains(text: str, key: str, answer: str) -> bool:
    """Return whether an answer is in a text, of which `key` is the `text_key` between spaces."""
    if not any(character.isalnum() for character in answer):
        # Punctuation, which keys do not have.
        return "".join(normalize_text(answer).split()) in "".join(normalize_text(text).split())
    if is_unspaced(answer):
        # No words to compare: characters, whatever the spaces between them.
        return text_key(answer).replace(" ", "") in key.replace(" ", "")
    return re.search(whole(text_key(answer)), key) is not None


def whole(key: str) -> str:
    """Return a pattern for a key between spaces that is not a part of a longer number or name.

    5 is not in 1.5, 5,000 and 5:30, and C neither in C# nor in C++.
    """
    before = r"(?<!\d [.,:] )" if key[0].isdigit() else ""
    after = r"(?! [.,:] \d)" if key[-1].isdigit() else r"(?! #| \+ \+)"
    return f"(?<= ){before}{re.escape(key)}(?= ){after}"


def bm25_hits(queries: Sequence[str], answers: Sequence[Answers], bm25: Bm25) -> list[Hits]:
    """Return the passages in which to look for the answers of each query.

    BM25 searches for the query and its answers together: a query alone may rank the passage low.
    """
    searched = [
        " ".join([query, *wanted.texts]) for query, wanted in zip(queries, answers, strict=True)
    ]
    return bm25.search(searched, SEARCHED)


def find_answers(
    answers: Sequence[Answers], hits: Sequence[Hits], corpus: Corpus
) -> list[int | None]:
    """Return for each query the position of its best hit with an answer; None without one."""
    best: list[int | None] = []
    for wanted, found in zip(answers, hits, strict=True):
        positions = found.positions.tolist()
        positives = (i for i in positions if wanted.are_in(corpus.texts([i])[0]))
        best.append(next(positives, None))
    return best
