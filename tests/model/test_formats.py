"""Models that are refused: every command names the reason, and nothing is scored."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.finetune import merge
from rerank_plugin.model.loading import load_model

from ..factories import (
    Run,
    build_config,
    build_model,
    train_on_easy_groups,
    train_tokenizer,
    write_lines,
)

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"}
PAIRS = [("when does it sail", text) for text in ("at noon", "a refund", "a cabin for two")]

Change = Callable[[Path], object]


def module(kind: str, number: int) -> dict[str, Any]:
    return {
        "idx": number,
        "name": str(number),
        "path": f"{number}_{kind}",
        "type": f"sentence_transformers.{kind}",
    }


def modules(*kinds: str) -> Change:
    listed = [TRANSFORMER, *(module(kind, number) for number, kind in enumerate(kinds, 1))]
    return writes("modules.json", listed)


def writes(name: str, value: object) -> Change:
    return lambda folder: (folder / name).write_text(json.dumps(value), encoding="utf-8")


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def config(**values: object) -> Change:
    """Change values of config.json; None removes one."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        changed = json.loads(path.read_text("utf-8")) | values
        kept = {name: value for name, value in changed.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return change


def weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def changed(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return changed


def pointer(name: str) -> Change:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def chat(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")


def more_tokens(folder: Path) -> None:
    tokenizer = train_tokenizer("bert")
    tokenizer.add_tokens(["harbourmaster"])
    tokenizer.save_pretrained(folder)


def no_template(folder: Path) -> None:
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(stored | {"post_processor": None}), encoding="utf-8")


CROSS_ENCODER = {"model_type": "CrossEncoder", "prompts": {"q": "rank: "}}

#: Changes of a valid folder, and the messages of their errors.
REFUSED: dict[str, tuple[Change, str]] = {
    "a modular head": (modules("Pooling", "Dense"), "has no config.json"),
    "no transformer": (writes("modules.json", [module("Router", 0)]), "begins with Router"),
    "no list": (writes("modules.json", {"a": 1}), "not a list of modules"),
    "logit score": (modules("LogitScore"), "1_LogitScore"),
    "a causal head": (config(architectures=["BertForCausalLM"]), "causal language model"),
    "a text task": (
        both(modules(), writes("sentence_bert_config.json", {"transformer_task": "any-to-any"})),
        "for the task any-to-any",
    ),
    "a default prompt": (
        both(
            modules(),
            writes(
                "config_sentence_transformers.json", CROSS_ENCODER | {"default_prompt_name": "q"}
            ),
        ),
        "puts the prompt 'q' before",
    ),
    "messages": (
        both(modules(), writes("sentence_bert_config.json", {"modality_config": {"message": {}}})),
        "messages of a chat",
    ),
    "a chat template": (chat, "has a chat template"),
    "token labels": (config(architectures=["BertForTokenClassification"]), "TokenClassification"),
    "answers": (config(architectures=["BertForQuestionAnswering"]), "ForQuestionAnswering"),
    "choices": (config(architectures=["BertForMultipleChoice"]), "does not give a pair one score"),
    "a bare word": (config(architectures="BertModel"), "expected a list"),
    "more tokens": (more_tokens, "up to 'harbourmaster'"),
    "no template": (no_template, "puts no token between a query and a document"),
    "another head": (weights(lambda w: w | {"score.weight": torch.ones(1, 32)}), "not used by"),
    "more layers": (config(num_hidden_layers=1), "not used by"),
    "another shape": (
        weights(lambda w: w | {"classifier.weight": torch.ones(3, 32)}),
        r"classifier.weight has shape \[3, 32\]",
    ),
    "another size": (config(vocab_size=700), "embeddings.weight has shape"),
    "a size that is no number": (config(hidden_size="x"), "cannot be loaded: "),
    "padding outside": (config(pad_token_id=9999), "cannot be loaded: Padding_idx"),
    "no git-lfs": (pointer("model.safetensors"), "model.safetensors: a Git LFS pointer"),
    "no tokenizer of git-lfs": (pointer("tokenizer.json"), r"tokenizer.json: a Git LFS pointer"),
    "no config of git-lfs": (pointer("config.json"), r"config.json: a Git LFS pointer"),
    "remote code": (
        config(model_type="mine", auto_map={"AutoConfig": "code.Mine"}),
        "--trust_remote_code",
    ),
}

#: The same for models that can be trained but not scored.
HEADLESS: dict[str, Change] = {
    "an embedding model": modules("Pooling", "Normalize"),
    "masks": config(architectures=["BertForMaskedLM"]),
    "no classifier": weights(lambda w: {k: v for k, v in w.items() if "classifier" not in k}),
    "no bias": weights(lambda w: {k: v for k, v in w.items() if k != "classifier.bias"}),
    "no pooler": weights(lambda w: {k: v for k, v in w.items() if "pooler" not in k}),
}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_not_understood_is_refused(folder: Path, name: str) -> None:
    change, expected = REFUSED[name]
    change(folder)
    with pytest.raises(InputError, match=expected) as error:
        Reranker(folder, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", HEADLESS)
def test_a_model_without_a_head_is_for_training_alone(folder: Path, name: str) -> None:
    HEADLESS[name](folder)
    with pytest.raises(InputError, match="has no trained scoring head"):
        Reranker(folder, device="cpu")
    assert load_model(folder, new_head=True).model.config.num_labels == 1


def commands(model: Path, data: Path, out: Path) -> dict[str, list[object]]:
    """Return the arguments of every command that loads a model, by the name of the command."""
    requests = write_lines(out / "requests.jsonl", [{"query": "dog", "documents": ["cat"]}])
    texts = [{"_id": f"d{i}", "text": f"a text about the number {i}"} for i in range(8)]
    corpus = write_lines(out / "corpus.jsonl", texts)
    queries = write_lines(out / "queries.jsonl", [{"query": "dog", "answer": "text"}])
    train = ["train", "--model_name_or_path", model, "--data_path", data]
    return {
        "rerank": ["rerank", "--model_dir", model, "--data_path", requests],
        "evaluate": ["evaluate", "--model_dir", model, "--data_path", data],
        "train": [*train, "--finetune_model_dir", out / "trained"],
        "lora": [*train, "--finetune_model_dir", out / "trained", "--lora"],
        "check": ["check", "--data_path", data, "--model_name_or_path", model],
        "mine": [
            *("mine", "--queries", queries, "--corpus", corpus, "--output", out / "mined.jsonl"),
            *("--filter_model", model),
        ],
    }


@pytest.mark.parametrize("command", ["rerank", "evaluate", "train", "lora", "check", "mine"])
@pytest.mark.parametrize("name", ["a modular head", "logit score", "a causal head"])
def test_every_command_refuses_it(
    cli: Run, folder: Path, groups_file: Path, tmp_path: Path, name: str, command: str
) -> None:
    change, expected = REFUSED[name]
    change(folder)
    code, out, err = cli(*commands(folder, groups_file, tmp_path)[command])
    assert code == 2
    assert expected.split(", ")[0].removeprefix("r") in out + err


def test_a_baseline_without_a_head_is_refused_before_anything_is_scored(
    cli: Run, tiny_model: Path, tiny_encoder: Path, groups_file: Path
) -> None:
    for models in ((tiny_model, tiny_encoder), (tiny_encoder, tiny_model)):
        code, out, err = cli(
            *("evaluate", "--model_dir", models[0], "--baseline", models[1]),
            *("--data_path", groups_file, "--device", "cpu"),
        )
        assert code == 2 and not out
        assert f"{tiny_encoder} has no trained scoring head" in err


def test_a_token_classifier_of_one_label_is_no_reranker(tmp_path: Path) -> None:
    """Although its weights have the names and shapes of a reranker's."""
    tokenizer = train_tokenizer("bert")
    model = AutoModelForTokenClassification.from_config(
        build_config("bert", tokenizer, num_labels=1)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="BertForTokenClassification"):
        Reranker(tmp_path)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_config_without_architectures(tmp_path: Path, labels: int) -> None:
    folder = build_model(tmp_path / "model", labels=labels)
    expected = Reranker(folder, dtype="float32", device="cpu").logits(PAIRS)
    config(architectures=None)(folder)
    logits = Reranker(folder, dtype="float32", device="cpu").logits(PAIRS)
    np.testing.assert_array_equal(logits, expected)


def test_an_encoder_without_architectures(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    config(architectures=None)(folder)
    assert load_model(folder, new_head=True).model.config.num_labels == 1
    with pytest.raises(InputError, match="has no trained scoring head"):
        Reranker(folder)


def test_a_folder_of_cross_encoder_is_one(tiny_model: Path, tmp_path: Path) -> None:
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder  # noqa: N806
    model = CrossEncoder(str(tiny_model), device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    scores = Reranker(tmp_path / "saved", dtype="float32", device="cpu").score(PAIRS)
    np.testing.assert_allclose(scores, model.predict(PAIRS), atol=1e-5)


def test_embedding_models_are_a_base(sentence_model: Path) -> None:
    assert load_model(sentence_model, new_head=True).has_new_head
    with pytest.raises(InputError, match="has no trained scoring head"):
        Reranker(sentence_model)


@pytest.mark.parametrize("options", [{}, {"lora": True, "merge": True}, {"lora": True}])
def test_two_labels_mean_the_same_in_sentence_transformers(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder  # noqa: N806
    base = build_model(tmp_path / "two", labels=2)
    options = {"trainer": {"max_steps": 1}, **options}
    trained = train_on_easy_groups(base, tmp_path / "out", groups=8, **options).model_dir
    scores = Reranker(trained, dtype="float32", device="cpu").score(PAIRS)
    if (trained / "adapter_config.json").is_file():
        trained = merge(model_dir=trained, output_dir=tmp_path / "merged").model_dir
    predictions = CrossEncoder(str(trained), device="cpu").predict(PAIRS)
    assert predictions.shape == (len(PAIRS),)
    np.testing.assert_allclose(predictions, scores, atol=1e-5)


#: Loads three models from a cache of the hub, in another process.
LOADING = """
from rerank_plugin.model.loading import load_model
for name in ("org/whole", "org/modular", "org/pickled"):
    try:
        print(load_model(name).model.config.num_labels)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_hub_id_is_read_as_a_folder_is(tiny_model: Path, tmp_path: Path) -> None:
    def cached(name: str) -> Path:
        repository = tmp_path / "hub" / f"models--org--{name}"
        snapshot = Path(shutil.copytree(tiny_model, repository / "snapshots" / "abc"))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        return snapshot

    cached("whole")
    modules("Pooling", "Dense")(cached("modular"))
    pickled = cached("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", LOADING],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    whole, modular, weights_error = done.stdout.splitlines()
    assert whole == "1"
    assert "InputError org/modular: 1_Pooling (of modules.json) has no" in modular
    assert "pickled weights are not loaded: save them as safetensors" in weights_error
