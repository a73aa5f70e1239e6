"""The texts that are scored: real ones, or cut from real ones to a given length mix."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tokenizers import Tokenizer

Item = TypeVar("Item")

#: A query and the documents that are scored for it.
Request = tuple[str, list[str]]

#: The wide mix: lognormal document lengths in words.
WIDE_MEAN, WIDE_SIGMA, WIDE_MOST = 90, 1.0, 400

#: Tokens of every pair of the mixes of one length, special tokens included.
TOKENS = {"equal": 190, "full": 512}

MIXES = {
    "own": "the real documents, with their own lengths",
    "wide": f"lognormal lengths, mean {WIDE_MEAN} words, sigma {WIDE_SIGMA}, at most {WIDE_MOST}",
    **{name: f"every pair {tokens} tokens long" for name, tokens in TOKENS.items()},
}

SAMPLE = Path(__file__).resolve().parents[2] / "rerank_plugin" / "sample"


def set_folder(data: Path, name: str) -> Path:
    """Return the folder of a data set; `sample` is the one of the package."""
    return SAMPLE if name == SAMPLE.name else data / name


@dataclass(frozen=True)
class Source:
    """Real queries and documents, and a file of training groups."""

    name: str
    queries: list[str]
    documents: list[str]
    groups: Path

    @classmethod
    def read(cls, data: Path) -> "Source":
        """Return the squad set in a folder of data sets, else the sample that the package ships."""
        folder = data / "squad"
        if not folder.is_dir():
            folder = SAMPLE
        return cls(
            folder.name,
            read_texts(folder / "queries.jsonl"),
            read_texts(folder / "corpus.jsonl"),
            folder / "train.jsonl",
        )


def read_texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


class Deck(Generic[Item]):
    """Deals items in random order, each once before any is repeated."""

    def __init__(self, items: Sequence[Item], random: np.random.Generator) -> None:
        self.items = items
        self.random = random
        self._left: list[int] = []

    def deal(self) -> Item:
        """Return the next item."""
        if not self._left:
            self._left = self.random.permutation(len(self.items)).tolist()
        return self.items[self._left.pop()]


class Texts:
    """Deals new requests of one length mix, the same ones for the same seed.

    Args:
        source: Where queries and documents come from.
        mix: A name in `MIXES`.
        tokenizer: Counts the tokens where they are given.
        seed: Fixes what is dealt.
    """

    def __init__(self, source: Source, mix: str, tokenizer: Tokenizer, *, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.queries = Deck(source.queries, self.random)
        self.documents = Deck(source.documents, self.random)
        self.words = [word for document in source.documents for word in document.split()]
        self.tokenizer = tokenizer
        self._document = {"own": self._own, "wide": self._wide}.get(mix, self._equal)
        self.most = TOKENS.get(mix, 0)
        self._tokens: dict[str, int] = {}

    def requests(self, count: int, documents: int) -> list[Request]:
        """Return some queries with so many documents each; no pair is repeated."""
        dealt = []
        for _ in range(count):
            query = self.queries.deal()
            dealt.append((query, [self._document(query) for _ in range(documents)]))
        return dealt

    def _own(self, query: str) -> str:
        return self.documents.deal()

    def _wide(self, query: str) -> str:
        # The mean of a lognormal is exp(mu + sigma² / 2).
        mu = np.log(WIDE_MEAN) - WIDE_SIGMA**2 / 2
        count = round(self.random.lognormal(mu, WIDE_SIGMA))
        return " ".join(self._run(min(max(count, 1), WIDE_MOST)))

    def _equal(self, query: str) -> str:
        room = self.most - len(self.tokenizer.encode(query, "").ids)
        document: list[str] = []
        # Neither WordPiece nor Unigram joins over a space, so words' tokens add up.
        for word in self._run(room):
            if self._count(word) <= room:
                document.append(word)
                room -= self._count(word)
        filler = next(word for word in self.words if self._count(word) == 1)
        document += [filler] * room
        text = " ".join(document)
        if len(self.tokenizer.encode(query, text).ids) != self.most:
            raise ValueError(f"a pair is not {self.most} tokens long: {text!r}")
        return text

    def _run(self, count: int) -> list[str]:
        """Return some words that follow each other somewhere in the documents."""
        start = int(self.random.integers(len(self.words) - count))
        return self.words[start : start + count]

    def _count(self, word: str) -> int:
        if word not in self._tokens:
            self._tokens[word] = len(self.tokenizer.encode(word, add_special_tokens=False).ids)
        return self._tokens[word]


def pair_lengths(requests: Sequence[Request], tokenizer: Tokenizer, max_length: int) -> list[int]:
    """Return the tokens of every pair as a model reads it, cut to `max_length`."""
    pairs = [(query, document) for query, documents in requests for document in documents]
    return [min(len(encoding.ids), max_length) for encoding in tokenizer.encode_batch(pairs)]


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records as JSON Lines."""
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return path


def write_groups(source: Source, path: Path, *, count: int, size: int, skip: int = 0) -> None:
    """Write training groups of one positive and `size - 1` negatives, so that none is drawn.

    Every trainer then sees the same pairs, whatever its way to choose among more.
    """
    with source.groups.open(encoding="utf-8") as lines:
        groups = [json.loads(line) for line in lines]
    groups = [group for group in groups if len(group["neg"]) >= size - 1]
    chosen = groups[skip : skip + count]
    if len(chosen) < count:
        raise ValueError(f"{source.groups.name} of {source.name} has fewer than {count} groups")
    with path.open("w", encoding="utf-8") as lines:
        for group in chosen:
            kept = {
                "query": group["query"],
                "pos": group["pos"][:1],
                "neg": group["neg"][: size - 1],
            }
            lines.write(json.dumps(kept, ensure_ascii=False) + "\n")


def read_groups(path: Path) -> list[Request]:
    """Return the groups of a file that `write_groups` wrote, the positive first."""
    with path.open(encoding="utf-8") as lines:
        groups = [json.loads(line) for line in lines]
    return [(group["query"], group["pos"] + group["neg"]) for group in groups]
