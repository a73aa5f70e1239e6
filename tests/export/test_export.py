"""An export gives the logits of the model in its runtime, whatever the batch."""

import json
import logging
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.extras import MissingPackageError
from rerank_plugin.finetune import Agreement, ExportResult, export_model
from rerank_plugin.finetune.export.agreement import ExportError
from rerank_plugin.model.settings import RerankSettings

from ..factories import Run, build_language_model, build_model, build_modular, sample_texts
from ..training.test_lora import drawn_adapter

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

RUNTIMES = ("onnx", "openvino")
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def runtime(result: ExportResult) -> Callable[[dict[str, Any]], Any]:
    """Load an export as any program does that has nothing but the runtime."""
    if result.to == "onnx":
        session = onnxruntime.InferenceSession(result.file, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)[0]
    compiled = openvino.compile_model(result.file, "CPU", EXACT)
    return lambda inputs: compiled(inputs)[0]


def assert_same_logits(result: ExportResult, model: Path, atol: float = 1e-4) -> None:
    tokenizer, compute = AutoTokenizer.from_pretrained(result.model_dir), runtime(result)
    reranker = Reranker(model, dtype="float32", device="cpu")
    numbers, texts = random.Random(0), sample_texts()
    for size in (1, 2, 7):
        queries = [numbers.choice(texts)[: numbers.randint(1, 60)] for _ in range(size)]
        documents = [numbers.choice(texts)[: numbers.randint(1, 120)] for _ in range(size)]
        inputs = tokenizer(queries, documents, padding=True, return_tensors="np")
        expected = reranker.logits(zip(queries, documents, strict=True))
        np.testing.assert_allclose(compute(dict(inputs))[:, 0], expected, atol=atol)


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_model(tmp_path_factory.mktemp("model"), labels=2)
    RerankSettings(max_length=96, normalize="none").write(folder)
    return folder


@pytest.fixture(scope="module", params=RUNTIMES)
def exported(
    request: pytest.FixtureRequest, two_labels: Path, tmp_path_factory: pytest.TempPathFactory
) -> ExportResult:
    folder = tmp_path_factory.mktemp("exported") / "model"
    return export_model(model_dir=two_labels, output_dir=folder, to=request.param)


def test_logits_are_those_of_the_model(exported: ExportResult, two_labels: Path) -> None:
    assert exported.agreement.largest < 1e-4
    assert_same_logits(exported, two_labels)


def test_sentence_transformers_finds_its_files(exported: ExportResult) -> None:
    utils = pytest.importorskip("sentence_transformers.backend.utils")
    name, folder = exported.file.name, exported.model_dir
    found = utils.backend_should_export(folder, True, {}, name, f"*{name}", exported.to)
    assert found == (False, {"subfolder": exported.to, "file_name": name})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["sentence_transformers"]["activation_fn"].endswith("Identity")
    assert len(config["id2label"]) == 1
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    # The newer name of the class is not known to transformers 4, which optimum may need.
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 96


def test_an_export_is_replaced_only_on_request(exported: ExportResult, two_labels: Path) -> None:
    options: dict[str, Any] = {"output_dir": exported.model_dir, "to": exported.to}
    with pytest.raises(OptionError, match=r"--output_dir: .* contains a trained model"):
        export_model(model_dir=two_labels, **options)
    with pytest.raises(OptionError, match=r"--output_dir: .* is the model to export"):
        export_model(model_dir=two_labels, output_dir=two_labels, to="onnx", overwrite=True)
    export_model(model_dir=two_labels, overwrite=True, **options)
    assert_same_logits(exported, two_labels)


@pytest.mark.slow
@pytest.mark.parametrize("to", RUNTIMES)
def test_every_family(family_model: Path, to: str, tmp_path: Path) -> None:
    result = export_model(model_dir=family_model, output_dir=tmp_path / "out", to=to)
    assert_same_logits(result, family_model)


def test_an_adapter_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    adapter = drawn_adapter(tiny_model, tmp_path / "adapter", seed=0)
    result = export_model(model_dir=adapter, output_dir=tmp_path / "out", to="onnx")
    assert_same_logits(result, adapter)


@pytest.mark.parametrize("to", RUNTIMES)
def test_int8(to: str, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    model = build_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    out = tmp_path / "out"
    code, stdout, stderr = cli("export", model, "--to", to, "--int8", "--force", "--output", out)
    assert (code, stdout) == (0, "")
    # Some libraries give the root logger a handler, which would repeat our messages.
    assert logging.getLogger().handlers == []
    assert "largest difference of a logit" in stderr and "(32 pairs)" in stderr
    record = json.loads((out / "export.json").read_text("utf-8"))
    assert record["int8"] and record["to"] == to
    # Sums of bytes saturate on a CPU with AVX2 alone.
    assert record["agreement"]["correlation"] > 0.9
    weights = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.bin"}[to]
    assert (out / weights).stat().st_size < (model / "model.safetensors").stat().st_size * 0.8


@pytest.mark.slow
def test_int8_of_a_model_that_does_not_take_it(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    # One large activation leaves the others no steps.
    weights["bert.embeddings.LayerNorm.weight"][0] *= 1e4
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    options: dict[str, Any] = {"model_dir": model, "output_dir": tmp_path / "out", "to": "onnx"}
    with pytest.raises(ExportError, match="the scores change too much in 8 bits: largest"):
        export_model(int8=True, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert export_model(int8=True, force=True, **options).agreement.correlation < 0.99


def test_scores_have_to_agree_in_float32() -> None:
    expected = np.linspace(-5, 5, 32, dtype=np.float32)
    Agreement.from_logits(expected + 5e-4, expected).check(int8=False)
    agreement = Agreement.from_logits(expected + 2e-3, expected)
    with pytest.raises(ExportError, match="the runtime gives other scores than the model: largest"):
        agreement.check(int8=False)
    agreement.check(int8=True)
    with pytest.raises(ExportError):
        Agreement.from_logits(np.zeros_like(expected), expected).check(int8=True)


@pytest.mark.parametrize(
    ("build", "name"), [(build_language_model, "Qwen3-Reranker"), (build_modular, "modular")]
)
def test_other_formats_are_refused(
    build: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    model = build(tmp_path / name)
    with pytest.raises(InputError, match=r"not exported: .*use Reranker"):
        export_model(model_dir=model, output_dir=tmp_path / "out", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_runtime_names_the_extra(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'rerank-plugin\[export\]'"):
        export_model(model_dir=tiny_model, output_dir=tmp_path / "out", to="openvino")


def test_force_is_for_int8(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--force: has an effect only with --int8"):
        export_model(model_dir=tiny_model, output_dir=tmp_path / "out", to="onnx", force=True)


def test_an_export_is_not_taken_for_a_model(exported: ExportResult, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.model_dir, tmp_path / "copy")
    with pytest.raises(InputError, match=r"copy: an export for another runtime \(export.json\)"):
        Reranker(folder)
