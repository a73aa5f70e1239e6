"""Evaluation of TREC runs with judgements; metrics equal those of trec_eval."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune import evaluate
from rerank_plugin.finetune.data.groups import Group
from rerank_plugin.finetune.evaluation.metrics import (
    BATCH_QUERIES,
    METRICS,
    ScoredQuery,
    query_metrics,
)
from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
from rerank_plugin.finetune.evaluation.trec_run import open_run
from rerank_plugin.inputs import Pair

from ..factories import Run, build_model, sample_texts, write_lines

#: The scores of the ranked documents of a query, and the grades of the judged ones.
RunScores = dict[str, float]
Grades = dict[str, int]

#: The names of our metrics in the results of trec_eval, and those that it is called with.
TREC_NAMES = dict(
    zip(
        METRICS,
        ("ndcg_cut_10", "recip_rank", "map", "success_1", "success_3", "recall_10"),
        strict=True,
    )
)
TREC_MEASURES = {"ndcg_cut.10", "recip_rank", "map", "success.1,3", "recall.10"}

DOCUMENTS = [f"d{number}" for number in range(25)]
SCORES = st.floats(-50, 50, width=32)
FOUND = st.dictionaries(st.sampled_from(DOCUMENTS), SCORES, min_size=1)
GRADES = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), min_size=1)


def trec_eval(ranked: RunScores, grades: Grades) -> dict[str, float]:
    evaluator = pytrec_eval.RelevanceEvaluator({"q": grades}, TREC_MEASURES)
    values = evaluator.evaluate({"q": ranked})["q"]
    # It has no cutoff for the reciprocal rank.
    values["recip_rank"] *= values["recip_rank"] >= 0.1
    return {name: values[trec_name] for name, trec_name in TREC_NAMES.items()}


def ours(ranked: RunScores, grades: Grades) -> dict[str, float]:
    scores = np.array(list(ranked.values()), np.float32)
    missed = [grade for name, grade in grades.items() if name not in ranked]
    ranking = ScoredQuery(scores, [grades.get(name, 0) for name in ranked], missed)
    return {name: float(values[0]) for name, values in query_metrics([ranking]).items()}


@given(FOUND.filter(lambda ranked: len(set(ranked.values())) == len(ranked)), GRADES)
def test_metrics_are_those_of_trec_eval(ranked: RunScores, grades: Grades) -> None:
    """With graded judgements, documents without one, and judged ones that were not ranked."""
    assert ours(ranked, grades) == pytest.approx(trec_eval(ranked, grades), abs=1e-6)


@given(st.dictionaries(st.sampled_from(DOCUMENTS), st.sampled_from((1.0, 2.0)), max_size=5), GRADES)
def test_a_tie_is_as_bad_as_its_worst_order(ranked: RunScores, grades: Grades) -> None:
    ranked = ranked or {"d0": 1.0}
    orders = [
        {name: ranked[name] + 0.1 * rank for rank, name in enumerate(order)}
        for order in itertools.permutations(ranked)
    ]
    every = [trec_eval(order, grades) for order in orders]
    worst = {name: min(values[name] for values in every) for name in METRICS}
    assert ours(ranked, grades) == pytest.approx(worst, abs=1e-6)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A run of 30 queries; one of them is not judged, and one judged query is not in it."""
    random = np.random.default_rng(0)
    texts = sample_texts()[:60]
    write_lines(
        tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    )
    queries = [{"_id": f"q{i}", "text": texts[i][:40]} for i in range(32)]
    write_lines(tmp_path / "queries.jsonl", queries)
    runs, judged = [], []
    for number in range(31):
        for rank, document in enumerate(random.permutation(60)[:20]):
            # Three documents have the same score.
            runs.append(f"q{number} Q0 d{document} {rank + 1} {20 - rank // 3} bm25")
    for number in [*range(30), 31]:
        for document in random.permutation(60)[:15]:
            judged.append(f"q{number}\t0\td{document}\t{random.integers(0, 4)}")
    (tmp_path / "run.trec").write_text("\n".join(runs) + "\n")
    (tmp_path / "qrels.tsv").write_text("\n".join(judged) + "\n")
    names = {"run": "run.trec", "qrels": "qrels.tsv"}
    names |= {name: f"{name}.jsonl" for name in ("queries", "corpus")}
    return {name: tmp_path / file for name, file in names.items()}


def parsed(files: dict[str, Path]) -> tuple[dict[str, RunScores], dict[str, Grades]]:
    ranked: dict[str, RunScores] = {}
    grades: dict[str, Grades] = {}
    for line in files["run"].read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        ranked.setdefault(query, {})[document] = float(score)
    for line in files["qrels"].read_text().splitlines():
        query, _, document, grade = line.split()
        grades.setdefault(query, {})[document] = int(grade)
    return ranked, grades


def test_a_run_is_ranked_as_trec_eval_ranks_it(files: dict[str, Path]) -> None:
    ranked, grades = parsed(files)
    names: dict[str, Any] = {name: files[name] for name in ("qrels", "queries", "corpus")}
    with open_run(files["run"], **names) as run:
        values = run.run_order().values
        assert run.counts.lines() == [
            "1 × queries of the qrels that the run lacks",
            "1 × queries of the run without a judgement, left out, for example 'q30'",
        ]
        first = run[0]
    assert len(first.documents) == 20
    assert first.query == sample_texts()[0][:40]
    for index, query in enumerate(query for query in ranked if query in grades):
        expected = trec_eval(ranked[query], grades[query])
        assert {name: values[name][index] for name in METRICS} == pytest.approx(expected, abs=1e-6)


def options(files: dict[str, Path]) -> list[object]:
    return [word for name, file in files.items() for word in (f"--{name}", file)]


def test_models_are_measured_beside_the_run(
    cli: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    models = [build_model(tmp_path / "a"), build_model(tmp_path / "b", hidden_size=64)]
    output = tmp_path / "figures.json"
    code, out, err = cli(
        "evaluate", "--model_dir", *models, *options(files), "--output", output, "--worst", 1
    )
    assert code == 0, err
    records = json.loads(output.read_text())["models"]
    assert [record["model"] for record in records] == [str(model) for model in models]
    for record in records:
        assert record["baseline"] == "the run's order"
        assert record["queries"] == 30
        assert f"{record['difference']['ndcg@10']:+.4f}" in out
    # The query that lost most, with the passages that the model ranks first and the positives.
    assert out.count("first relevant document at rank") >= 2
    assert "1 × queries of the run without a judgement, left out" in err

    report = tmp_path / "report"
    one = ["evaluate", "--model_dir", models[0], *options(files)]
    code, _, err = cli(*one, "--top_k", 5, "--report", report, "--output", output)
    assert code == 0, err
    html = (report / "report.html").read_text()
    assert "no relevant document among the candidates" in html or "at rank" in html
    cut = json.loads(output.read_text())
    assert cut["before"]["recall@10"] < records[0]["before"]["recall@10"]


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        ("run", "q0 Q0 d1 1", "run.trec:621: expected query, Q0, document, rank, score and"),
        ("run", "q0 d1 1", ":621: expected query, Q0, document, rank, score and tag, found 3"),
        ("run", "q0 Q0 a doc 1 2.0 bm25", "found 7 columns; ids with spaces need tabs"),
        ("run", "q0\tQ0\t\t1\t2.0\tbm25", "found 6 columns; a column is blank"),
        ("run", "q0 Q0 d1 1 1e39 bm25", ":621: the score '1e39' is not a finite number"),
        ("run", "q0 Q0 d1 1 nan bm25", ":621: the score 'nan' is not a finite number"),
        ("run", "q0 Q0 d1 1 high bm25", "run.trec:621: the score 'high' is not a finite number"),
        ("qrels", "q0\t0\td0\t0.5", "qrels.tsv:466: the grade 0.5 is not a whole number"),
        ("qrels", "q0\t0\td0\t3000000000", "the grade 3e+09 is not a whole number up to 1000"),
    ],
)
def test_bad_lines_are_named(
    files: dict[str, Any], tiny_model: Path, name: str, line: str, problem: str
) -> None:
    text = files[name].read_text().replace("q0\t0\td0\t", "q0\t0\td59\t")
    files[name].write_text(text + line + "\n")
    with pytest.raises(InputError, match=re.escape(problem)):
        evaluate(model_dir=tiny_model, **files)


def test_judgements_without_a_relevant_passage_are_an_error(
    files: dict[str, Any], tiny_model: Path
) -> None:
    files["qrels"].write_text("".join(f"q{i}\t0\td0\t0\n" for i in range(30)))
    with pytest.raises(InputError, match=r"qrels\.tsv: no passage is judged relevant for a query"):
        evaluate(model_dir=tiny_model, **files)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"metrics": ["nDCG@10", "foo@3"]}, "metrics: unknown metric 'foo@3'; use names such as"),
        ({"metrics": "R"}, "metrics: unknown metric 'R'"),
        ({"metrics": "NumRet"}, "metrics: unknown metric 'NumRet'"),
        ({"metrics": "ERR@10"}, "metrics: unknown metric 'ERR@10'"),
        ({"worst": -1}, "worst: must be at least 0, not -1"),
        ({"model_dir": ["m", "m"]}, "model_dir: the same model is given twice"),
        ({"data_path": "x.jsonl"}, "data_path: not allowed with --run"),
        ({"run": None}, "data_path: one of --data_path and --run is required"),
        ({"qrels": None}, "qrels: required by --run"),
        ({"run": None, "data_path": "x.jsonl"}, "qrels: requires --run"),
        ({"top_k": 0}, "top_k: must be at least 1, not 0"),
        ({"on_bad_line": "skip"}, "on_bad_line: skip is not allowed with --run"),
    ],
)
def test_options_that_do_not_fit(more: dict[str, Any], problem: str) -> None:
    files = {name: name for name in ("run", "qrels", "queries", "corpus")}
    with pytest.raises(OptionError, match=problem):
        evaluate(**({"model_dir": "m"} | files | more))


class Counted(Group):
    """A group that counts how many groups are in memory."""

    alive = most = 0

    def __post_init__(self) -> None:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


def test_texts_are_not_kept_in_memory() -> None:
    class Lengths:
        def logits(self, pairs: Sequence[Pair], progress: Any = None) -> Any:
            return np.array([len(pair[1]) for pair in pairs], np.float32)

    count = 5 * BATCH_QUERIES
    groups = (Counted(f"q{i}", [f"positive {i}"], ["negative", "n"]) for i in range(count))
    ranked = evaluate_groups(Lengths(), groups)
    assert ranked.means["queries"] == count
    assert Counted.most <= BATCH_QUERIES + 1
