"""Compare numbers of epochs: `python benchmarks/recipe.py --help`.

    python benchmarks/recipe.py                                  # many hours on two cores
    python benchmarks/recipe.py --sets scifact --seeds 0 --epochs 1,3

Trains all-MiniLM-L6-v2 with a newly initialised head for several numbers of epochs, as quality.py
does, and compares each with the first one query by query, over the mean of the seeds. Figures are
those of quality.py, which resumes: `--output benchmarks/figures/quality` reads the ones that are
completed.
"""

import argparse
import os
import statistics
from collections.abc import Sequence

import numpy as np
from quality import FIRST_RATE, KEEP_MEMORY, METRIC, Quality
from rich.console import Console
from rich.table import Table
from shared.folders import add_device, add_folders
from shared.machine import set_environment

COLUMNS = ("set", "groups", "epochs", "seconds", "of seeds", METRIC, "minus the first")


def add_rows(table: Table, data: str, counts: Sequence[int], options: argparse.Namespace) -> None:
    """Add a row for each number of epochs."""
    from rerank_plugin.finetune.evaluation.significance import bootstrap_interval

    first = None
    for epochs in counts:
        quality = Quality(argparse.Namespace(**{**vars(options), "epochs": epochs}))
        quality.output.mkdir(parents=True, exist_ok=True)
        records = [quality.run(options.who, data, options.rate, seed) for seed in quality.seeds]
        # [seeds, queries]
        values = np.array([record["test"][METRIC] for record in records])
        first = values if first is None else first
        difference = (values - first).mean(0)
        low, high = bootstrap_interval(difference[None])[:, 0]
        table.add_row(
            data,
            str(options.groups),
            str(epochs),
            f"{statistics.median(record['seconds'] for record in records):.0f}",
            ", ".join(f"{mean:.3f}" for mean in values.mean(1)),
            f"{values.mean():.3f}",
            f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--epochs", default="1,2,3", help="some numbers; %(default)s")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rate", type=float, default=FIRST_RATE)
    parser.add_argument("--who", default="rerank-plugin", help="a contestant of quality.py")
    add_folders(parser, data="a folder of data sets", output="where figures go", name="quality")
    add_device(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads, options.device)
    os.environ.update(KEEP_MEMORY)
    table = Table(title=f"{METRIC} on test queries")
    for title in COLUMNS:
        table.add_column(title)
    for data in options.sets.split(","):
        add_rows(table, data, [int(count) for count in options.epochs.split(",")], options)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
