"""`fuse` finds how much a retriever counts, measures it on other queries, and keeps it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.finetune import fuse
from rerank_plugin.finetune.evaluation.fusion_figures import RetrievedQueries, RetrievedQuery
from rerank_plugin.finetune.evaluation.fusion_fit import FittedFusion, cross_fitted, fit_weights
from rerank_plugin.model.settings import RerankSettings

from ..factories import Run, easy_groups, train_on_easy_groups, write_lines


def drawn(
    queries: int = 200, *, logit: float, score: float, candidates: int = 15, seed: int = 0
) -> RetrievedQueries:
    """Draw queries whose relevant candidate has a higher logit and retrieval score by so much."""
    draws = np.random.default_rng(seed)
    rows = []
    for _ in range(queries):
        logits, scores = draws.normal(size=(2, candidates))
        relevant = int(draws.integers(candidates))
        logits[relevant] += logit
        scores[relevant] += score
        order = np.argsort(-scores)
        grades = [int(index == relevant) for index in order.tolist()]
        rows.append(RetrievedQuery(logits[order], 10 * scores[order] - 50, grades, []))
    return RetrievedQueries(rows, np.arange(queries, dtype=np.uint64))


def test_the_weight_is_that_of_the_most_likely_order() -> None:
    queries = drawn(2000, logit=1.0, score=2.0)
    # The log-odds of two normal distributions of deviation 1 that are so far apart. The spread of
    # the scores of all candidates is a little above 1.
    weights = fit_weights(queries, "score")
    assert weights.logit_weight == 1
    assert weights.weight == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize(
    ("logit", "score", "uses_retriever", "logit_weight"),
    [(2.0, 2.0, True, 1.0), (3.0, 0.0, False, 1.0), (-0.5, 3.0, True, 0.0)],
)
def test_each_weight_can_be_zero(
    logit: float, score: float, uses_retriever: bool, logit_weight: float
) -> None:
    queries = drawn(400, logit=logit, score=score, seed=3)
    fitted = FittedFusion.fit(queries)
    weights = fitted.weights[fitted.form]
    assert weights.logit_weight == logit_weight
    assert (weights.weight > 0.05) == uses_retriever
    best = max(
        queries.ndcg(query.logits for query in queries.queries),
        queries.ndcg(query.scores for query in queries.queries),
    )
    assert queries.ndcg(cross_fitted(queries)) >= best - 0.005


def groups(count: int = 30, *, informative: bool = True) -> list[dict[str, Any]]:
    """Return groups whose retriever is wrong now and then, or always guesses."""
    draws = np.random.default_rng(0)
    records = easy_groups(count, start=500, negatives=5)
    for record in records:
        scores = draws.normal(size=6)
        scores[0] += 2.0 if informative else 0.0
        record["pos_retrieval_scores"] = [float(scores[0])]
        record["neg_retrieval_scores"] = scores[1:].tolist()
    return records


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A reranker that guesses."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def test_fuse(model: Path, tmp_path: Path) -> None:
    without = easy_groups(2, start=900)
    data = write_lines(tmp_path / "dev.jsonl", groups() + without)
    result = fuse(model_dir=model, data_path=data, max_length=48, dtype="float32")
    assert result.improved
    assert result.fused["queries"] == 30
    assert result.fused["ndcg@10"] > result.reranker["ndcg@10"]
    low, high = result.differences["reranker"]["interval_95"]["ndcg@10"]
    gain = result.fused["ndcg@10"] - result.reranker["ndcg@10"]
    assert low < gain < high
    settings = RerankSettings.read(model)
    assert settings.fusion == json.loads(json.dumps(result.fusion))
    assert settings.fusion["score"]["calibration"]["queries"] == 30
    assert "rank together" in result.summary

    reranker = Reranker(model, max_length=48, dtype="float32", normalize="none")
    group = groups()[0]
    texts = [*group["pos"], *group["neg"]]
    scores = [*group["pos_retrieval_scores"], *group["neg_retrieval_scores"]]
    plain = reranker.logits([(group["query"], text) for text in texts])
    fused = reranker.rank(group["query"], texts, retrieval_scores=scores)
    assert sorted(document.index for document in fused) == list(range(6))
    assert {document.index: document.score for document in fused} != dict(enumerate(plain))


def test_a_retriever_that_guesses_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    folder = train_on_easy_groups(tiny_model, tmp_path / "trained", total_epoch=4).model_dir
    before = RerankSettings.read(folder)
    assert not before.fusion
    data = write_lines(tmp_path / "dev.jsonl", groups(informative=False))
    result = fuse(model_dir=folder, data_path=data)
    assert not result.improved
    assert not result.fusion
    assert "The retriever adds nothing" in result.summary
    assert RerankSettings.read(folder) == before


def test_a_run_on_groups_with_scores_is_fused(tiny_model: Path, tmp_path: Path) -> None:
    evaluation = write_lines(tmp_path / "evaluation.jsonl", groups(60))
    folder = train_on_easy_groups(
        tiny_model, tmp_path / "trained", total_epoch=0.2, lr=1e-5, eval_data_path=evaluation
    ).model_dir
    fusion = RerankSettings.read(folder).fusion
    assert fusion["fused"]["queries"] == 30
    assert fusion["fused"]["ndcg@10"] > fusion["reranker"]["ndcg@10"]
    assert fusion["score"]["weight"] > 0
    for page in ("README.md", "report.html"):
        assert "rank together. On 30 queries that were not fitted" in (folder / page).read_text()
    page = (folder / "report.html").read_text()
    row = f'<th scope="row">fused</th><td>{fusion["fused"]["ndcg@10"]:.4f}</td>'
    assert row in page and ">fused − reranker</th>" in page


def test_the_command_reads_a_run(cli: Run, model: Path, tmp_path: Path) -> None:
    records = groups()
    texts = [[*record["pos"], *record["neg"]] for record in records]
    corpus = [
        {"id": f"{i}-{n}", "text": text}
        for i, row in enumerate(texts)
        for n, text in enumerate(row)
    ]
    write_lines(tmp_path / "corpus.jsonl", corpus)
    queries = [{"id": str(i), "text": record["query"]} for i, record in enumerate(records)]
    write_lines(tmp_path / "queries.jsonl", queries)
    (tmp_path / "qrels.tsv").write_text("".join(f"{i}\t{i}-0\t1\n" for i in range(len(records))))
    run = [
        f"{i} Q0 {i}-{n} 1 {score} test\n"
        for i, record in enumerate(records)
        for n, score in enumerate(
            [*record["pos_retrieval_scores"], *record["neg_retrieval_scores"]]
        )
    ]
    (tmp_path / "dev.trec").write_text("".join(run))
    files = {"run": "dev.trec", "qrels": "qrels.tsv"}
    files |= {name: f"{name}.jsonl" for name in ("queries", "corpus")}
    options = [word for name, file in files.items() for word in (f"--{name}", tmp_path / file)]
    code, out, err = cli("fuse", model, *options, "--max_length", 48)
    assert code == 0, err
    assert "retriever" in out and "ndcg@10 of fused, compared with each" in out
    assert "rank together" in err
    assert RerankSettings.read(model).fusion["fused"]["queries"] == 30

    metrics = tmp_path / "metrics.json"
    evaluate = ["evaluate", "--model_dir", model, *options, "--max_length", 48]
    code, out, err = cli(*evaluate, "--output", metrics, "--report", tmp_path / "report")
    assert code == 0, err
    assert "ndcg@10 of fused, compared with each" in out
    record = json.loads(metrics.read_text())
    assert record["fusion"]["retriever"]["ndcg@10"] == pytest.approx(record["before"]["ndcg@10"])
    assert record["fusion"]["reranker"]["ndcg@10"] == pytest.approx(record["after"]["ndcg@10"])
    fused = record["fusion"]["fused"]["ndcg@10"]
    assert fused > record["after"]["ndcg@10"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert f'<th scope="row">fused</th><td>{fused:.4f}</td>' in page


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "--data_path: one of --data_path and --run is required"),
        ({"data_path": "few.jsonl"}, "4 queries with retrieval scores are too few to fit how"),
        ({"data_path": "plain.jsonl"}, "0 queries with retrieval scores are too few to fit how"),
        ({"model_dir": "no/model", "data_path": "few.jsonl"}, "--model_dir: not a folder"),
    ],
)
def test_bad_options(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("few.jsonl"), groups(4))
    write_lines(Path("plain.jsonl"), easy_groups(4))
    with pytest.raises(InputError) as error:
        fuse(**{"model_dir": model, "max_length": 48, **options})
    assert expected in str(error.value)
    assert not (model / "rerank.json").exists()
