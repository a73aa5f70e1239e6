import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.finetune.evaluation import significance
from rerank_plugin.finetune.evaluation.metrics import (
    METRICS,
    ScoredQuery,
    mean_metrics,
    query_metrics,
)
from rerank_plugin.finetune.evaluation.significance import compare_metrics, improvement_probability


def one(scores: list[float], grades: list[int]) -> dict[str, float]:
    means = mean_metrics(query_metrics([ScoredQuery(np.array(scores, np.float32), grades)]))
    assert means.pop("queries") == 1
    return means


def test_known_values() -> None:
    assert one([3, 2, 1], [1, 0, 0]) == dict.fromkeys(METRICS, 1.0)
    second = one([2, 3, 1], [1, 0, 0])
    assert second == pytest.approx(
        {
            "ndcg@10": 1 / np.log2(3),
            "mrr@10": 0.5,
            "map": 0.5,
            "hit@1": 0,
            "hit@3": 1,
            "recall@10": 1,
        }
    )
    behind_ten = one([*range(11, 0, -1)], [0] * 10 + [1])
    assert behind_ten["mrr@10"] == 0
    assert behind_ten["map"] == pytest.approx(1 / 11)


def test_ties_count_as_the_worst_order() -> None:
    same = one([0.5] * 12, [1] + [0] * 11)
    assert same["hit@3"] == same["ndcg@10"] == same["mrr@10"] == same["recall@10"] == 0
    assert same["map"] == pytest.approx(1 / 12)


RANKINGS = st.lists(
    st.tuples(st.floats(-3, 3, width=32), st.integers(0, 1)), min_size=2, max_size=30
).filter(lambda rows: any(grade for _, grade in rows))


@given(RANKINGS)
def test_agrees_with_the_definitions(rows: list[tuple[float, int]]) -> None:
    scores, grades = zip(*rows, strict=True)
    ranked = [grade for _, grade in sorted(rows, key=lambda row: (-row[0], row[1]))]
    gain = sum(grade / np.log2(rank + 1) for rank, grade in enumerate(ranked[:10], 1))
    ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(10, sum(grades)) + 1))
    ranks = [rank for rank, grade in enumerate(ranked, 1) if grade]
    means = one(list(scores), list(grades))
    assert means["ndcg@10"] == pytest.approx(gain / ideal, abs=1e-6)
    assert means["mrr@10"] == pytest.approx(1 / ranks[0] if ranks[0] <= 10 else 0, abs=1e-6)
    assert means["map"] == pytest.approx(
        np.mean([n / rank for n, rank in enumerate(ranks, 1)]), abs=1e-6
    )
    assert means["hit@1"] == ranked[0]
    assert means["recall@10"] == pytest.approx(sum(ranked[:10]) / sum(grades), abs=1e-6)


def test_rounding_is_not_a_gain() -> None:
    values = np.random.default_rng(0).random(50)
    for seed in range(20):
        turned = np.random.default_rng(seed).permutation(values)
        assert not compare_metrics({"ndcg@10": values}, {"ndcg@10": turned})["improved"]


def test_the_size_of_a_batch_of_samples_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    before, after = ({name: draws.random(12) for name in METRICS} for _ in range(2))
    expected = compare_metrics(before, after)["difference"]
    probability = improvement_probability(before["map"], after["map"])
    for queries in (1, 500):
        monkeypatch.setattr(significance, "DRAWN_AT_ONCE", queries)
        difference = compare_metrics(before, after)["difference"]
        assert difference["p_value"] == expected["p_value"]
        for name, interval in expected["interval_95"].items():
            assert difference["interval_95"][name] == pytest.approx(interval, abs=1e-12)
        assert improvement_probability(before["map"], after["map"]) == probability


def test_the_comparison_is_paired() -> None:
    draws = np.random.default_rng(0)
    before = {name: draws.random(200) for name in METRICS}
    after = {name: values + 0.1 for name, values in before.items()}
    compared = compare_metrics(before, after)
    assert compared["improved"] is True
    assert compared["difference"]["ndcg@10"] == pytest.approx(0.1)
    # Every query gains the same: the interval has no width, though queries differ widely.
    assert compared["difference"]["interval_95"]["ndcg@10"] == pytest.approx([0.1, 0.1])
    assert compare_metrics(after, before)["improved"] is False
    assert compare_metrics(after, after)["improved"] is False
    assert compared["before"]["queries"] == 200
