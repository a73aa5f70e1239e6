"""`evaluate`: metrics of models on groups, and their comparison with a baseline."""

import json
from math import log2
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin import Reranker
from rerank_plugin.errors import CheckFailedError, InputError
from rerank_plugin.finetune import EvaluationResult, evaluate
from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.evaluation.metrics import METRICS
from rerank_plugin.finetune.evaluation.scoring import evaluate_groups

from ..factories import Run, build_model, easy_groups, write_lines


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "test.jsonl", easy_groups(30))


@pytest.fixture(scope="module")
def result(
    data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationResult:
    other = build_model(tmp_path_factory.mktemp("models") / "other", hidden_size=64)
    return evaluate(model_dir=tiny_model, data_path=data, baseline=other, device="cpu")


def test_metrics_are_those_of_the_groups(
    result: EvaluationResult, data: Path, tiny_model: Path
) -> None:
    expected = evaluate_groups(Reranker(tiny_model, device="cpu"), list(read_groups(str(data))))
    assert result.metrics == expected.means
    assert set(result.metrics) == {*METRICS, "queries"}


def test_ndcg_counts_the_grades_of_groups(tmp_path: Path, tiny_model: Path) -> None:
    group: dict[str, Any] = {
        "query": "q",
        "pos": ["noon", "ferry"],
        "neg": ["dogs"],
        "pos_labels": [1, 3],
    }
    path = write_lines(tmp_path / "g.jsonl", [group])
    scores = Reranker(tiny_model, device="cpu").score(
        [("q", text) for text in group["pos"] + group["neg"]]
    )
    ranked = [grade for _, grade in sorted(zip(-scores, (1, 3, 0), strict=True))]
    gains = [
        sum(g / log2(rank + 2) for rank, g in enumerate(grades)) for grades in (ranked, [3, 1])
    ]
    result = evaluate(model_dir=tiny_model, data_path=path, device="cpu")
    assert result.metrics["ndcg@10"] == pytest.approx(gains[0] / gains[1])


def test_a_baseline_is_compared_query_by_query(result: EvaluationResult) -> None:
    (comparison,) = result.comparisons.values()
    before, after = (evaluation.means["ndcg@10"] for evaluation in comparison.evaluations)
    assert result.improved == comparison.improved == (after > before)
    assert comparison.difference["ndcg@10"] == pytest.approx(after - before)
    changes = [query.after.value - query.before.value for query in comparison.hurt_queries]
    assert changes == sorted(changes) and all(change < 0 for change in changes)
    record = json.loads(json.dumps(result.to_dict()))
    assert record["ndcg@10"] == record["after"]["ndcg@10"] == after
    assert record["before"]["ndcg@10"] == before
    assert len(record["per_query"]["ndcg@10"]) == 30


def test_checks_name_the_model_that_does_not_hold(result: EvaluationResult) -> None:
    result.check(fail_below=0.0)
    with pytest.raises(CheckFailedError, match=r"--fail_below: ndcg@10 0\.\d+ of .* is below 1"):
        result.check(fail_below=1.0)


def test_nothing_is_printed(
    data: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(model_dir=str(tiny_model), data_path=str(data))
    assert capsys.readouterr() == ("", "")


def test_bad_lines_are_skipped_and_saved(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text() + '{"query": "q"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:31: "):
        evaluate(model_dir=tiny_model, data_path=bad)
    skipped = tmp_path / "skipped.jsonl"
    result = evaluate(
        model_dir=tiny_model, data_path=bad, on_bad_line="skip", skipped_lines=skipped
    )
    assert result.metrics["queries"] == 30
    assert json.loads(skipped.read_text())["line"] == 31


def test_metrics_have_the_spelling_of_ir_measures(
    cli: Run, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "metrics.json"
    names = ["AP", "P@1", "nDCG@10", "RR@10", "hit@1", "ndcg@10"]
    arguments = ["--model_dir", tiny_model, "--data_path", data, "--output", output]
    assert cli("evaluate", *arguments, "--metrics", *names)[0] == 0
    record = json.loads(output.read_text())
    assert record["schema_version"] == 1
    after = record["after"]
    assert list(after) == [*names, "queries"]
    assert (after["nDCG@10"], after["P@1"]) == (after["ndcg@10"], after["hit@1"])
    code, _, err = cli("evaluate", *arguments, "--metrics", *names, "--fail_below", 1)
    assert code == 3 and "--fail_below: AP 0." in err
