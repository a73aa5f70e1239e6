"""Training modular rerankers: full, LoRA, resumed; what is saved loads in sentence-transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rerank_plugin import Reranker
from rerank_plugin.finetune import FinetuneConfig, evaluate, finetune
from rerank_plugin.finetune.training.checkpoint import latest_checkpoint
from rerank_plugin.model.settings import RerankSettings

from ..factories import Run, build_modular, easy_groups, write_lines
from .test_resuming import stop_after

sentence_transformers = pytest.importorskip("sentence_transformers")
# Older versions have no modular rerankers.
pytest.importorskip("sentence_transformers.base.modules")

PAIRS = [(f"question number {i}", f"a refund of some {'words ' * (i % 4)}") for i in range(12)]
HEAD = ("2_Dense", "3_LayerNorm", "4_Dense")


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = getattr(request, "param", "modernbert")
    return build_modular(tmp_path_factory.mktemp(family), family, pooling="mean")


both_families = pytest.mark.parametrize("base", ["modernbert", "bert"], indirect=True)


def run(model: Path, folder: Path, **options: Any) -> FinetuneConfig:
    held_out = easy_groups(8 if "fold_calibration" not in options else 130, start=100)
    trainer = {"eval_strategy": "no", "max_steps": 6, "save_steps": 2, "report_to": "none"}
    values: dict[str, Any] = {
        "batch_size": 4,
        "max_len": 64,
        "lr": 3e-3,
        "dropout": 0.1,
        "dtype": "float32",
        "device": "cpu",
        **options,
        "trainer": {**trainer, **options.get("trainer", {})},
    }
    return FinetuneConfig(
        model_name_or_path=str(model),
        data_path=str(write_lines(folder.with_suffix(".train.jsonl"), easy_groups(24))),
        eval_data_path=str(write_lines(folder.with_suffix(".dev.jsonl"), held_out)),
        finetune_model_dir=str(folder),
        **values,
    )


def logits(folder: Path, **options: Any) -> Any:
    return Reranker(folder, dtype="float32", device="cpu", **options).logits(PAIRS)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder, by its name of their file."""
    return {
        f"{path.relative_to(folder)} {name}": weight
        for path in folder.rglob("*.safetensors")
        for name, weight in load_file(path).items()
    }


def assert_same(folder: Path, other: Path) -> None:
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def assert_loads_elsewhere(folder: Path) -> None:
    scores = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    reranker = Reranker(folder, dtype="float32", device="cpu")
    np.testing.assert_allclose(scores, reranker.score(PAIRS), atol=1e-5)


@both_families
def test_a_run_trains_all_weights_at_the_rate_of_a_reranker(base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"gradient_checkpointing": True, "max_steps": 12}
    test = write_lines(tmp_path / "test.jsonl", easy_groups(8, start=300))
    result = finetune(
        run(base, tmp_path / "out", lr=None, test_data_path=str(test), trainer=options)
    )
    folder, before = result.model_dir, weights(base)
    after = weights(folder)
    assert before.keys() == after.keys()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    # The pooler of BERT, which no score depends on.
    assert all(" pooler." in name for name in unchanged)
    assert RerankSettings.read(folder).options["loss"] == "softmax_cross_entropy"
    assert_loads_elsewhere(folder)
    found = evaluate(model_dir=folder, data_path=test, dtype="float32", device="cpu")
    assert found.metrics["ndcg@10"] == pytest.approx(result.after["ndcg@10"])
    card = (folder / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "CrossEncoder(" in card and "AutoModelForSequenceClassification" not in card


@both_families
@pytest.mark.parametrize(
    "options",
    [pytest.param({}, id="full"), pytest.param({"lora": True}, id="lora", marks=pytest.mark.slow)],
)
def test_a_resumed_run_ends_with_the_same_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    whole = finetune(run(base, tmp_path / "whole", **options)).model_dir
    config = run(base, tmp_path / "out", **options)
    stop_after(3, config, monkeypatch)
    checkpoint = latest_checkpoint(tmp_path / "out.run")
    assert checkpoint is not None
    if not options:
        assert_loads_elsewhere(checkpoint)
    assert_same(finetune(config).model_dir, whole)


def test_an_adapter_reloaded_and_merged(base: Path, tmp_path: Path, cli: Run) -> None:
    folder = finetune(run(base, tmp_path / "adapter", lora=True)).model_dir
    saved = load_file(folder / "adapter_model.safetensors")
    trained = {name for name in saved if ".classifier." in name}
    assert len(trained) == len([name for name in weights(base) if name.startswith(HEAD)])
    expected = logits(folder)
    assert np.abs(expected - logits(base)).max() > 1e-3
    merged = tmp_path / "merged"
    assert cli("merge", "--model_dir", folder, "--output_dir", merged)[0] == 0
    among = Reranker(base, adapters={"a": folder}, dtype="float32", device="cpu")
    np.testing.assert_allclose(among.logits(PAIRS, adapter="a"), expected, atol=1e-5)
    np.testing.assert_allclose(among.logits(PAIRS), logits(base), atol=1e-5)
    np.testing.assert_allclose(logits(base, adapter=folder), expected, atol=1e-5)
    np.testing.assert_allclose(logits(merged), expected, atol=1e-5)
    assert_loads_elsewhere(merged)
    assert "AutoPeftModel" not in (folder / "README.md").read_text()


def test_a_merged_run_with_a_folded_calibration(base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lora": True, "merge": True}
    plain, folded = (
        finetune(run(base, tmp_path / name, fold_calibration=name == "folded", **options)).model_dir
        for name in ("plain", "folded")
    )
    expected = Reranker(plain, dtype="float32", normalize="calibrated").score(PAIRS)
    scores = Reranker(folded, dtype="float32").score(PAIRS)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert_loads_elsewhere(folded)
