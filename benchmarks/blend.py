"""Measure what fine-tuning forgets and a blend keeps: `python benchmarks/blend.py --help`.

    python benchmarks/blend.py                          # everything: hours on one core
    python benchmarks/blend.py --seeds 0 --pairs squad:scifact
    python benchmarks/blend.py --bases build/benchmarks/recipe/bases
    python benchmarks/blend.py --device cuda --jobs 6 --max_len 256 --candidates 50
    python benchmarks/blend.py --rate 2e-4 --pairs sample:squad     # a rate that forgets

A reranker that was trained on one set is fine-tuned on another one. Blends of both are ranked on
validation queries of the new set and on dev queries of the old one, which choose the blend as
`--general_data_path` does, and without the old queries as without it. The test queries of both sets
show what is gained and lost: the base, the fine-tuned model alone and the chosen blends. What is
done is not done again: the same command resumes an interrupted benchmark.
"""

import argparse
import json
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.bases import bases
from shared.folders import add_device, add_folders, add_jobs
from shared.jobs import Jobs, Record
from shared.machine import device, set_environment
from shared.texts import set_folder

#: Of every run.
VALIDATION_GROUPS, STEPS_BETWEEN = 60, 19

#: The first groups of dev, which the runs report on by themselves.
REPORTED_GROUPS = 8

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Run:
    """A reranker of one set, fine-tuned on another one."""

    start: str
    target: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.start}-{self.target}-{self.seed}"


@dataclass(frozen=True)
class Bench:
    """Where everything is, and what all runs share."""

    data: Path
    output: Path
    #: The rerankers that runs start from, by their sets.
    bases: dict[str, Path]
    max_len: int
    #: Training groups of a run.
    count: int
    #: Candidates of a test query, positives included; dev queries have two thirds of them.
    candidates: int
    #: The learning rate; None for the default.
    rate: float | None

    def groups(self, run: Run) -> dict[str, list[dict[str, Any]]]:
        """Return the training and validation groups of a run, and those that it reports on."""
        train = read_groups(set_folder(self.data, run.target) / "train.jsonl")
        random.Random(run.seed).shuffle(train)
        dev = read_groups(set_folder(self.data, run.target) / "dev.jsonl")[:REPORTED_GROUPS]
        return {
            "train": train[: self.count],
            "validation": train[self.count : self.count + VALIDATION_GROUPS],
            "few": [shortened(group, 8) for group in dev],
        }

    def tuned(self, run: Run) -> Path:
        """Return the folder of a run's model without a blend, trained unless it is there."""
        from rerank_plugin.finetune import FinetuneConfig, finetune

        folder = self.output / "models" / run.name
        if folder.is_dir():
            return folder
        files = self.output / "data" / run.name
        files.mkdir(parents=True, exist_ok=True)
        for name, groups in self.groups(run).items():
            text = "".join(json.dumps(group) + "\n" for group in groups)
            (files / f"{name}.jsonl").write_text(text, encoding="utf-8")
        finetune(
            FinetuneConfig(
                model_name_or_path=str(self.bases[run.start]),
                data_path=str(files / "train.jsonl"),
                eval_data_path=str(files / "validation.jsonl"),
                test_data_path=str(files / "few.jsonl"),
                finetune_model_dir=str(folder),
                max_len=self.max_len,
                seed=run.seed,
                blend=1,
                lr=self.rate,
                device=device(),
                trainer={"eval_steps": STEPS_BETWEEN, "report_to": "none"},
            )
        )
        return folder

    def evaluation(self, run: Run, alpha: float, queries: str) -> Any:
        """Return the evaluation of a blend on some queries, unless it is known.

        Args:
            run: The run.
            alpha: The share of its weights; at 0 it is the base.
            queries: `validation` of the target, or `dev:SET`, `test:SET`.
        """
        from rerank_plugin import Reranker
        from rerank_plugin.finetune.evaluation.scoring import Evaluation, evaluate_groups
        from rerank_plugin.io.atomic import write_text

        # The base is the same in all seeds.
        owner = run.start if alpha == 0 and queries != "validation" else run.name
        path = self.output / "figures" / f"{owner}-{alpha}-{queries.replace(':', '-')}.json"
        if not path.is_file():
            reranker = Reranker(self.blended(run, alpha), max_length=self.max_len, device=device())
            evaluation = evaluate_groups(reranker, self.judged(run, queries))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(evaluation.to_dict()))
        return Evaluation.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def judged(self, run: Run, queries: str) -> list[Any]:
        """Return queries by their name."""
        from rerank_plugin.finetune.data.groups import Group

        split, _, name = queries.partition(":")
        if split == "validation":
            records = self.groups(run)["validation"]
        else:
            count = self.candidates if split == "test" else 2 * self.candidates // 3
            groups = read_groups(set_folder(self.data, name) / f"{split}.jsonl")
            records = [shortened(group, count) for group in groups]
        return [Group(query=r["query"], pos=r["pos"], neg=r["neg"]) for r in records]

    def blended(self, run: Run, alpha: float) -> str:
        """Return the folder of a blend."""
        if alpha == 0:
            return str(self.bases[run.start])
        tuned = self.tuned(run)
        folder = self.output / "blends" / f"{run.name}-{alpha}"
        if alpha == 1:
            return str(tuned)
        if not folder.is_dir():
            from rerank_plugin.finetune.blending.weights import blend_weights
            from rerank_plugin.finetune.export.model_folder import save_model
            from rerank_plugin.model.loading import load_model

            made = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(tuned, made)
            loaded = load_model(tuned)
            base = dict(load_model(self.bases[run.start]).model.named_parameters())
            blend_weights(loaded.model, base, alpha)
            save_model(loaded, made)
            made.rename(folder)
        return str(folder)

    def choice(self, run: Run, *, general: bool) -> Any:
        """Return the blend that a run with or without general queries would choose."""
        from rerank_plugin.finetune.blending.choice import Trial, choose_blend
        from rerank_plugin.finetune.training.model_selection import EVIDENCE, win_probability

        base = self.evaluation(run, 0, "validation")

        def trial(alpha: float) -> Trial:
            validation = self.evaluation(run, alpha, "validation")
            if not general:
                return Trial(alpha, validation)
            return Trial(alpha, validation, self.evaluation(run, alpha, f"dev:{run.start}"))

        before = self.evaluation(run, 0, f"dev:{run.start}") if general else None
        return choose_blend(trial, lambda e: win_probability(base, e) >= EVIDENCE, before)


@cache
def lines_of(path: Path) -> tuple[str, ...]:
    """Return the lines of a file."""
    return tuple(path.read_text(encoding="utf-8").splitlines())


def read_groups(path: Path) -> list[dict[str, Any]]:
    """Return the groups of a file."""
    return [json.loads(line) for line in lines_of(path)]


def shortened(group: dict[str, Any], candidates: int) -> dict[str, Any]:
    """Return a group with so many candidates: its positives and the first negatives."""
    return {**group, "neg": group["neg"][: max(1, candidates - len(group["pos"]))]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", default="squad:scifact,scifact:squad", help="start:target")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--bases", type=Path, help="a folder with the rerankers of the sets")
    parser.add_argument("--max_len", type=int, default=128)
    parser.add_argument("--groups", type=int, default=300, help="of the new set; %(default)s")
    parser.add_argument("--rate", type=float, help="a learning rate other than the default")
    parser.add_argument("--candidates", type=int, default=15, help="of a test query; %(default)s")
    add_folders(parser, data="a folder of data sets", output="where models go", name="blend")
    add_device(parser)
    add_jobs(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    options = parser.parse_args()
    set_environment(options.threads, options.device)
    pairs = [tuple(pair.split(":")) for pair in options.pairs.split(",")]
    seeds = list(map(int, options.seeds.split(",")))
    options.output.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(start for start, _ in pairs)
    sets = [set_folder(options.data, name) for name in names]
    sizes = options.max_len, options.groups, options.candidates, options.rate
    runs = [Run(start, target, seed) for seed in seeds for start, target in pairs]
    records = options.output / "records"
    with Jobs(options.jobs, options.output / "log.txt") as jobs:
        started = bases(jobs, options.bases or options.output / "bases", sets)
        bench = Bench(options.data, options.output, started, *sizes)
        measured = [jobs.submit(records / f"{run.name}.json", measure, bench, run) for run in runs]
        print_rows(row for job in measured for row in job.record["rows"])
    return 0


def measure(bench: Bench, run: Run) -> Record:
    """Return a row for the fine-tuned model alone and for each choice of a blend."""
    bench.tuned(run)
    chosen = {
        "alone": 1.0,
        "with general queries": bench.choice(run, general=True).chosen.alpha,
        "without": bench.choice(run, general=False).chosen.alpha,
    }
    rows = []
    for kind, alpha in chosen.items():
        row: Record = {**asdict(run), "kind": kind, "alpha": alpha}
        for side, name in (("target", run.target), ("other", run.start)):
            for title, share in (("base", 0), ("alone", 1.0), ("blend", alpha)):
                values = bench.evaluation(run, share, f"test:{name}").values[METRIC]
                row[f"{side} {title}"] = values.tolist()
        rows.append(row)
    return {"rows": rows}


def print_rows(rows: Iterable[Record]) -> None:
    """Print every run, and the means over seeds with paired intervals."""
    from rerank_plugin.finetune.evaluation.significance import bootstrap_interval

    rows = list(rows)
    table = Table(title=f"{METRIC} on test queries")
    titles = ("start", "target", "seed", "blend", "share")
    for title in (*titles, "target: base, alone, blend", "start: base, alone, blend"):
        table.add_column(title)
    for row in rows:
        figures = [
            ", ".join(
                f"{np.mean(row[f'{side} {title}']):.3f}" for title in ("base", "alone", "blend")
            )
            for side in ("target", "other")
        ]
        named = (row["start"], row["target"], str(row["seed"]), row["kind"], f"{row['alpha']:.1f}")
        table.add_row(*named, *figures)
    Console(width=150).print(table)
    for start, target, kind in sorted({(r["start"], r["target"], r["kind"]) for r in rows}):
        same = [r for r in rows if (r["start"], r["target"], r["kind"]) == (start, target, kind)]
        for side in ("target", "other"):
            for first, second in (("alone", "blend"), ("base", "blend")):
                # The mean over seeds of every query, so that queries are drawn, and not runs.
                sides = (np.array([r[f"{side} {name}"] for r in same]) for name in (second, first))
                delta = np.subtract(*sides).mean(0)
                low, high = bootstrap_interval(delta[None])[:, 0]
                print(
                    f"{start} to {target}, {kind}, {side} set: {second} − {first} "
                    f"{delta.mean():+.4f} ({low:+.4f} to {high:+.4f})"
                )


if __name__ == "__main__":
    raise SystemExit(main())
