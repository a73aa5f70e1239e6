"""A quantized folder scores with int8 where that is possible, and names what it costs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rerank_plugin import Reranker
from rerank_plugin.engine import fused_layers
from rerank_plugin.engine.cpu.int8_products import is_int8_supported
from rerank_plugin.engine.precision import scoring_dtype
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune import QuantizationResult, evaluate, quantize
from rerank_plugin.finetune.export.quantization import QuantizationError
from rerank_plugin.info.model_info import model_info
from rerank_plugin.model.settings import RerankSettings

from ..factories import (
    Run,
    build_language_model,
    build_model,
    easy_groups,
    train_on_easy_groups,
    write_lines,
)
from ..training.test_lora import drawn_adapter

pytestmark = pytest.mark.skipif(not is_int8_supported(), reason="no products of bytes here")

PAIRS = [(group["query"], text) for group in easy_groups(8) for text in group["neg"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "groups.jsonl", easy_groups(30))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ranks all of the groups correctly, far from a tie."""
    folder = tmp_path_factory.mktemp("trained")
    base = build_model(folder / "base")
    return train_on_easy_groups(base, folder / "model", total_epoch=4).model_dir


@pytest.fixture(scope="module")
def result(
    trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> QuantizationResult:
    folder = tmp_path_factory.mktemp("quantized") / "model"
    return quantize(model_dir=trained, data_path=data, output_dir=folder)


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that int8 ruins: one large activation leaves the others no steps."""
    model = build_model(tmp_path_factory.mktemp("sensitive"))
    weights = load_file(model / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"][0] *= 1e4
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


def logits(folder: Path, dtype: str = "auto") -> np.ndarray:
    return Reranker(folder, device="cpu", dtype=dtype).logits(PAIRS)


def test_auto_is_int8(result: QuantizationResult) -> None:
    folder = result.model_dir
    assert Reranker(folder, device="cpu").dtype == torch.int8
    assert model_info(folder, device="cpu").dtype == "int8"
    np.testing.assert_array_equal(logits(folder), logits(folder, "int8"))
    assert Reranker(folder, device="cpu", dtype="float32").dtype == torch.float32
    assert model_info(folder, device="cpu", dtype="bfloat16").dtype == "bfloat16"


def test_other_programs_score_with_int8_too(result: QuantizationResult, data: Path) -> None:
    langchain = pytest.importorskip("rerank_plugin.integrations.langchain")
    evaluation = evaluate(model_dir=result.model_dir, data_path=data, device="cpu")
    assert evaluation.metrics == pytest.approx(result.int8)
    model = langchain.RerankCrossEncoder(model=str(result.model_dir), device="cpu")
    expected = Reranker(result.model_dir, device="cpu", dtype="int8").score(PAIRS)
    np.testing.assert_array_equal(model.score(PAIRS), expected)


def test_the_weights_are_those_of_the_model(result: QuantizationResult, trained: Path) -> None:
    np.testing.assert_array_equal(logits(result.model_dir, "float32"), logits(trained, "float32"))
    AutoModelForSequenceClassification.from_pretrained(result.model_dir)


def test_the_measurements_are_kept(result: QuantizationResult, trained: Path) -> None:
    assert result.is_safe and result.int8["queries"] == 30
    assert result.agreement.pairs == 120
    assert 0.9 < result.agreement.correlation < 1
    settings, before = RerankSettings.read(result.model_dir), RerankSettings.read(trained)
    assert settings.dtype == "int8"
    kept = json.loads(json.dumps(result.to_dict()))
    assert settings.quantization == {
        "fingerprint": settings.quantization["fingerprint"],
        **kept,
    }
    assert not kept["forced"]
    assert settings.calibration is not None and settings.calibration["queries"] == 30
    for name in ("max_length", "options", "data", "metrics"):
        assert getattr(settings, name) == getattr(before, name)
    card = (result.model_dir / "README.md").read_text("utf-8")
    assert "## Scoring with int8\n" in card and "--force" not in card


def test_without_int8_auto_is_the_usual_precision(
    result: QuantizationResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usual = logits(result.model_dir, "float32")
    monkeypatch.setattr(fused_layers, "is_int8_supported", lambda: False)
    reranker = Reranker(result.model_dir, device="cpu")
    assert reranker.dtype in (torch.float32, torch.bfloat16)
    assert caplog.text.count("dtype of rerank.json: int8 needs an x86 CPU with AVX2") == 1
    np.testing.assert_allclose(reranker.logits(PAIRS), usual, atol=0.1)
    with pytest.raises(OptionError, match="--dtype: int8 needs an x86 CPU"):
        Reranker(result.model_dir, device="cpu", dtype="int8")


def test_other_devices_have_no_int8(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    settings, cuda = [RerankSettings(dtype="int8")], torch.device("cuda")
    dtype = scoring_dtype(model, "auto", torch.bfloat16, cuda, settings)
    assert dtype == torch.bfloat16
    assert "dtype of rerank.json: int8 is not supported on cuda; using bfloat16" in caplog.text
    assert scoring_dtype(model, "float16", torch.float16, cuda, settings) == torch.float16


def test_adapters_of_a_quantized_folder_were_not_measured(
    result: QuantizationResult, tmp_path: Path
) -> None:
    adapter = drawn_adapter(result.model_dir, tmp_path / "adapter", seed=0)
    for options in ({"adapter": adapter}, {"adapters": {"a": adapter}}):
        assert Reranker(result.model_dir, device="cpu", **options).dtype != torch.int8


def test_training_drops_int8(result: QuantizationResult, tmp_path: Path) -> None:
    folder = train_on_easy_groups(
        result.model_dir, tmp_path / "model", groups=8, dtype="auto", overwrite=True
    ).model_dir
    settings = RerankSettings.read(folder)
    assert settings.dtype is None and settings.quantization == {}
    assert Reranker(folder, device="cpu").dtype != torch.int8


def test_a_loss_needs_force(sensitive: Path, data: Path, tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "out"
    arguments = ("quantize", sensitive, "--data_path", data, "--output", out)
    code, stdout, stderr = cli(*arguments)
    assert code == 3
    assert "float32" in stdout and "ndcg@10" in stdout
    assert "rerank-plugin quantize: ndcg@10 changes by -" in stderr
    assert "reaches below -0.005: nothing is written; give more queries, or use --force" in stderr
    assert list(tmp_path.iterdir()) == []
    code, stdout, stderr = cli(*arguments, "--force")
    assert code == 0
    assert "float32" in stdout and "ndcg@10" in stdout
    assert "correlation 0." in stderr and "pairs per second: float32 " in stderr
    assert "--force: the interval of ndcg@10" in stderr
    settings = RerankSettings.read(out)
    assert settings.dtype == "int8" and settings.quantization["forced"]
    assert "accepted by `--force`" in (out / "README.md").read_text("utf-8")


def test_few_queries_are_refused(trained: Path, tmp_path: Path) -> None:
    groups = easy_groups(19)
    data = write_lines(tmp_path / "groups.jsonl", [*groups, groups[0]])
    with pytest.raises(OptionError, match="--data_path: 19 queries are too few to measure int8"):
        quantize(model_dir=trained, data_path=data, output_dir=tmp_path / "out", force=True)


def test_a_model_that_int8_does_not_support(data: Path, tmp_path: Path) -> None:
    model = build_model(tmp_path / "albert", "albert")
    with pytest.raises(InputError, match="albert: int8 is not supported for this albert model"):
        quantize(model_dir=model, data_path=data, output_dir=tmp_path / "out")


def test_the_model_is_not_replaced(trained: Path, data: Path) -> None:
    with pytest.raises(OptionError, match=r"--output_dir: .* is the model to quantize"):
        quantize(model_dir=trained, data_path=data, output_dir=trained, overwrite=True)


def test_an_adapter_is_merged(trained: Path, data: Path, tmp_path: Path) -> None:
    adapter = drawn_adapter(trained, tmp_path / "adapter", seed=0)
    folder = tmp_path / "out"
    quantize(model_dir=adapter, data_path=data, output_dir=folder, force=True)
    np.testing.assert_allclose(logits(folder, "float32"), logits(adapter, "float32"), atol=1e-5)


def test_a_language_model_keeps_its_prompt(data: Path, tmp_path: Path) -> None:
    model = build_language_model(tmp_path / "Qwen3-Reranker-tiny")
    folder = tmp_path / "out"
    quantize(model_dir=model, data_path=data, output_dir=folder, max_length=200, force=True)
    reranker = Reranker(folder, device="cpu")
    assert (reranker.dtype, reranker.max_length) == (torch.int8, 200)
    assert model_info(folder).prompt is not None


def test_thresholds_are_on_the_scale_of_the_scores(trained: Path, tmp_path: Path) -> None:
    thresholds: dict[str, Any] = {}
    many = write_lines(tmp_path / "groups.jsonl", easy_groups(120))
    for name in ("sigmoid", "none", "calibrated"):
        model = shutil.copytree(trained, tmp_path / name)
        settings = RerankSettings.read(model)
        calibration = {"scale": 1.0, "bias": 0.0}
        replace(settings, normalize=name, calibration=calibration).write(model)
        folder = tmp_path / f"{name}_int8"
        quantize(model_dir=model, data_path=many, output_dir=folder)
        reranker = Reranker(folder, device="cpu", normalize="none")
        thresholds[name] = reranker.threshold("recall@0.9")
    assert thresholds["sigmoid"] == pytest.approx(thresholds["none"], abs=1e-3)
    assert thresholds["calibrated"] == pytest.approx(thresholds["none"], abs=1e-3)


def test_the_check_is_about_the_interval(result: QuantizationResult) -> None:
    def with_interval(low: float) -> QuantizationResult:
        intervals = {**result.difference["interval_95"], "ndcg@10": [low, 0.001]}
        return replace(result, difference={**result.difference, "interval_95": intervals})

    with_interval(-0.005).check()
    for low in (-0.0051, float("nan")):
        with pytest.raises(QuantizationError, match=r"reaches below -0\.005") as error:
            with_interval(low).check()
        assert error.value.result.agreement == result.agreement
