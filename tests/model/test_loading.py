import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.model.loading import load_model, load_tokenizer

from ..factories import build_model


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("config.json", "config.json not found"),
        ("model.safetensors", "model.safetensors not found"),
        ("tokenizer.json", "tokenizer.json not found"),
    ],
)
def test_an_incomplete_folder_is_named(folder: Path, missing: str, expected: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=expected) as error:
        load_model(folder)
    assert str(folder) in str(error.value)


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights are not loaded"):
        load_model(folder)


def test_broken_weights_are_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_three_labels_are_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 labels; a reranker has one or two"):
        load_model(build_model(tmp_path, labels=3))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "nobody/no-such-model"])
def test_no_such_model(name: str) -> None:
    with pytest.raises(InputError, match=r"no-such-model|no such model folder"):
        Reranker(name)
    with pytest.raises(InputError):
        load_tokenizer(name)


def test_a_hub_that_cannot_be_reached_is_an_error_with_advice() -> None:
    with pytest.raises(InputError, match=r"hub cannot be reached, .* give the folder of a model"):
        Reranker("nobody/no-such-model")


def test_a_plain_encoder_gets_a_new_head_with_one_label(
    tiny_encoder: Path, tiny_model: Path
) -> None:
    loaded = load_model(tiny_encoder, new_head=True)
    assert loaded.has_new_head
    assert loaded.model.config.num_labels == 1
    assert "classifier.weight" in loaded.new_weights
    assert not load_model(tiny_model).has_new_head


def test_an_adapter_without_its_head_is_an_error(tiny_encoder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_model(tiny_encoder, new_head=True).model
    adapter = get_peft_model(base, LoraConfig(target_modules=["query", "value"]))
    adapter.peft_config["default"].base_model_name_or_path = str(tiny_encoder)
    adapter.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match=r"neither the adapter nor its base .* has classifier"):
        Reranker(tmp_path / "adapter")


def test_a_checkpoint_without_weights_of_the_backbone_is_an_error(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {f"other.{name}": value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="weights of the backbone are missing"):
        load_model(folder)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", "", "[" * 100_000, '{"base_model_name_or_path": 5}'],
    ids=["cut", "list", "empty object", "empty", "deep", "number"],
)
def test_a_broken_adapter_folder_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"adapter_config\.json: ") as error:
        Reranker(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"max_length": "long"}'])
def test_broken_settings_are_one_line(folder: Path, text: str) -> None:
    (folder / "rerank.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"rerank\.json"):
        Reranker(folder)
