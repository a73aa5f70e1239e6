"""Modular rerankers: the scores are those of sentence-transformers, or the folder is refused."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_plugin import Reranker
from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.padding import pad
from rerank_plugin.engine.scorer import Scorer
from rerank_plugin.errors import InputError
from rerank_plugin.finetune.export.model_folder import prepare_config, save_plain
from rerank_plugin.model.loading import load_model

from ..factories import build_modular, sample_texts

sentence_transformers = pytest.importorskip("sentence_transformers")
# Older versions have no modular rerankers.
pytest.importorskip("sentence_transformers.base.modules")

Change = Callable[[Path], object]


def some_pairs(count: int = 12, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of all lengths, some longer than the model's 128 positions."""
    words = " ".join(sample_texts()).split()
    rng = random.Random(seed)
    lengths = [rng.choice((1, 5, 20, 50, 300)) for _ in range(count)]
    return [(" ".join(rng.sample(words, 4)), " ".join(rng.sample(words, n))) for n in lengths]


def expected_logits(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray[Any, Any]:
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    logits: np.ndarray[Any, Any] = model.predict(
        pairs, batch_size=1, activation_fn=torch.nn.Identity()
    )
    assert np.ptp(logits) > 0.05
    return logits


def logits_of(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray[Any, Any]:
    return Reranker(folder, dtype="float32", device="cpu", max_length=128).logits(pairs)


@pytest.fixture(scope="module")
def modular_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_modular(tmp_path_factory.mktemp("modular"))


@pytest.fixture
def folder(modular_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(modular_model, tmp_path / "model"))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["modernbert", "bert", "xlm-roberta", "deberta-v2", "convbert"])
def test_scores_are_those_of_sentence_transformers(
    tmp_path: Path, family: str, pooling: str
) -> None:
    folder, pairs = build_modular(tmp_path, family, pooling=pooling), some_pairs()
    np.testing.assert_allclose(logits_of(folder, pairs), expected_logits(folder, pairs), atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_packed_rows_have_the_scores_of_padded_ones(
    tmp_path: Path, family: str, pooling: str
) -> None:
    loaded = load_model(build_modular(tmp_path, family, pooling=pooling))
    assert not loaded.has_new_head
    encoder = PairEncoder(loaded.tokenizer, max_length=128)
    pairs = some_pairs()
    batch = pad(encoder.encode(pairs), encoder.pad_id, with_types=family == "bert")
    with torch.inference_mode():
        expected = loaded.model(**batch).logits[:, 0]
    scorer = Scorer(loaded.model, encoder)
    assert scorer.packs
    np.testing.assert_allclose(scorer.logits(pairs), expected, atol=1e-5)


def scores_layer(width: int, **options: Any) -> Any:
    from sentence_transformers.base.modules import Dense

    return Dense(width, 1, activation_function=None, module_output_name="scores", **options)


def residual_head(width: int) -> list[Any]:
    from sentence_transformers.base.modules import Dense

    wider = Dense(width, 3 * width, use_residual=True, activation_function=torch.nn.SiLU())
    as_wide = Dense(3 * width, 3 * width, use_residual=True)
    return [wider, as_wide, scores_layer(3 * width, bias=False)]


HEADS: dict[str, Callable[[int], list[Any]]] = {
    "residual": residual_head,
    "one layer": lambda width: [scores_layer(width)],
}


@pytest.mark.parametrize("head", HEADS)
def test_other_heads(tmp_path: Path, head: str) -> None:
    folder, pairs = build_modular(tmp_path / "model", head=HEADS[head]), some_pairs()
    expected = expected_logits(folder, pairs)
    np.testing.assert_allclose(logits_of(folder, pairs), expected, atol=1e-4)
    save_plain(load_model(folder), tmp_path / "saved")
    np.testing.assert_allclose(expected_logits(tmp_path / "saved", pairs), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_a_saved_folder_is_as_sentence_transformers_saves_it(tmp_path: Path, family: str) -> None:
    folder = build_modular(tmp_path / "model", family, pooling="mean")
    loaded = load_model(folder)
    prepare_config(loaded.model.config, "none")
    save_plain(loaded, tmp_path / "saved")
    paths = [
        sorted(path.relative_to(root) for path in root.rglob("*"))
        for root in (folder, tmp_path / "saved")
    ]
    assert paths[0] == paths[1]
    for path in paths[0]:
        if path.suffix == ".json" and path.name not in CHANGED:
            assert read(tmp_path / "saved" / path) == read(folder / path)
        if path.suffix == ".safetensors":
            first, second = load_file(folder / path), load_file(tmp_path / "saved" / path)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)
    pairs = some_pairs()
    np.testing.assert_allclose(
        sentence_transformers.CrossEncoder(str(tmp_path / "saved"), device="cpu").predict(pairs),
        expected_logits(folder, pairs),
        atol=1e-5,
    )


#: Files whose contents depend on versions and settings.
CHANGED = ("config.json", "config_sentence_transformers.json", "tokenizer_config.json")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def settings(name: str, **values: object) -> Change:
    """Change values of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        changed = read(folder / name) | values
        kept = {key: value for key, value in changed.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return change


def listed(number: int, **values: object) -> Change:
    """Change values of a module in modules.json."""

    def change(folder: Path) -> None:
        modules = read(folder / "modules.json")
        modules[number] |= values
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")

    return change


def removed(number: int) -> Change:
    def change(folder: Path) -> None:
        modules = read(folder / "modules.json")
        del modules[number]
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")

    return change


def weights(name: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def change(folder: Path) -> None:
        save_file(edit(load_file(folder / name)), folder / name, metadata={"format": "pt"})

    return change


def all_of(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


OPTIONS = "config_sentence_transformers.json"

#: Other ways to write down the same model.
SAME: dict[str, Change] = {
    "older pooling": all_of(
        settings(
            "1_Pooling/config.json",
            pooling_mode=None,
            embedding_dimension=None,
            word_embedding_dimension=32,
            pooling_mode_cls_token=True,
            pooling_mode_mean_tokens=False,
        ),
        listed(1, type="sentence_transformers.models.Pooling"),
    ),
    "older dense": all_of(
        settings("2_Dense/config.json", module_input_name=None, module_output_name=None),
        listed(2, type="sentence_transformers.models.Dense"),
    ),
    "older transformer": all_of(
        lambda folder: (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": 128, "do_lower_case": False})
        ),
        listed(0, type="sentence_transformers.models.Transformer"),
    ),
    "a list of one pooling": settings("1_Pooling/config.json", pooling_mode=["cls"]),
    "truncation": settings(
        "sentence_bert_config.json", processing_kwargs={"text": {"truncation": "only_second"}}
    ),
    "an encoder in a folder": all_of(
        lambda folder: (folder / "0_Transformer").mkdir(),
        lambda folder: [
            path.rename(folder / "0_Transformer" / path.name)
            for path in folder.iterdir()
            if path.is_file() and path.name not in ("modules.json", OPTIONS)
        ],
        listed(0, path="0_Transformer"),
    ),
    "other names of folders": all_of(
        lambda folder: (folder / "2_Dense").rename(folder / "2_First"), listed(2, path="2_First")
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_other_ways_to_write_it(modular_model: Path, folder: Path, name: str) -> None:
    SAME[name](folder)
    pairs = some_pairs()
    expected = expected_logits(folder, pairs)
    np.testing.assert_allclose(logits_of(folder, pairs), expected, atol=1e-4)
    np.testing.assert_array_equal(logits_of(folder, pairs), logits_of(modular_model, pairs))


PROMPTS = {"prompts": {"q": "rank: "}, "default_prompt_name": "q"}

#: Changes of a good folder, and the error then.
REFUSED: dict[str, tuple[Change, str]] = {
    "an unknown module": (listed(3, type="sentence_transformers.x.Normalize"), "is a Normalize"),
    "a class of another package": (listed(2, type="pylate.models.Dense"), "2_Dense .* is a Dense"),
    "no pooling": (removed(1), "2_Dense .* expected a Pooling"),
    "no last layer": (removed(4), "3_LayerNorm .* gives 'sentence_embedding', expected 'scores'"),
    "an embedding model": (settings(OPTIONS, model_type=None), "a SentenceTransformer, whose"),
    "a path": (listed(2, path="../2_Dense"), "outside of it"),
    "max pooling": (settings("1_Pooling/config.json", pooling_mode="max"), "pools by max"),
    "two poolings": (
        settings("1_Pooling/config.json", pooling_mode=["cls", "mean"]),
        r"pools by \['cls', 'mean'\]",
    ),
    "a prompt left out": (settings("1_Pooling/config.json", include_prompt=False), "prompt"),
    "a default prompt": (settings(OPTIONS, **PROMPTS), "puts the prompt 'q' before"),
    "two scores": (settings("4_Dense/config.json", out_features=2), "gives 2 scores"),
    "no size": (settings("4_Dense/config.json", in_features=None), "in_features None"),
    "another size": (settings("3_LayerNorm/config.json", dimension=8), "reads 8 numbers, but gets"),
    "an activation at the end": (
        settings("4_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh"),
        "changes the logit",
    ),
    "its default": (settings("4_Dense/config.json", activation_function=None), "changes the logit"),
    "an unknown activation": (
        settings("2_Dense/config.json", activation_function="torch.load"),
        "activation function 'torch.load'",
    ),
    "an unknown setting": (settings("2_Dense/config.json", scale=2), "unknown setting 'scale'"),
    "another input": (settings("2_Dense/config.json", module_input_name="x"), "reads 'x'"),
    "another output": (settings("2_Dense/config.json", module_output_name="x"), "gives 'x'"),
    "unread weights": (
        weights("2_Dense/model.safetensors", lambda w: w | {"linear.bias": torch.ones(32)}),
        "has linear.bias of shape .32., but its config.json no linear.bias",
    ),
    "missing weights": (
        weights("3_LayerNorm/model.safetensors", lambda w: {"norm.bias": w["norm.bias"]}),
        "has no norm.weight",
    ),
    "weights of another shape": (
        weights("4_Dense/model.safetensors", lambda w: w | {"linear.weight": torch.ones(1, 8)}),
        r"has linear.weight of shape \[1, 8\], but its config.json linear.weight of shape \[1, 32",
    ),
    "no weights": (
        lambda folder: (folder / "4_Dense/model.safetensors").unlink(),
        "4_Dense/model.safetensors not found",
    ),
    "no git-lfs": (
        lambda folder: (folder / "4_Dense/model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
        ),
        "4_Dense/model.safetensors: a Git LFS pointer",
    ),
    "another head": (
        weights("model.safetensors", lambda w: w | {"classifier.weight": torch.ones(1, 32)}),
        "not used",
    ),
    "no layer": (
        weights(
            "model.safetensors",
            lambda w: {name: weight for name, weight in w.items() if "layers.1" not in name},
        ),
        "of the backbone are missing",
    ),
    "lower case": (settings("sentence_bert_config.json", do_lower_case=True), "do_lower_case=True"),
    "another task": (
        settings("sentence_bert_config.json", transformer_task="sequence-classification"),
        "transformer_task",
    ),
    "another layer": (
        settings(
            "sentence_bert_config.json",
            modality_config={
                "text": {"method": "forward", "method_output_name": ["hidden_states", 1]}
            },
        ),
        "hidden_states",
    ),
    "no special tokens": (
        settings(
            "sentence_bert_config.json", processing_kwargs={"text": {"add_special_tokens": False}}
        ),
        "setting processing_kwargs=",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_not_understood_is_refused(folder: Path, name: str) -> None:
    change, expected = REFUSED[name]
    change(folder)
    with pytest.raises(InputError, match=expected) as error:
        Reranker(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_head_that_was_replaced_makes_another_model(folder: Path) -> None:
    reranker = Reranker(folder, device="cpu")
    assert Reranker(folder, device="cpu").identity == reranker.identity
    weights("4_Dense/model.safetensors", lambda w: {name: 2 * w[name] for name in w})(folder)
    assert Reranker(folder, device="cpu").identity != reranker.identity
