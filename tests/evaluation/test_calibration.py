"""Calibrated scores: fitted on other queries, saved with the model, in the same order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from rerank_plugin import Reranker
from rerank_plugin.engine.scores import normalize, sigmoid
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune import FinetuneConfig
from rerank_plugin.finetune.data.splits import halves
from rerank_plugin.finetune.evaluation.calibration import (
    FEWEST_KEPT,
    Calibration,
    ScoredPairs,
    calibration_error,
    cross_fitted,
    fit_scaling,
    reliability,
    thresholds,
)
from rerank_plugin.model.settings import RerankSettings

from ..factories import build_model, train_on_easy_groups

PAIRS = [(f"question number {i}", f"a refund of some {'words ' * (i % 4)}") for i in range(12)]


def drawn(queries: int, *, scale: float, bias: float, seed: int = 0, each: int = 30) -> ScoredPairs:
    """Draw candidates that are relevant with probability sigmoid(scale * logit + bias)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 4, queries * each)
    relevant = random.random(len(logits)) < sigmoid(scale * logits + bias)
    return ScoredPairs(logits, relevant, np.repeat(np.arange(queries, dtype=np.uint64), each))


@pytest.mark.parametrize(("scale", "bias"), [(0.4, -2.0), (1.0, 0.0), (3.0, -5.0)])
def test_the_fit_recovers_the_scale_and_bias_of_its_data(scale: float, bias: float) -> None:
    scaling = fit_scaling(drawn(1000, scale=scale, bias=bias))
    assert scaling is not None
    assert (scaling.scale, scaling.bias) == pytest.approx((scale, bias), rel=0.1, abs=0.1)


@given(
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.booleans()), min_size=2, max_size=60),
)
def test_a_fit_never_reverses_the_order(pairs: list[tuple[float, bool]]) -> None:
    logits, relevant = (np.array(column) for column in zip(*pairs, strict=True))
    scaling = fit_scaling(
        ScoredPairs(logits.astype(float), relevant, np.zeros(len(pairs), np.uint64))
    )
    if scaling is not None:
        assert scaling.scale > 0
        assert np.isfinite([scaling.scale, scaling.bias]).all()


def test_no_fit_where_relevant_documents_score_lower() -> None:
    turned = drawn(100, scale=-1.0, bias=0.0)
    assert fit_scaling(turned) is None
    assert Calibration.fit(turned) is None
    assert Calibration.fit(drawn(5, scale=1.0, bias=0.0)) is None
    nothing_relevant = ScoredPairs(
        np.arange(40.0), np.zeros(40, bool), np.arange(40, dtype=np.uint64)
    )
    assert fit_scaling(nothing_relevant) is None


def test_the_error_of_probabilities() -> None:
    relevant = np.array([True, False, True, True])
    assert calibration_error(np.array([1.0, 0.0, 1.0, 1.0]), relevant) == 0
    assert calibration_error(np.full(4, 0.25), relevant) == pytest.approx(0.5)
    assert reliability(np.full(4, 0.25), relevant) == [(0.25, 0.75, 4)]


def test_a_calibration_is_measured_on_queries_that_it_was_not_fitted_on() -> None:
    calibration = Calibration.fit(drawn(500, scale=0.3, bias=-2.0))
    assert calibration is not None
    assert calibration.error_after < calibration.error_before / 5
    scored = drawn(60, scale=0.3, bias=-2.0)
    expected = cross_fitted(scored)
    half, _ = halves(scored.queries, seed=0)
    changed = replace(scored, relevant=scored.relevant.copy())
    changed.relevant[half[:50]] = True
    again = cross_fitted(changed)
    assert expected is not None and again is not None
    np.testing.assert_array_equal(again[half], expected[half])
    assert (np.delete(again, half) != np.delete(expected, half)).all()


@given(
    st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=1, max_size=200),
)
def test_thresholds_reach_their_precision_or_recall(pairs: list[tuple[int, bool]]) -> None:
    logits, relevant = (np.array(column) for column in zip(*pairs, strict=True))
    scored = ScoredPairs(logits.astype(float), relevant, np.zeros(len(pairs), np.uint64))
    for name, logit in thresholds(scored).items():
        kind, _, share = name.partition("@")
        kept = scored.relevant[scored.logits >= logit]
        assert len(kept) >= FEWEST_KEPT
        value = kept.mean() if kind == "precision" else kept.sum() / scored.relevant.sum()
        assert value >= float(share)
        assert logit not in scored.logits


@pytest.fixture(scope="module")
def settings() -> RerankSettings:
    calibration = Calibration.fit(drawn(300, scale=0.5, bias=-1.0))
    assert calibration is not None
    return RerankSettings(**calibration.settings(folded=False))


def test_a_threshold_keeps_the_same_documents_on_every_scale(
    tiny_model: Path, settings: RerankSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    model = build_model(folder)
    settings.write(model)
    read = RerankSettings.read(model)
    assert read == settings
    logits = np.linspace(-8, 8, 4001).astype(np.float32)
    kept = {}
    for name in ("sigmoid", "none", "calibrated"):
        reranker = Reranker(model, normalize=name, dtype="float32", device="cpu")
        scores = normalize(logits, name, read)
        assert (np.diff(scores) >= 0).all()
        kept[name] = [int((scores >= reranker.threshold(t)).sum()) for t in read.thresholds]
    assert kept["sigmoid"] == pytest.approx(kept["none"], abs=1)
    assert kept["calibrated"] == pytest.approx(kept["none"], abs=1)
    with pytest.raises(InputError, match=r"no calibrated threshold 'precision@0\.99'"):
        Reranker(model).threshold("precision@0.99")
    with pytest.raises(InputError, match="the model has no calibration"):
        Reranker(tiny_model, normalize="calibrated")


def test_a_calibration_that_would_reverse_the_order_is_an_error(tmp_path: Path) -> None:
    for scale in (-2.0, 0.0):
        record = {"calibration": {"scale": scale, "bias": 0.0}}
        (tmp_path / "rerank.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match="'calibration' must be numbers 'scale', above 0"):
            RerankSettings.read(tmp_path)
    (tmp_path / "rerank.json").write_text('{"thresholds": {"best": NaN}}')
    with pytest.raises(InputError, match="'thresholds' must be names with finite numbers"):
        RerankSettings.read(tmp_path)


@pytest.mark.parametrize(
    "calibration", [3, {"scale": 1.0}, {"scale": 1.0, "bias": "0"}, {"scale": None, "bias": 0.0}]
)
def test_a_broken_calibration_is_named(calibration: Any, tmp_path: Path) -> None:
    (tmp_path / "rerank.json").write_text(json.dumps({"calibration": calibration}))
    with pytest.raises(InputError, match="'calibration' must be numbers 'scale', above 0, and"):
        RerankSettings.read(tmp_path)


def test_a_run_saves_a_calibration(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    train_on_easy_groups(tiny_model, folder, held_out=130, total_epoch=4, batch_size=8)
    settings = RerankSettings.read(folder)
    assert settings.calibration is not None
    assert settings.calibration["queries"] == 65
    assert settings.calibration["prior"] == 0.25
    assert "precision@0.9" in settings.thresholds
    raw = Reranker(folder, dtype="float32", normalize="none").score(PAIRS)
    scale, bias = settings.calibration["scale"], settings.calibration["bias"]
    expected = sigmoid(scale * raw.astype(np.float64) + bias)
    scores = Reranker(folder, dtype="float32", normalize="calibrated").score(PAIRS)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    card = (folder / "README.md").read_text()
    assert "Expected calibration error" in card and "`precision@0.9`" in card


@pytest.mark.parametrize("labels", [1, 2])
def test_a_folded_calibration_works_in_every_library(labels: int, tmp_path: Path) -> None:
    model = build_model(tmp_path / "base", labels=labels)
    plain, folded = (
        train_on_easy_groups(
            model, tmp_path / name, held_out=130, fold_calibration=name == "folded"
        ).model_dir
        for name in ("plain", "folded")
    )
    expected = Reranker(plain, dtype="float32", normalize="calibrated").score(PAIRS)
    reranker = Reranker(folded, dtype="float32")
    np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-5)
    before, after = RerankSettings.read(plain), RerankSettings.read(folded)
    assert before.calibration and after.calibration
    assert after.calibration == {**before.calibration, "scale": 1.0, "bias": 0.0}
    scores = Reranker(folded, dtype="float32", normalize="calibrated").score(PAIRS)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    calibrated = Reranker(plain, normalize="calibrated")
    for name in before.thresholds:
        assert reranker.threshold(name) == pytest.approx(calibrated.threshold(name), abs=1e-4)
    stock = AutoModelForSequenceClassification.from_pretrained(folded).eval()
    tokenizer = reranker._scorer.encoder.tokenizer
    inputs = tokenizer(
        [q for q, _ in PAIRS], [t for _, t in PAIRS], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = stock(**inputs).logits
    scores = logits[:, 0].sigmoid()
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_an_adapter_cannot_carry_a_folded_calibration() -> None:
    with pytest.raises(OptionError, match=r"fold_calibration: .*--merge"):
        FinetuneConfig(
            model_name_or_path="m",
            data_path="d",
            finetune_model_dir="out",
            lora=True,
            fold_calibration=True,
        )
