"""Measure the adapters beside what they replace: `python benchmarks/adapters.py --help`."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.pipelines import PIPELINES
from peers.scorers import OURS
from rich.console import Console
from rich.table import Table
from shared import machine
from shared.folders import SQUAD_OR_SAMPLE, add_folders
from shared.models import model_folder
from shared.results import percentile
from shared.scoring import open_workers, rotated
from shared.texts import Source, Texts
from shared.workers import Worker
from tokenizers import Tokenizer

#: Queries that are asked at once, and the documents of each.
QUERIES, DOCUMENTS = 32, 20

#: What an adapter's module imports of its framework.
FRAMEWORKS = {
    "langchain": "langchain_core.callbacks, langchain_core.cross_encoders, "
    "langchain_core.documents, langchain_core.retrievers, langchain_core.runnables",
    "llama_index": "llama_index.core.postprocessor.types, llama_index.core.instrumentation, "
    "llama_index.core.callbacks",
}


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    machine.set_environment(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "adapters.json"
    source = Source.read(options.data)
    folder = model_folder("minilm", options.output / "models" / "minilm", source)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    record: dict[str, Any] = {
        "machine": machine.describe(options.threads),
        "texts": source.name,
        "frameworks": options.frameworks,
        "rounds": earlier_rounds(path, options.frameworks) if options.resume else [],
    }
    # An interrupted run's rounds count; these have other texts.
    texts = Texts(source, "own", tokenizer, seed=1 + len(record["rounds"]))
    names = [who for framework in options.frameworks for who in PIPELINES[framework]]
    with open_workers(folder, options.output / "adapters.log", names) as workers:
        check_agreement(workers, Texts(source, "own", tokenizer, seed=0))
        record["precisions"] = {worker.name: worker.loaded.precision for worker in workers}
        for number in range(options.rounds):
            record["rounds"].append(measure(workers, texts, number))
            record["summary"] = summary(record["rounds"], record["precisions"])
            path.write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
        record["overhead"] = measure_overhead(workers, texts, options.rounds)
    record["import_seconds"] = {name: import_seconds(name) for name in options.frameworks}
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
    report(console, record)
    console.print(f"written: {path}")
    return 0


def earlier_rounds(path: Path, frameworks: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rounds that a file holds, of the same frameworks."""
    if not path.exists():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["frameworks"] != list(frameworks):
        raise SystemExit(f"{path} holds rounds of other frameworks: leave out --resume")
    rounds: list[dict[str, Any]] = record["rounds"]
    return rounds


def check_agreement(workers: Sequence[Worker], texts: Texts) -> None:
    """Check that all that compute in float32 keep the same documents.

    Raises:
        SystemExit: they do not, so comparing their times would mean nothing.
    """
    requests = texts.requests(3, DOCUMENTS)
    exact = [worker for worker in workers if worker.loaded.precision == "float32"]
    kept = {worker.name: worker.kept(requests) for worker in exact}
    for name, texts in kept.items():
        if texts != kept[exact[0].name]:
            raise SystemExit(f"{name} keeps other documents than {exact[0].name}")


def measure(workers: Sequence[Worker], texts: Texts, number: int) -> dict[str, Any]:
    """Return a round: each in turn gets the same queries, all at once."""
    requests = texts.requests(QUERIES, DOCUMENTS)
    record = {}
    for worker in rotated(workers, number):
        answer = worker.together(requests)
        *seconds, pause = answer.values
        record[worker.name] = {
            "queries_per_second": len(seconds) / max(seconds),
            "p50_seconds": percentile(seconds, 50),
            "p95_seconds": percentile(seconds, 95),
            "pause_seconds": pause,
            "others_cpus": answer.others,
        }
    return record


def measure_overhead(workers: Sequence[Worker], texts: Texts, rounds: int) -> dict[str, Any]:
    """Measure what the adapters add to a bare `Reranker`, one query at a time, as a share."""
    record = {}
    for worker in workers:
        if worker.who.startswith(OURS) and worker.setting == "default":
            seconds = worker.overhead(texts.requests(12 * rounds, DOCUMENTS)).values
            bare, through = seconds[::2], seconds[1::2]
            shares = [after / before - 1 for before, after in zip(bare, through, strict=True)]
            record[worker.name] = {
                "bare_seconds": statistics.median(bare),
                "adapter_seconds": statistics.median(through),
                "share": statistics.median(shares),
                "quartiles": [percentile(shares, 25), percentile(shares, 75)],
            }
    return record


def import_seconds(name: str, repeats: int = 5) -> float:
    """Seconds that importing an adapter takes when its framework is there; the median."""
    code = (
        f"import time, {FRAMEWORKS[name]}\n"
        "start = time.perf_counter()\n"
        f"import rerank_plugin.integrations.{name}\n"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    shown = [subprocess.check_output(command, text=True) for _ in range(repeats)]
    return statistics.median(float(seconds) for seconds in shown)


def summary(
    rounds: Sequence[dict[str, Any]], precisions: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the medians of every contestant, and the median and range of the rounds' ratios."""
    lines = {}
    for name in rounds[0]:
        line: dict[str, Any] = {
            figure: statistics.median(line[name][figure] for line in rounds)
            for figure in rounds[0][name]
        }
        who, _, setting = name.rpartition(" ")
        if not who.startswith(OURS):
            ours = replacement(who)
            same = [
                other
                for other, precision in precisions.items()
                if other.startswith(f"{ours} ") and precision == precisions[name]
            ]
            line["same_precision"] = compare(rounds, name, same[0])
            if setting == "default":
                line["default"] = compare(rounds, name, f"{ours} default")
        lines[name] = line
    return lines


def replacement(who: str) -> str:
    """Return what this project has instead of a peer."""
    (names,) = (list(group) for group in PIPELINES.values() if who in group)
    return names[0]


def compare(rounds: Sequence[dict[str, Any]], theirs: str, ours: str) -> dict[str, Any]:
    """Return how many times more queries we answer, and our p95 as a share of theirs."""
    faster = [r[ours]["queries_per_second"] / r[theirs]["queries_per_second"] for r in rounds]
    shares = [r[ours]["p95_seconds"] / r[theirs]["p95_seconds"] for r in rounds]
    return {
        "times": statistics.median(faster),
        "range": [min(faster), max(faster)],
        "p95_share": statistics.median(shares),
        "p95_range": [min(shares), max(shares)],
    }


def report(console: Console, record: dict[str, Any]) -> None:
    """Show everything as tables."""
    table = Table(title=f"{QUERIES} queries at once, {DOCUMENTS} documents each, minilm")
    table.add_column("")
    for name in ("in", "queries/s", "p50 s", "p95 s", "longest pause ms"):
        table.add_column(name, justify="right")
    table.add_column("we are faster,\nsame precision", justify="right")
    table.add_column("our p95", justify="right")
    table.add_column("we are faster,\ndefaults", justify="right")
    table.add_column("our p95", justify="right")
    for name, line in record["summary"].items():
        table.add_row(
            name,
            record["precisions"][name],
            f"{line['queries_per_second']:.2f}",
            f"{line['p50_seconds']:.2f}",
            f"{line['p95_seconds']:.2f}",
            f"{1000 * line['pause_seconds']:.0f}",
            *comparison(line.get("same_precision")),
            *comparison(line.get("default")),
        )
    console.print(table)
    for name, line in record["overhead"].items():
        low, high = line["quartiles"]
        console.print(
            f"{name}: {line['share']:+.2%} over the bare Reranker's "
            f"{1000 * line['bare_seconds']:.0f} ms (quartiles {low:+.2%}, {high:+.2%})"
        )
    for name, seconds in record["import_seconds"].items():
        console.print(f"import of the adapter for {name}: {seconds:.3f} s beyond its framework's")


def comparison(record: dict[str, Any] | None) -> tuple[str, str]:
    """Return a ratio with its range, and a share with its range."""
    if record is None:
        return "", ""
    low, high = record["range"]
    least, most = record["p95_range"]
    return (
        f"{record['times']:.2f}× ({low:.2f} – {high:.2f})",
        f"{record['p95_share']:.0%} ({least:.0%} – {most:.0%})",
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="in which each contestant has a turn")
    parser.add_argument(
        "--frameworks", nargs="+", choices=list(FRAMEWORKS), default=list(FRAMEWORKS)
    )
    parser.add_argument(
        "--resume", action="store_true", help="add to the rounds that --output holds already"
    )
    add_folders(
        parser,
        data=SQUAD_OR_SAMPLE,
        output="where adapters.json, adapters.log and the model go",
    )
    parser.add_argument(
        "--threads", type=int, default=machine.available_cpus(), help="threads of every process"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
