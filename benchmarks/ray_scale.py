"""Ranking on a Ray cluster of this machine: with one worker, two, and two of which one is killed.

    python benchmarks/ray_scale.py                     # 200,000 pairs: minutes
    python benchmarks/ray_scale.py --pairs 5000        # a look

The data set's queries get 100 of its passages each, again and again. A model of one small layer
ranks them in this process and on the cluster. Nothing may be lost, and every score has to be that
of this process.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.folders import SQUAD_OR_SAMPLE, add_folders
from shared.machine import describe, set_environment
from shared.models import small_model
from shared.texts import Source, write_records

#: The documents of a request.
DOCUMENTS = 100

#: The requests of a shard.
SHARD = 20

#: The number of workers of each row, and whether one of them is killed.
ROWS = {"one worker": (1, False), "two workers": (2, False), "two, one killed": (2, True)}


@dataclass(frozen=True)
class Measurement:
    """A run: its time, its rate once models are loaded, and how its results differ."""

    seconds: float
    pairs_per_second: float | None
    requests: int
    #: Whether all queries are there, in the order of the data.
    in_order: bool
    largest_difference: float
    #: Whether a worker was killed.
    killed: bool


def requests(source: Source, pairs: int) -> Iterator[dict[str, Any]]:
    """Yield requests for so many pairs, each query with its number."""
    random = np.random.default_rng(0)
    for index in range(pairs // DOCUMENTS):
        query = source.queries[index % len(source.queries)]
        chosen = random.choice(len(source.documents), DOCUMENTS, replace=False)
        yield {"query": f"{query} {index}", "documents": [source.documents[i] for i in chosen]}


def read(files: list[Path]) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the queries and all scores of result files."""
    results = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
    scores = [score for result in results for score in result["scores"]]
    return [result["query"] for result in results], np.array(scores)


def rate(files: list[Path], pairs: int) -> float | None:
    """Return pairs per second between the first and the last of the files of shards."""
    times = [file.stat().st_mtime for file in files]
    seconds = max(times) - min(times)
    return pairs * (len(files) - 1) / len(files) / seconds if seconds else None


def kill_one(output: Path, shards: int, ended: Event) -> bool:
    """Kill a worker once a third of the shards is finished; return whether there was one."""
    import psutil

    while len(list(output.glob("part-*"))) < shards / 3 and not ended.wait(0.01):
        pass
    while not ended.is_set():
        for process in psutil.process_iter(["cmdline"]):
            if "ray::ShardRanker.rank" in " ".join(process.info["cmdline"] or []):
                process.kill()
                return True
    return False


def measure(
    model: Path, data: Path, output: Path, expected: list[Path], *, workers: int, kill: bool
) -> Measurement:
    """Rank on the cluster, and compare the results with those of one process."""
    from rerank_plugin.offline import rerank_files

    shutil.rmtree(output, ignore_errors=True)
    queries, scores = read(expected)
    ended, killing = Event(), None
    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        if kill:
            killing = pool.submit(kill_one, output, len(queries) // SHARD, ended)
        try:
            result = rerank_files(
                model_dir=model,
                data_path=data,
                output=output,
                engine="ray",
                workers=workers,
                threads=1,
                shard_size=SHARD,
                dtype="float32",
            )
        finally:
            ended.set()
    seconds = time.perf_counter() - start
    ranked, actual = read(result.files)
    return Measurement(
        seconds,
        rate(result.files, len(actual)),
        result.requests,
        ranked == queries,
        float(np.abs(actual - scores).max()) if actual.shape == scores.shape else float("nan"),
        killed=killing is not None and killing.result(),
    )


def one_process(model: Path, data: Path, output: Path) -> float:
    """Rank in this process; return the seconds."""
    from rerank_plugin.offline import rerank_files

    start = time.perf_counter()
    rerank_files(
        model_dir=model, data_path=data, output=output, overwrite=True, threads=1, dtype="float32"
    )
    return time.perf_counter() - start


def table(seconds: float, rows: dict[str, Measurement]) -> Table:
    """Return the figures as a table."""
    names = ("seconds", "pairs/s", "requests", "in order", "largest difference", "killed")
    shown = Table("", *names)
    shown.add_row("this process", f"{seconds:.1f}")
    for name, row in rows.items():
        shown.add_row(
            name,
            f"{row.seconds:.1f}",
            f"{row.pairs_per_second:,.0f}" if row.pairs_per_second else "",
            f"{row.requests:,}",
            "yes" if row.in_order else "NO",
            f"{row.largest_difference:.1e}",
            "yes" if row.killed else "no",
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200_000)
    output = "where files and figures go; %(default)s"
    add_folders(parser, data=SQUAD_OR_SAMPLE, output=output, name="ray_scale")
    options = parser.parse_args()
    set_environment(1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    source = Source.read(options.data)
    model = small_model(folder / "model")
    data = write_records(folder / f"{options.pairs}.jsonl", requests(source, options.pairs))
    expected = folder / "one-process.jsonl"
    seconds = one_process(model, data, expected)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows = {
        name: measure(model, data, folder / "ranked", [expected], workers=workers, kill=kill)
        for name, (workers, kill) in ROWS.items()
    }
    ray.shutdown()
    Console().print(table(seconds, rows))
    figures = {
        "machine": describe(1),
        "pairs": options.pairs,
        "one_process": seconds,
        "rows": {name: asdict(row) for name, row in rows.items()},
    }
    (folder / "ray_scale.json").write_text(json.dumps(figures, indent=2))
    return 0 if all(row.in_order and row.largest_difference < 1e-5 for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
