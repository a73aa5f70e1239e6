"""Measure how a data set of any size is checked, opened again and read, and in which memory."""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared.folders import add_folders
from shared.machine import OtherWork, available_cpus, describe, peak_memory, set_environment

SETS = ("squad", "scifact", "cmrc2018")

#: Groups that are drawn in random order, as training does.
DRAWN = 20_000

#: Passages of a group in a step, as training has it by default.
GROUP_SIZE = 8


@dataclass(frozen=True)
class Found:
    """The figures of a process that read a file of groups."""

    groups: int
    size: int
    #: Of checking and indexing everything, of finding it again, and of that after a change of time.
    first_seconds: float
    second_seconds: float
    moved_seconds: float
    #: Of reading and sampling one group in random order.
    sample_seconds: float
    #: Peak memory of the process with its libraries, and with nothing but them.
    memory: int
    libraries: int
    #: CPUs that others had meanwhile.
    others: float


def measure(path: Path, cache: Path) -> Found:
    """Check, find again, and draw samples; in a process of its own."""
    import numpy as np

    from rerank_plugin.finetune.data.dataset import GroupDataset
    from rerank_plugin.finetune.data.sampling import sample_group

    libraries = peak_memory()
    others = OtherWork()

    def build() -> float:
        start = time.perf_counter()
        GroupDataset.build(path, cache, None)
        return time.perf_counter() - start

    shutil.rmtree(cache, ignore_errors=True)
    first, second = build(), build()
    set_time(path)
    moved = build()
    groups = GroupDataset.build(path, cache, None)
    # What a split needs of every group.
    order = np.random.default_rng(0).permutation(len(np.unique(groups.query_hashes)))
    start = time.perf_counter()
    for index in order[:DRAWN]:
        sample_group(groups[index], size=GROUP_SIZE, seed=0, epoch=0, index=index)
    drawn = (time.perf_counter() - start) / len(order[:DRAWN])
    return Found(
        groups=len(groups),
        size=path.stat().st_size,
        first_seconds=first,
        second_seconds=second,
        moved_seconds=moved,
        sample_seconds=drawn,
        memory=peak_memory(),
        libraries=libraries,
        others=others.cpus,
    )


def set_time(path: Path) -> None:
    """Give a file another time of change, which is long enough ago to be trusted."""
    then = path.stat().st_mtime_ns - 10**11
    os.utime(path, ns=(then, then))


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function in a process of its own, whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def varied(groups: list[dict[str, Any]], count: int) -> Iterator[str]:
    """So many lines of groups: the given ones again and again, every time with other texts."""
    for number in range(count):
        turn, index = divmod(number, len(groups))
        group = groups[index]
        line = {
            "query": f"{group['query']} {turn}",
            "pos": [f"{text} {turn}" for text in group["pos"]],
            "neg": [f"{text} {turn}" for text in group["neg"]],
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def write_file(source: Path, path: Path, count: int) -> None:
    with source.open(encoding="utf-8") as lines:
        groups = [json.loads(line) for line in lines]
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(varied(groups, count))
    set_time(path)


def show(console: Console, results: dict[str, Found]) -> None:
    table = Table(title="data sets", title_justify="left")
    columns = ("", "GB", "first start s", "MB/s", "second start s", "moved s")
    for name in (*columns, "sample µs", "peak MB", "of which libraries"):
        table.add_column(name, justify="right" if name else "left")
    for name, figures in results.items():
        table.add_row(
            f"{name}, {figures.groups:,} groups",
            f"{figures.size / 1e9:.2f}",
            f"{figures.first_seconds:.1f}",
            f"{figures.size / figures.first_seconds / 1e6:.0f}",
            f"{figures.second_seconds:.3f}",
            f"{figures.moved_seconds:.1f}",
            f"{figures.sample_seconds * 1e6:.0f}",
            f"{figures.memory / 1e6:.0f}",
            f"{figures.libraries / 1e6:.0f}",
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    set_environment(available_cpus())
    console = Console(width=None if sys.stdout.isatty() else 140)
    work = options.output / "data"
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Found] = {}
    for name in options.sets.split(","):
        for count in map(int, options.groups.split(",")):
            path = work / f"{name}-{count}.jsonl"
            if not path.exists():
                console.print(f"writing {path.name} …")
                unfinished = path.with_suffix(".part")
                write_file(options.data / name / "train.jsonl", unfinished, count)
                unfinished.replace(path)
            results[f"{name} × {count}"] = alone(measure, path, work / "cache")
            show(console, results)
    record = {"machine": describe(1), "results": {k: asdict(v) for k, v in results.items()}}
    (options.output / "data.json").write_text(json.dumps(record, indent=2))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="squad", help=f"of {','.join(SETS)}")
    parser.add_argument("--groups", default="1000,1000000", help="sizes of the files, in groups")
    add_folders(
        parser,
        data="a folder with the sets, whose training groups are repeated and varied",
        output="where data.json and the files go: 6.6 GB for a million groups of squad",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
