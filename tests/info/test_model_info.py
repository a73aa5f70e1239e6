"""`model_info` agrees with the loaded model, and reads no weights."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rerank_plugin import ModelInfo, Reranker, model_info
from rerank_plugin.errors import InputError
from rerank_plugin.finetune.export.model_folder import prepare_tokenizer, save_plain
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.prompts import MAKERS
from rerank_plugin.model.settings import RerankSettings

from ..factories import FAMILIES, Run, build_language_model, build_model, build_modular
from ..model.test_formats import HEADLESS, REFUSED
from ..training.test_lora import drawn_adapter

QWEN = MAKERS["qwen3-reranker"]


def language_model(folder: Path) -> Path:
    return build_language_model(folder / "Qwen3-Reranker-0.6B", "qwen3")


def converted(folder: Path) -> Path:
    """A sequence classifier made of a language model, as a run saves it."""
    loaded = load_model(language_model(folder))
    prepare_tokenizer(loaded, 512)
    save_plain(loaded, folder / "converted")
    return folder / "converted"


def built(family: str) -> Callable[[Path], Path]:
    return lambda path: build_model(path / "m", family)


BUILT: dict[str, Callable[[Path], Path]] = {
    **{family: built(family) for family in FAMILIES},
    "two labels": lambda path: build_model(path / "m", labels=2),
    "padded": lambda path: build_model(path / "m", "deberta-v2"),
    "equal length": lambda path: build_model(path / "m", "canine"),
    "modular": lambda path: build_modular(path / "m"),
    "language model": language_model,
    "converted": converted,
}


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_says_what_holds_when_the_model_scores(tmp_path: Path, name: str, dtype: str) -> None:
    folder = BUILT[name](tmp_path)
    info = model_info(folder, device="cpu", dtype=dtype)
    reranker = Reranker(folder, device="cpu", dtype=dtype)
    scorer = reranker._scorer
    assert info.max_length == reranker.max_length
    assert info.normalize == reranker.normalize
    assert info.dtype == str(reranker.dtype).removeprefix("torch.")
    assert info.batches == (
        "packed" if scorer.packs else "padded" if scorer.pads else "equal length"
    )
    layers = [type(module).__name__ for module in scorer.model.modules()]
    assert info.fused_layers == any(layer.startswith("Fused") for layer in layers)
    loaded = load_model(folder)
    assert info.parameters == sum(weight.numel() for weight in loaded.model.parameters())
    assert info.fixed_tokens == len(scorer.encoder.encode([("", "")])[0])
    assert (info.prompt is not None) == scorer.encoder.takes_instruction


def test_no_weight_is_read(tmp_path: Path) -> None:
    for build in (BUILT["bert"], language_model):
        loaded = load_model(build(tmp_path), structure_only=True)
        assert {weight.device.type for weight in loaded.model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", [*REFUSED, *HEADLESS])
def test_a_model_is_refused_with_the_reason_of_reranker(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (HEADLESS[name] if name in HEADLESS else REFUSED[name][0])(folder)
    with pytest.raises(InputError) as expected:
        Reranker(folder, device="cpu")
    with pytest.raises(InputError) as error:
        model_info(folder, device="cpu")
    assert str(error.value) == str(expected.value)


def test_the_head_and_what_decided_the_format(tmp_path: Path) -> None:
    modular = model_info(build_modular(tmp_path / "modular"))
    assert modular.format == "modular encoder"
    assert modular.recognized_by.startswith("modules.json lists Transformer, Pooling, Dense")
    assert modular.head.modules is not None
    assert modular.head.modules[0] == "Pooling (cls)"
    assert modular.head.modules[-1] == "Dense (32 to 1)"
    plain = model_info(build_model(tmp_path / "plain", labels=2))
    assert plain.recognized_by == "config.json has BertForSequenceClassification"
    assert plain.head.labels == 2
    named = model_info(language_model(tmp_path))
    assert named.format == "language model"
    assert named.recognized_by == "by its name, a model of qwen3-reranker"
    assert named.head.scoring_tokens == ["yes", "no"]


@pytest.mark.parametrize(
    ("name", "family", "takes", "default"),
    [
        ("Qwen3-Reranker-4B", "qwen3", True, QWEN.instruction),
        ("mxbai-rerank-large-v2", "qwen2", True, None),
        ("bge-reranker-v2-gemma", "gemma", False, None),
    ],
)
def test_the_prompt_is_readable(
    tmp_path: Path, name: str, family: str, takes: bool, default: str | None
) -> None:
    folder = build_language_model(tmp_path / name, family)
    info = model_info(folder)
    assert info.prompt is not None
    assert info.prompt.source.startswith("the prompts of makers (")
    assert (info.prompt.takes_instruction, info.prompt.instruction) == (takes, default)
    text = info.prompt.text.replace("{query}", "who?").replace("{document}", "me")
    pair = Reranker(folder, device="cpu")._scorer.encoder.encode([("who?", "me")])[0]
    spaces = str.maketrans("", "", " \u2581\n")
    decoded = str(AutoTokenizer.from_pretrained(folder).decode(pair.ids))
    assert text.translate(spaces) == decoded.translate(spaces)
    assert "  | " in str(info)


def test_a_saved_folder_has_its_settings_and_its_chat_template(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    RerankSettings(
        max_length=300,
        normalize="calibrated",
        calibration={"scale": 2.0, "bias": -1.0},
        thresholds={"precision@0.9": 0.25},
        base_model="Qwen/Qwen3-Reranker-0.6B",
    ).write(folder)
    info = model_info(folder)
    assert (info.max_length, info.normalize) == (300, "calibrated")
    assert info.prompt is not None
    assert info.prompt.source == "its chat template"
    assert info.prompt.instruction == QWEN.instruction
    table = str(info)
    assert "calibration   scale 2, bias -1\n" in table
    assert "thresholds    precision@0.9 0.25\n" in table
    assert "trained from  Qwen/Qwen3-Reranker-0.6B\n" in table


def test_an_adapter_has_its_base(tiny_encoder: Path, tmp_path: Path) -> None:
    adapter = drawn_adapter(tiny_encoder, tmp_path / "adapter", 0)
    info = model_info(adapter)
    assert info.adapter is not None
    assert (info.adapter.base, info.adapter.r) == (str(tiny_encoder), 4)
    assert info.adapter.has_head and info.adapter.layers == ["dense", "key", "query", "value"]
    assert f"base          {tiny_encoder}\n" in str(info)
    assert info.max_length == Reranker(adapter, device="cpu").max_length
    with pytest.raises(InputError, match="has no trained scoring head"):
        model_info(tiny_encoder)


def test_the_command(cli: Run, tiny_model: Path, tiny_encoder: Path) -> None:
    code, out, err = cli("info", tiny_model, "--device", "cpu")
    assert (code, err) == (0, "")
    assert out == f"{model_info(tiny_model, device='cpu')}\n"
    code, out, _ = cli("info", "--json", "--model_dir", tiny_model, "--device", "cpu")
    assert json.loads(out) == asdict(model_info(tiny_model, device="cpu"))
    code, out, err = cli("info", tiny_encoder)
    assert (code, out) == (2, "")
    assert err.startswith(f"rerank-plugin info: {tiny_encoder} has no trained scoring head")
    assert err.count("\n") == 1
    assert cli("info", "./nowhere")[0] == 2


#: Describes a model of the hub, in a process whose cache is its own.
DESCRIBING = "from rerank_plugin import model_info; print(model_info('org/model').parameters)"


@pytest.mark.parametrize("build", ["bert", "modular"])
def test_the_weights_of_a_hub_id_are_not_needed(tmp_path: Path, build: str) -> None:
    folder = BUILT[build](tmp_path)
    expected = model_info(folder).parameters
    repository = tmp_path / "hub" / "models--org--model"
    snapshot = shutil.copytree(folder, repository / "snapshots" / "abc")
    for path in Path(snapshot).rglob("*.safetensors"):
        path.unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", DESCRIBING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected


def test_arguments_are_checked_as_those_of_reranker(tiny_model: Path) -> None:
    assert isinstance(model_info(tiny_model), ModelInfo)
    wrong: list[dict[str, Any]] = [
        {"device": "gpu"},
        {"dtype": "bf17"},
        {"trust_remote_code": "no"},
    ]
    for options in wrong:
        with pytest.raises(InputError, match=next(iter(options))):
            model_info(tiny_model, **options)
