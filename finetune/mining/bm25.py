"""BM25 over a corpus on disk, by bm25s."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rerank_plugin.errors import InputError

from ..data.corpus import Corpus, Positions
from ..text.normalize import words
from .retrieval import Hits, Scores, best_first

#: From so many passages on the time that numba takes to compile is won back.
COMPILED_FROM = 50_000

#: Texts whose word ids are written and read at once.
TEXTS_AT_ONCE = 10_000


class Vocabulary(dict[str, int]):
    """A number for every word, the next one for a new word."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class WordIds:
    """The word numbers of every passage, in a file: a sequence of lists at flat memory.

    Args:
        path: The file, int32.
        starts: Where in it each passage begins, in words, and where the last one ends.
    """

    def __init__(self, path: Path, starts: Positions) -> None:
        self.path = path
        self.starts = starts

    @classmethod
    def write(
        cls,
        path: Path,
        texts: Iterator[str],
        vocabulary: Vocabulary,
        progress: Callable[[int], Any] | None = None,
    ) -> "WordIds":
        """Number the words of all texts."""
        lengths = [0]
        waiting: list[list[int]] = []

        def flush() -> None:
            file.write(np.fromiter(chain.from_iterable(waiting), np.int32).tobytes())
            if progress:
                progress(len(waiting))
            waiting.clear()

        with path.open("wb") as file:
            for text in texts:
                waiting.append([vocabulary[word] for word in words(text)])
                lengths.append(len(waiting[-1]))
                if len(waiting) == TEXTS_AT_ONCE:
                    flush()
            flush()
        return cls(path, np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        with self.path.open("rb") as file:
            for first in range(0, len(self), TEXTS_AT_ONCE):
                starts = self.starts[first : first + TEXTS_AT_ONCE + 1]
                ids = np.fromfile(file, np.int32, count=int(starts[-1] - starts[0])).tolist()
                ends = (starts - starts[0]).tolist()
                for position in range(len(ends) - 1):
                    yield ids[ends[position] : ends[position + 1]]


class Tokenized:
    """What `bm25s.BM25.index` takes: the word numbers of the passages, and the vocabulary."""

    def __init__(self, ids: WordIds, vocab: Vocabulary) -> None:
        self.ids = ids
        self.vocab = vocab


class Bm25:
    """BM25 as Lucene computes it (k1 1.5, b 0.75), over `words`.

    Args:
        corpus: What is searched.
        folder: Where the numbers of its words are written while the index is built.
        progress: Called with a number of passages whenever so many more are read.

    Raises:
        InputError: bm25s is not installed, or the corpus holds no word.
    """

    def __init__(
        self, corpus: Corpus, folder: Path, progress: Callable[[int], Any] | None = None
    ) -> None:
        if find_spec("bm25s") is None:
            raise InputError("BM25 is missing: pip install 'rerank-plugin[mine]'")
        import bm25s

        self.compiled = find_spec("numba") is not None and len(corpus) >= COMPILED_FROM
        self.vocabulary = Vocabulary()
        ids = WordIds.write(folder / "words.int32", iter(corpus), self.vocabulary, progress)
        if not self.vocabulary:
            raise InputError("the corpus holds no word")
        self._index = bm25s.BM25(method="lucene", backend="numba" if self.compiled else "numpy")
        if self.compiled:
            self._index.compile(activate_numba=True)
        tokens = Tokenized(ids, self.vocabulary)
        self._index.index(tokens, create_empty_token=False, show_progress=False)
        ids.path.unlink()

    def search(self, queries: Sequence[str], count: int) -> list[Hits]:
        """At most `count` passages for each query; none that shares no word with it."""
        numbers = [self._numbers(query) for query in queries]
        nothing = Hits(np.empty(0, np.int64), np.empty(0, np.float32))
        results = [nothing] * len(queries)
        known = [position for position, found in enumerate(numbers) if found]
        if known:
            found, scores = self._index.retrieve(
                [numbers[position] for position in known],
                k=min(count, self._index.scores["num_docs"]),
                show_progress=False,
                n_threads=-1 if self.compiled else 0,
            )
            for position, own, values in zip(known, found, scores, strict=True):
                results[position] = best_first(own[values > 0], values[values > 0])
        return results

    def score(self, queries: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Scores]:
        """The BM25 scores of given passages for each query."""
        return [self._score(query, of) for query, of in zip(queries, positions, strict=True)]

    def _score(self, query: str, positions: Sequence[int]) -> Scores:
        index = self._index.scores
        wanted = np.asarray(positions)
        total = np.zeros(len(wanted), np.float32)
        for number in self._numbers(query):
            start, end = index["indptr"][number : number + 2]
            rows = index["indices"][start:end]
            spot = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
            total += np.where(rows[spot] == wanted, index["data"][start:end][spot], 0)
        return total

    def _numbers(self, query: str) -> list[int]:
        return [self.vocabulary[word] for word in words(query) if word in self.vocabulary]
