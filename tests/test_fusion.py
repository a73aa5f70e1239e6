"""Rankings that count the scores of a retriever beside the logits."""

import asyncio
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.fusion import Fusion
from rerank_plugin.inputs import DocumentsToRank
from rerank_plugin.model.settings import RerankSettings
from rerank_plugin.ranking import RankingPolicy, ScoreScale

from .factories import Run, sample_texts, write_lines

SCALE = {"mean": 0.5, "spread": 0.1}
PLAIN = {"scale": 1.0, "bias": 0.0}
FUSED = {"scale": 2.0, "bias": 1.0}
SCORES = st.none() | st.floats() | st.floats(0, 1, width=16)


def term(weight: float, logit_weight: float = 1.0) -> dict[str, Any]:
    thresholds = {"precision@0.9": 0.7}
    weights = {"logit_weight": logit_weight, "weight": weight}
    return {**weights, "calibration": FUSED, "thresholds": thresholds}


def settings_with(form: str = "score", **terms: float) -> RerankSettings:
    record = {"form": form, "score": term(1.0), "rank": term(10.0), "scale": SCALE}
    return RerankSettings(
        calibration=PLAIN,
        thresholds={"precision@0.9": 0.6},
        fusion=record | {name: term(weight) for name, weight in terms.items()},
    )


def fused(logits: list[float], scores: list[float | None], **terms: Any) -> list[float]:
    values, _ = Fusion(settings_with(**terms)).fuse(np.array(logits, np.float32), scores)
    return [float(value) for value in values]


def order(values: list[float]) -> list[int]:
    return [int(index) for index in np.argsort(-np.array(values), kind="stable")]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@given(
    documents=st.lists(st.tuples(st.floats(-20, 20, width=16), SCORES), max_size=30),
    blank=st.sets(st.integers(0, 29)),
    form=st.sampled_from(["score", "rank"]),
)
def test_nothing_is_lost(
    documents: list[tuple[float, float | None]], blank: set[int], form: str
) -> None:
    logits = [-np.inf if i in blank else logit for i, (logit, _) in enumerate(documents)]
    texts = [str(index) for index in range(len(documents))]
    request: DocumentsToRank[str] = DocumentsToRank.from_request(
        ("q", texts, None, [score for _, score in documents])
    )
    settings = settings_with(form)
    scale = ScoreScale("sigmoid", settings, Fusion(settings))
    ranked = RankingPolicy().rank(request, np.array(logits, np.float32), scale)
    indices = [document.index for document in ranked.ranking]
    assert sorted(indices) == list(range(len(documents)))
    assert all(0 <= score <= 1 for score in ranked.scores)
    blanks = sorted(blank.intersection(indices))
    assert indices[len(indices) - len(blanks) :] == blanks


@given(
    scores=st.lists(st.integers(-50, 50), min_size=4, max_size=30),
    factor=st.sampled_from([0.01, 1, 7]),
    shift=st.integers(-9, 9),
)
def test_the_scale_of_scores_does_not_matter(scores: list[int], factor: float, shift: int) -> None:
    logits = [float(index % 3) for index in range(len(scores))]
    best_first = sorted(map(float, scores), reverse=True)
    moved = [factor * score + shift for score in best_first]
    np.testing.assert_allclose(fused(logits, [*best_first]), fused(logits, [*moved]), atol=1e-4)


@given(st.integers(20, 200), st.integers(0, 1000))
def test_a_longer_list_keeps_the_order_of_its_first_documents(depth: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    scores = sorted(draws.normal(size=200).tolist(), reverse=True)
    logits = draws.normal(size=200).tolist()
    for form in ("score", "rank"):
        long = order(fused(logits, scores, form=form))
        short = order(fused(logits[:depth], scores[:depth], form=form))
        assert [index for index in long if index < depth] == short


def test_a_weight_of_zero_on_either_side() -> None:
    logits, scores = [0.0, 2.0, 1.0], [3.0, 1.0, 2.0]
    assert order(fused(logits, [*scores], score=0.0)) == [1, 2, 0]
    settings = settings_with()
    settings.fusion["score"] = term(1.0, 0.0)
    values, _ = Fusion(settings).fuse(np.array([0, 2, -np.inf], np.float32), scores)
    assert order(values.tolist()) == [0, 1, 2]
    assert values[2] == -np.inf


@pytest.mark.parametrize("scores", [[None, None, None], [5.0, float("nan"), 3.0], [1.0, 2.0, 3.0]])
def test_without_usable_scores_the_order_counts(scores: list[float | None]) -> None:
    checked = DocumentsToRank.from_request(("q", ["a", "b", "c"], None, scores)).retrieval_scores
    assert checked is not None
    assert fused([0.0, 0.0, 0.0], [*checked]) == pytest.approx([10 / 11, 10 / 12, 10 / 13])


def test_other_scales_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    fusion = Fusion(settings_with())
    logits = np.zeros(3, np.float32)
    with caplog.at_level(logging.WARNING):
        fusion.fuse(logits, [0.6, 0.5, 0.4])
        assert not caplog.messages
        for _ in range(2):
            fusion.fuse(logits, [30.0, 20.0, 10.0])
            fusion.fuse(logits, [0.1, 0.2, 0.3])
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "retrieval scores are on another scale (mean 20, deviation 8.16) than those that their "
        "weight was fitted on (0.5, 0.1)",
        "retrieval scores rise from the first document to the last, as distances do",
    ]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused") / "model"
    shutil.copytree(tiny_model, folder)
    settings_with(score=1e6).write(folder)
    return folder


def test_every_ranking_is_fused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    reranker = Reranker(folder, dtype="float32", max_length=48)
    texts, scores = sample_texts()[:4], [1.0, 4.0, 2.0, 3.0]
    expected = [1, 3, 2, 0]
    request = ("q", texts, None, scores)
    rankings = [
        reranker.rank("q", texts, retrieval_scores=scores),
        *reranker.rank_many([request]),
        *(ranked.ranking for ranked in reranker.rank_stream([request])),
        asyncio.run(reranker.arank("q", texts, retrieval_scores=scores)),
    ]
    assert [[document.index for document in ranking] for ranking in rankings] == [expected] * 4
    plain = [document.index for document in reranker.rank("q", texts, fuse=False)]
    assert plain == order(reranker.logits([("q", text) for text in texts]).tolist())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [document.index for document in reranker.rank("q", texts)] == plain
    assert len(caplog.messages) == 1
    assert "no retrieval_scores are given" in caplog.messages[0]


def test_requests_of_the_command_have_scores(cli: Run, folder: Path, tmp_path: Path) -> None:
    request = {"query": "q", "documents": sample_texts()[:3], "retrieval_scores": [1, 3, None]}
    path = write_lines(
        tmp_path / "requests.jsonl", [request, {**request, "retrieval_scores": [1, 3, 2]}]
    )
    code, out, err = cli("rerank", "--model_dir", folder, "--data_path", path, "--max_length", 48)
    assert code == 0, err
    _, second = (json.loads(line)["ranking"] for line in out.splitlines())
    assert [document["index"] for document in second] == [1, 2, 0]
    write_lines(path, [{**request, "retrieval_scores": ["high", 1, 2]}])
    code, _, err = cli("rerank", "--model_dir", folder, "--data_path", path)
    assert code == 2
    assert f"{path}:1: retrieval_scores[0]: expected a number or None, not 'high'" in err


def test_calibration_and_thresholds_are_those_of_fused_scores(folder: Path) -> None:
    reranker = Reranker(folder, dtype="float32", max_length=48, normalize="calibrated")
    texts, scores = sample_texts()[:2], [None, None]
    logits = reranker.logits([("q", text) for text in texts])
    values = 2 * (logits + 10 / np.array([11, 12])) + 1
    ranked = reranker.rank("q", texts, retrieval_scores=scores)
    found = {document.index: document.score for document in ranked}
    assert [found[0], found[1]] == pytest.approx((1 / (1 + np.exp(-values))).tolist(), rel=1e-4)
    kept = reranker.rank("q", texts, retrieval_scores=scores, score_threshold="precision@0.9")
    # The threshold is a sigmoid, the normalisation of the folder.
    lowest = np.log(0.7 / 0.3)
    assert len(kept) == int((logits + 10 / np.array([11, 12]) >= lowest).sum())
    with pytest.raises(InputError, match="no calibrated threshold 'recall@1'"):
        reranker.rank("q", texts, score_threshold="recall@1")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0], "retrieval_scores: 1 scores for 2 documents"),
        ("12", "retrieval_scores: expected a list, not '12'"),
        ([1.0, "2"], "retrieval_scores[1]: expected a number or None, not '2'"),
    ],
)
def test_bad_scores(folder: Path, scores: Any, expected: str) -> None:
    reranker = Reranker(folder, dtype="float32", max_length=48)
    with pytest.raises(InputError) as error:
        reranker.rank("q", ["a", "b"], retrieval_scores=scores)
    assert str(error.value) == expected


@pytest.mark.parametrize(
    "change", [{"form": "other"}, {"scale": {}}, {"rank": {"weight": 1}}, {"score": term(-1.0)}]
)
def test_a_bad_fusion_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    settings = settings_with()
    settings.fusion.update(change)
    settings.write(tmp_path)
    with pytest.raises(InputError, match=r"rerank.json: 'fusion' must be an object"):
        RerankSettings.read(tmp_path)
