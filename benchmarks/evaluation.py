"""Measure the memory that `rerank-plugin evaluate` needs for any number of queries.

    python benchmarks/evaluation.py                        # up to 10,000 queries: minutes
    python benchmarks/evaluation.py --queries 100,1000     # a look

The data set's queries, again and again with other numbers, get 100 of its passages each, as groups
and as a TREC run. A model of one small layer ranks them, in a process of its own for each row.
The figures are the peak memory of that process, of the imported libraries alone, and the size of
all scores as float32.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.folders import SQUAD_OR_SAMPLE, add_folders
from shared.machine import available_cpus, describe, peak_memory, set_environment
from shared.models import small_model
from shared.texts import Source, write_records
from shared.workers import CONTEXT, write_to

#: Candidates of every query, the first of which is relevant.
CANDIDATES = 100

KINDS = ("groups", "run")


@dataclass(frozen=True)
class Memory:
    """Bytes of a process that evaluated, of its libraries alone, and of the scores."""

    peak: int
    libraries: int
    scores: int


@dataclass(frozen=True)
class Files:
    """The files and the model that are evaluated, written where they are missing."""

    folder: Path

    def options(self, kind: str) -> dict[str, Path]:
        """Return the options that name the files."""
        if kind == "groups":
            return {"data_path": self.folder / "groups.jsonl"}
        names = {"run": "run.trec", "qrels": "qrels.tsv", "queries": "queries.jsonl"}
        return {
            **{option: self.folder / name for option, name in names.items()},
            "corpus": self.folder / "corpus.jsonl",
        }

    def write(self, source: Source, queries: int) -> None:
        """Write groups, and the same as a run with its corpus, queries and judgements."""
        if self.folder.is_dir():
            return
        unfinished = self.folder.with_suffix(".part")
        unfinished.mkdir(parents=True, exist_ok=True)
        documents = source.documents
        corpus = ({"id": str(i), "text": text} for i, text in enumerate(documents))
        write_records(unfinished / "corpus.jsonl", corpus)
        texts = [
            f"{source.queries[i % len(source.queries)]} {i // len(source.queries)}"
            for i in range(queries)
        ]
        asked = ({"id": str(i), "text": text} for i, text in enumerate(texts))
        write_records(unfinished / "queries.jsonl", asked)
        random = np.random.default_rng(0)
        chosen = [random.choice(len(documents), CANDIDATES, replace=False) for _ in texts]
        write_lines(
            unfinished / "qrels.tsv",
            (f"{i}\t{candidates[0]}\t1" for i, candidates in enumerate(chosen)),
        )
        write_lines(
            unfinished / "run.trec",
            (
                f"{i} Q0 {document} {rank + 1} {CANDIDATES - rank} drawn"
                for i, candidates in enumerate(chosen)
                for rank, document in enumerate(candidates)
            ),
        )
        groups = (
            {
                "query": text,
                "pos": [documents[candidates[0]]],
                "neg": [documents[index] for index in candidates[1:]],
            }
            for text, candidates in zip(texts, chosen, strict=True)
        )
        write_records(unfinished / "groups.jsonl", groups)
        unfinished.rename(self.folder)


def write_lines(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def measure(model: Path, files: dict[str, Path], log: Path) -> tuple[int, int]:
    """Evaluate, in a process of its own; its peak memory and that of its libraries."""
    write_to(log)
    import rerank_plugin.finetune.evaluation.evaluate
    import rerank_plugin.reranker  # noqa: F401
    from rerank_plugin.cli.main import main as command

    libraries = peak_memory()
    options = {"model_dir": model, **files, "max_length": 64, "output": log.with_suffix(".json")}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if command(["evaluate", *arguments]):
        raise SystemExit(f"the evaluation failed, see {log}")
    return peak_memory(), libraries


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", default="1000,10000", help="how many, one or several")
    add_folders(
        parser, data=SQUAD_OR_SAMPLE, output="where files and figures go", name="evaluation"
    )
    parser.add_argument("--threads", type=int, default=available_cpus())
    options = parser.parse_args()
    set_environment(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    source = Source.read(options.data)
    model = small_model(options.output / "model")
    table = Table(title=f"queries with {CANDIDATES} candidates", title_justify="left")
    for title in ("from", "queries", "peak MB", "of which libraries", "scores alone"):
        table.add_column(title, justify="left" if title == "from" else "right")
    results = {}
    for count in map(int, options.queries.split(",")):
        files = Files(options.output / f"{source.name}-{count}")
        files.write(source, count)
        for kind in KINDS:
            log = options.output / f"{kind}-{count}.log"
            with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
                measured = pool.submit(measure, model, files.options(kind), log).result()
            memory = Memory(*measured, scores=4 * count * CANDIDATES)
            results[f"{kind} {count}"] = asdict(memory)
            megabytes = [f"{value / 1e6:.0f}" for value in asdict(memory).values()]
            table.add_row(kind, f"{count:,}", *megabytes)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    record = {"machine": describe(options.threads), "results": results}
    (options.output / "evaluation.json").write_text(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
