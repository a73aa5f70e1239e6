"""Language models are fine-tuned as rerankers, and other libraries score with what is saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rerank_plugin import Reranker
from rerank_plugin.errors import OptionError
from rerank_plugin.finetune import FinetuneConfig, finetune, merge

from ..factories import build_language_model, easy_groups, write_lines

PAIRS = [(f"question number {i}?\n", f"a refund {'of words ' * (i * 4)}") for i in range(10)]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_language_model(tmp_path_factory.mktemp("language") / "model", "llama")


def run(model: Path, folder: Path, *, steps: int = 4, **options: Any) -> Path:
    data = write_lines(folder.with_suffix(".train.jsonl"), easy_groups(16))
    held_out = write_lines(folder.with_suffix(".dev.jsonl"), easy_groups(4, start=100))
    trainer = {"max_steps": steps, "eval_strategy": "no", **options.pop("trainer", {})}
    values: dict[str, Any] = {"lr": 1e-3, "batch_size": 4, "max_len": 200, "dtype": "float32"}
    config = FinetuneConfig(
        model_name_or_path=str(model),
        data_path=str(data),
        eval_data_path=str(held_out),
        finetune_model_dir=str(folder),
        trainer=trainer,
        device="cpu",
        **values | options,
    )
    return finetune(config).model_dir


def scores(folder: Path, **options: Any) -> Any:
    options = {"device": "cpu", "dtype": "float32", "normalize": "none"} | options
    return Reranker(folder, **options).score(PAIRS)


def cross_encoder_scores(folder: Path) -> Any:
    # Older versions score without the chat template.
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())


@pytest.mark.parametrize("lora", [False, True])
def test_a_trained_folder_scores_the_same_elsewhere(
    language_model: Path, tmp_path: Path, lora: bool
) -> None:
    folder = run(language_model, tmp_path / "trained", lora=lora, scoring_tokens="Yes,No")
    trained = scores(folder)
    assert len(set(trained.tolist())) == len(PAIRS)
    if lora:
        assert any("score" in name for name in load_file(folder / "adapter_model.safetensors"))
        folder = merge(model_dir=str(folder), output_dir=str(tmp_path / "merged")).model_dir
        np.testing.assert_allclose(scores(folder), trained, atol=1e-5)
    again = run(folder, tmp_path / "again", steps=1)
    assert (again / "chat_template.jinja").read_text() == (
        folder / "chat_template.jinja"
    ).read_text()
    np.testing.assert_allclose(cross_encoder_scores(folder), trained, atol=1e-4)


def test_the_default_rate_depends_on_whether_it_is_a_reranker_already(
    language_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rerank_plugin")
    folder = run(language_model, tmp_path / "trained", steps=1, lr=None)
    run(folder, tmp_path / "again", steps=1, lr=None)
    kinds = [text for text in caplog.messages if text.startswith("learning rate")]
    assert ["a general language model" in text for text in kinds] == [True, False]


@pytest.mark.parametrize("lora", [False, True])
def test_activation_checkpointing_changes_no_weight(
    language_model: Path, tmp_path: Path, lora: bool
) -> None:
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    plain, checkpointed = (
        load_file(
            run(
                language_model,
                tmp_path / f"run{enabled}",
                lora=lora,
                trainer={"gradient_checkpointing": enabled},
            )
            / name
        )
        for enabled in (False, True)
    )
    assert plain.keys() == checkpointed.keys()
    for key, weight in plain.items():
        torch.testing.assert_close(checkpointed[key], weight, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scoring_tokens": "yes,no,maybe"}, "expected one or two tokens"),
        ({"scoring_tokens": "yes,unheard"}, "'unheard' is not one token of"),
        ({"fold_calibration": True}, "has no bias"),
        ({"max_len": 40}, "leaves no room for a document beside the prompt of"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    language_model: Path, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError, match=problem) as error:
        run(language_model, tmp_path / "trained", **options)
    assert "\n" not in str(error.value)


def test_an_encoder_has_no_scoring_tokens(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is an encoder, which has none"):
        run(tiny_model, tmp_path / "trained", scoring_tokens="yes,no")
