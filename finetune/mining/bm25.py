"""BM25 over a corpus on disk, by bm25s."""

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rerank_plugin.errors import OptionError
from rerank_plugin.extras import require

from ..data.corpus import Corpus, Positions
from ..text.normalize import words
from .retrieval import Hits, Scores, best_first

#: From so many passages on numba saves more time than it takes to compile.
COMPILED_FROM = 50_000

#: Texts whose word ids are written and read at once.
INDEXED_AT_ONCE = 10_000


def load_bm25s() -> Any:
    """Import bm25s without JAX.

    bm25s calls JAX once when it is imported, if it is installed: on a GPU that reserves three
    quarters of the memory, and models have none left.

    Raises:
        MissingPackageError: bm25s is not installed.
    """
    if "jax" in sys.modules:
        return require("bm25s")
    sys.modules["jax"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return require("bm25s")
    finally:
        del sys.modules["jax"]


class Vocabulary(dict[str, int]):
    """A number for every word: a new word gets the next one."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class WordIds:
    """The word numbers of every passage in a file: a sequence of lists that is not in memory.

    Args:
        path: The file, int32.
        starts: The offset of each passage in words, and the end of the last one.
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
        """Write the word numbers of all texts."""
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
                if len(waiting) == INDEXED_AT_ONCE:
                    flush()
            flush()
        return cls(path, np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        with self.path.open("rb") as file:
            for first in range(0, len(self), INDEXED_AT_ONCE):
                starts = self.starts[first : first + INDEXED_AT_ONCE + 1]
                ids = np.fromfile(file, np.int32, count=int(starts[-1] - starts[0])).tolist()
                ends = (starts - starts[0]).tolist()
                yield from (ids[start:end] for start, end in pairwise(ends))


class Tokenized:
    """The argument of `bm25s.BM25.index`: the passages' word numbers, and the vocabulary."""

    def __init__(self, ids: WordIds, vocab: Vocabulary) -> None:
        self.ids = ids
        self.vocab = vocab


class Bm25:
    """BM25 as in Lucene (k1 1.5, b 0.75), over `words`.

    Args:
        corpus: The passages to search.
        folder: The folder of a temporary file with the numbers of their words.
        progress: Called with the number of passages read since the last call.

    Raises:
        MissingPackageError: bm25s is not installed.
        OptionError: no passage contains a word.
    """

    def __init__(
        self, corpus: Corpus, folder: Path, progress: Callable[[int], Any] | None = None
    ) -> None:
        bm25s = load_bm25s()
        self.compiled = find_spec("numba") is not None and len(corpus) >= COMPILED_FROM
        self.vocabulary = Vocabulary()
        ids = WordIds.write(folder / "words.int32", iter(corpus), self.vocabulary, progress)
        if not self.vocabulary:
            raise OptionError("corpus", "no passage contains a word")
        self._index = bm25s.BM25(method="lucene", backend="numba" if self.compiled else "numpy")
        if self.compiled:
            self._index.compile(activate_numba=True)
        tokens = Tokenized(ids, self.vocabulary)
        self._index.index(tokens, create_empty_token=False, show_progress=False)
        ids.path.unlink()

    def search(self, queries: Sequence[str], count: int) -> list[Hits]:
        """Return at most `count` passages for each query that share a word with it."""
        numbers = [self._numbers(query) for query in queries]
        nothing = Hits(np.empty(0, np.int64), np.empty(0, np.float32))
        results = [nothing] * len(queries)
        searched = [index for index, ids in enumerate(numbers) if ids]
        if searched:
            positions, scores = self._index.retrieve(
                [numbers[index] for index in searched],
                k=min(count, self._index.scores["num_docs"]),
                show_progress=False,
                n_threads=-1 if self.compiled else 0,
            )
            for index, passages, values in zip(searched, positions, scores, strict=True):
                results[index] = best_first(passages[values > 0], values[values > 0])
        return results

    def score(self, queries: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Scores]:
        """Return the BM25 scores of given passages for each query."""
        pairs = zip(queries, positions, strict=True)
        return [self._score(query, passages) for query, passages in pairs]

    def _score(self, query: str, positions: Sequence[int]) -> Scores:
        index = self._index.scores
        wanted = np.asarray(positions)
        total = np.zeros(len(wanted), np.float32)
        for number in self._numbers(query):
            start, end = index["indptr"][number : number + 2]
            rows = index["indices"][start:end]
            nearest = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
            total += np.where(rows[nearest] == wanted, index["data"][start:end][nearest], 0)
        return total

    def _numbers(self, query: str) -> list[int]:
        return [self.vocabulary[word] for word in words(query) if word in self.vocabulary]
