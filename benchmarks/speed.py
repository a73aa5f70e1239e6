"""Measure this project side by side with its peers: `python benchmarks/speed.py --help`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peers.exports import EXPORTERS, export
from peers.scorers import OURS
from peers.table import PACKAGES, installed_scorers
from peers.trainers import GROUP_SIZE, MAX_LENGTH
from rich.console import Console
from shared import machine
from shared.folders import SQUAD_OR_SAMPLE, add_device, add_folders
from shared.models import MODELS, model_folder
from shared.report import plot, print_agreement, print_machine, print_row
from shared.results import Results, Row
from shared.scoring import (
    DOCUMENTS,
    RAG_DOCUMENTS,
    check_agreement,
    measure_latency,
    measure_scoring,
    open_workers,
)
from shared.texts import MIXES, Source, Texts
from shared.training import Workload, measure_training
from shared.workers import WorkerError, run_apart
from tokenizers import Tokenizer

KINDS = ("scoring", "latency", "training")


@dataclass(frozen=True)
class Size:
    """The amount of work that one model is measured with."""

    #: Length mixes that are scored, queries of a round (32 documents each), and rounds.
    mixes: tuple[str, ...]
    queries: int
    rounds: int
    #: Queries whose latency is measured; none leaves the row out.
    latency_queries: int = 0
    #: Groups that are trained on, groups of a step, and how often; none leaves the row out.
    groups: int = 0
    batch_groups: int = 8
    training_rounds: int = 1


# A base-size model takes eight times as long as MiniLM, and in the peers' hands a step of 8 groups
# of it takes about 20 GB.
FULL = {
    "minilm": Size(("own", "wide", "equal"), queries=6, rounds=3, latency_queries=12, groups=32),
    "bert-base": Size(("own", "wide"), queries=2, rounds=2, groups=4, batch_groups=2),
    "xlmr-base": Size(("own",), queries=2, rounds=1),
}
#: A GPU has more to do in a second, and memory for large models.
GPU = {
    "xlmr-base": Size(
        ("own", "full"), queries=32, rounds=3, latency_queries=20, groups=256, batch_groups=16
    ),
    "xlmr-large": Size(("own", "full"), queries=16, rounds=3, groups=64, batch_groups=8),
}
QUICK = {
    "minilm": Size(
        ("own", "wide"), queries=1, rounds=2, latency_queries=1, groups=4, batch_groups=4
    ),
    "bert-base": Size(("own",), queries=1, rounds=1, groups=1, batch_groups=1),
    "xlmr-base": Size(("own",), queries=1, rounds=1),
}


class Benchmark:
    """One run of the benchmark.

    Args:
        options: The command line.
        console: Where progress and results are printed.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.console = console
        self.kinds: list[str] = options.rows
        self.models: list[str] = options.models
        self.quick: bool = options.quick
        #: This project and the peers that are asked for.
        self.scorers = [who for who in installed_scorers() if who in (OURS, *options.peers)]
        self.sizes = dict(sizes(options))
        if options.groups:
            for name, size in self.sizes.items():
                self.sizes[name] = replace(size, groups=options.groups)
        self.output: Path = options.output
        self.output.mkdir(parents=True, exist_ok=True)
        self.log = self.output / "speed.log"
        self.source = Source.read(options.data)
        settings = {
            "texts": self.source.name,
            "threads": options.threads,
            "device": options.device,
            "scorers": self.scorers,
            "sizes": {name: asdict(size) for name, size in self.sizes.items()},
        }
        self.results = Results(
            self.output / "speed.json", machine.describe(options.threads), settings
        )
        if options.resume:
            self.results.resume()

    def run(self) -> None:
        """Measure every row, and keep each as soon as it is there."""
        print_machine(self.console, self.results.machine)
        for model in self.models:
            folder = model_folder(model, self.output / "models" / model, self.source)
            self.score(model, folder)
            if "training" in self.kinds and self.sizes[model].groups:
                self.train(model, folder)
        plot(self.results, self.output / "speed.png")
        self.console.print(f"written: {self.results.path}, {self.output / 'speed.png'}")

    def score(self, model: str, folder: Path) -> None:
        """Measure scoring and latency of a model, with one set of processes for all rows."""
        rows = [row for row in self.scoring_rows(model) if not self.results.find(row.key)]
        if not rows:
            return
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.export(model, folder)
        self.console.print(f"{model}: loading all contestants")
        with open_workers(folder, self.log, self.scorers) as workers:
            texts = Texts(self.source, "wide", tokenizer, seed=0)
            agreement = check_agreement(workers, texts.requests(4, 5))
            self.results.agreement[model] = agreement
            print_agreement(self.console, agreement)
            for row in rows:
                self.console.print(f"{row.key} …")
                texts = Texts(self.source, row.workload, tokenizer, seed=1)
                size = self.sizes[model]
                if row.kind == "scoring":
                    measure_scoring(
                        row, workers, texts, folder, queries=size.queries, rounds=size.rounds
                    )
                else:
                    measure_latency(row, workers, texts, folder, queries=size.latency_queries)
                self.keep(row)

    def export(self, model: str, folder: Path) -> None:
        """Write what the runtimes load instead of the model folder."""
        for who in self.scorers:
            if who in EXPORTERS:
                self.console.print(f"{model}: exporting for {who}")
                run_apart(export, folder, who, log=self.log)

    def scoring_rows(self, model: str) -> list[Row]:
        """Return the rows of scoring and latency that are asked for."""
        size = self.sizes[model]
        name = self.source.name
        rows = []
        if "scoring" in self.kinds:
            rows += [
                Row(
                    "scoring", model, mix, f"{name}, {MIXES[mix]}; {size.queries * DOCUMENTS} pairs"
                )
                for mix in size.mixes
            ]
        if "latency" in self.kinds and size.latency_queries:
            title = (
                f"{name}, one query with {RAG_DOCUMENTS} documents, {size.latency_queries} times"
            )
            rows.append(Row("latency", model, "own", title))
        return rows

    def train(self, model: str, folder: Path) -> None:
        """Measure training a model."""
        size = self.sizes[model]
        title = (
            f"{self.source.name}, {size.groups} groups of {GROUP_SIZE}, "
            f"{size.batch_groups} groups a step, pairs of at most {MAX_LENGTH} tokens"
        )
        row = Row("training", model, "groups", title)
        row = self.results.find(row.key) or row
        workload = Workload.prepare(
            folder,
            self.source,
            self.output / "training" / model,
            self.log,
            groups=size.groups,
            batch_groups=size.batch_groups,
        )
        self.console.print(f"{row.key} …")
        for line in measure_training(row, workload, rounds=size.training_rounds, quick=self.quick):
            self.console.print(f"  {line}")
            self.results.keep(row)
        self.keep(row)

    def keep(self, row: Row) -> None:
        """Save a row that is finished, and show it."""
        self.results.keep(row)
        print_row(self.console, row)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    machine.set_environment(options.threads, options.device)
    # A file has room for a whole table.
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        Benchmark(options, console).run()
    except KeyboardInterrupt:
        console.print("interrupted: --resume resumes after the last finished row")
        return 1
    except WorkerError as error:
        console.print(f"{error}; --resume resumes from there")
        return 1
    return 0


def sizes(options: argparse.Namespace) -> dict[str, Size]:
    """Return how much is measured of which model."""
    if options.quick:
        return QUICK
    return GPU if options.device == "cuda" else FULL


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a look in minutes; the figures are rough"
    )
    parser.add_argument(
        "--rows", type=names(KINDS), default=list(KINDS), help="of scoring,latency,training"
    )
    parser.add_argument("--models", type=names(MODELS), help=f"of {','.join(MODELS)}")
    peers = [who for who in PACKAGES if who != OURS]
    parser.add_argument(
        "--peers",
        type=names(peers),
        default=peers,
        help=f"who scores beside this project, of {','.join(peers)}",
    )
    parser.add_argument(
        "--groups",
        type=int,
        help="groups to train on, instead of few enough for a run of everything",
    )
    add_folders(
        parser,
        data=SQUAD_OR_SAMPLE,
        output="where speed.json, speed.png, speed.log and the models go",
    )
    add_device(parser)
    parser.add_argument(
        "--threads", type=int, default=machine.available_cpus(), help="threads of every process"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that --output holds already"
    )
    options = parser.parse_args(argv)
    measured = sizes(options)
    options.models = options.models or (["minilm"] if options.quick else list(measured))
    unknown = [name for name in options.models if name not in measured]
    if unknown:
        parser.error(f"{unknown[0]} is not measured on {options.device}")
    return options


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser of names with commas between them."""
    choices = list(known)

    def parsed(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(choices)}")
        return chosen

    return parsed


if __name__ == "__main__":
    raise SystemExit(main())
