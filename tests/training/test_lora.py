"""LoRA: training, loading alone, merged, in peft, and several adapters on one base."""

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from rerank_plugin import Reranker
from rerank_plugin.engine.padding import pad
from rerank_plugin.errors import InputError, OptionError, SavingError
from rerank_plugin.finetune import merge
from rerank_plugin.finetune.report.report import ComparisonReport
from rerank_plugin.finetune.training import lora
from rerank_plugin.finetune.training.lora import add_adapter
from rerank_plugin.model.families import FAMILIES as TABLE
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.settings import RerankSettings

from ..factories import (
    CAUSAL_FAMILIES,
    FAMILIES,
    Run,
    build_language_model,
    build_model,
    mount,
    train_on_easy_groups,
)

PAIRS = [(f"question number {i}", f"a refund of some {'words ' * (i % 4)}") for i in range(12)]

#: Encoders that are packed, and some that are padded.
PACKED_AND_PADDED = {
    name for name, family in TABLE.items() if family.last_module is not None and not family.causal
}
PACKED_AND_PADDED |= {"deberta", "deberta-v2", "mpnet"}

NAMES = ("legal", "medical", "v1.2")


def lora_run(
    model: Path, folder: Path, *, trainer: dict[str, Any] | None = None, **options: Any
) -> Path:
    # Keep the last weights, whether they are better or not.
    trainer = {"eval_strategy": "no", **(trainer or {})}
    options = {"lora": True, "total_epoch": 2, "trainer": trainer, **options}
    return train_on_easy_groups(model, folder, **options).model_dir


@pytest.fixture(scope="module", params=FAMILIES)
def plain_encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an encoder of each family without a scoring head."""
    folder = build_model(tmp_path_factory.mktemp(request.param) / "encoder", request.param)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(plain_encoder: Path) -> Path:
    """Train an adapter with a new head."""
    return lora_run(plain_encoder, plain_encoder.with_name("adapter"))


def logits(model: Any, **options: Any) -> Any:
    return Reranker(model, dtype="float32", device="cpu", **options).logits(PAIRS)


def logits_of_peft(folder: Path, reranker: Reranker) -> Any:
    """Return the logits that peft alone computes from an adapter folder, for the same tokens."""
    from peft import AutoPeftModelForSequenceClassification

    alone = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    inputs = reranker._scorer.encoder.tokenizer(
        [query for query, _ in PAIRS],
        [text for _, text in PAIRS],
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        return alone(**inputs).logits[:, 0]


def test_an_adapter_alone_merged_and_in_peft_gives_the_same_logits(
    plain_encoder: Path, trained: Path, tmp_path: Path
) -> None:
    reranker = Reranker(trained, dtype="float32", device="cpu")
    expected = reranker.logits(PAIRS)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(logits_of_peft(trained, reranker), expected, atol=1e-5)
    merged = lora_run(plain_encoder, tmp_path / "merged", merge=True)
    assert not (merged / "adapter_config.json").exists()
    for other in (
        logits(trained),
        logits(plain_encoder, adapter=trained),
        logits(merged),
        Reranker(plain_encoder, adapters={"own": trained}, dtype="float32", device="cpu").logits(
            PAIRS, adapter="own"
        ),
    ):
        np.testing.assert_allclose(other, expected, atol=1e-5)


def test_the_head_of_a_run_is_trained_and_saved(plain_encoder: Path, trained: Path) -> None:
    new_weights = set(load_model(plain_encoder, new_head=True).new_weights)
    saved = load_file(trained / "adapter_model.safetensors")
    keys = {name: next(k for k in saved if k.endswith(f".{name}")) for name in new_weights}
    torch.manual_seed(0)
    seed = json.loads((trained / "rerank.json").read_text())["options"]["seed"]
    torch.manual_seed(seed)
    before = load_model(plain_encoder, new_head=True).model.state_dict()
    moved = [name for name in new_weights if not torch.allclose(saved[keys[name]], before[name])]
    assert {name for name in new_weights if name.endswith("weight") and "norm" not in name} <= set(
        moved
    )


def drawn_adapter(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    """Save an adapter as a run does, with large random weights."""
    loaded = load_model(base, new_head=True)
    values: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0}
    return drawn(add_adapter(loaded, base=str(base), **values | options), folder, seed)


def by_peft(base: Path, folder: Path, seed: int = 0, **options: Any) -> Path:
    """Save an adapter as peft alone does, with large random weights."""
    from peft import LoraConfig, TaskType, get_peft_model

    model = load_model(base).model
    model.name_or_path = str(base)
    values: dict[str, Any] = {"r": 4, "target_modules": ["query"]} | options
    adapted = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, **values))
    return drawn(adapted, folder, seed)


def drawn(model: Any, folder: Path, seed: int) -> Path:
    """Draw large weights for an adapter, and save it."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(family_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: drawn_adapter(family_model, folder / str(seed), seed, r=2 + seed)
        for seed, name in enumerate(NAMES)
    }


def test_adapters_of_one_base_score_as_if_each_were_alone(
    family_model: Path, adapters: dict[str, Path]
) -> None:
    many = Reranker(family_model, adapters=adapters, dtype="float32", device="cpu")
    expected: dict[str | None, Any] = {name: logits(adapters[name]) for name in NAMES}
    expected[None] = logits(family_model)
    for name in (*NAMES, None, *NAMES):
        np.testing.assert_allclose(many.logits(PAIRS, adapter=name), expected[name], atol=1e-5)
    assert len({round(float(values[0]), 3) for values in expected.values()}) == 4


def test_calls_for_different_adapters_at_once(
    family_model: Path, adapters: dict[str, Path]
) -> None:
    many = Reranker(family_model, adapters=adapters, dtype="float32", device="cpu")
    names = [*NAMES, None] * 8
    expected = {name: many.logits(PAIRS, adapter=name) for name in names[:4]}

    async def tasks() -> list[Any]:
        return await asyncio.gather(*(many.alogits(PAIRS, adapter=name) for name in names))

    with ThreadPoolExecutor(8) as pool:
        scored = list(pool.map(lambda name: many.logits(PAIRS, adapter=name), names))
    for name, values in zip([*names, *names], [*scored, *asyncio.run(tasks())], strict=True):
        np.testing.assert_allclose(values, expected[name], atol=1e-5)


def test_adapters_with_other_layers_and_of_other_kinds(tiny_model: Path, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "query alone": {"target_modules": ["query"]},
        "all": {"target_modules": ["query", "value", "dense"], "use_rslora": True},
    }
    folders = {}
    for seed, (name, options) in enumerate(kinds.items()):
        folders[name] = by_peft(tiny_model, tmp_path / name, seed, **options)
    folders["dora"] = drawn_adapter(tiny_model, tmp_path / "dora", 5, use_dora=True)
    for chosen in (list(kinds), [*kinds, "dora"]):
        many = Reranker(
            tiny_model, adapters={name: folders[name] for name in chosen}, dtype="float32"
        )
        for name in chosen:
            scores = many.logits(PAIRS, adapter=name)
            np.testing.assert_allclose(scores, logits(folders[name]), atol=1e-5)


def test_requests_for_adapters_that_cannot_be_met_are_errors(
    tiny_model: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = drawn_adapter(tiny_model, tmp_path / "a", 0)
    many = Reranker(tiny_model, adapters={"legal": folder})
    with pytest.raises(InputError, match="adapter: invalid choice: 'tax'"):
        many.rank("dog", ["cat"], adapter="tax")
    with pytest.raises(InputError, match="the model has none"):
        Reranker(tiny_model).rank("dog", ["cat"], adapter="legal")
    with pytest.raises(InputError, match="adapter: not allowed with adapters"):
        Reranker(tiny_model, adapter=folder, adapters={"legal": folder})
    with pytest.raises(InputError, match="an adapter, which cannot have another"):
        Reranker(folder, adapter=folder)
    with pytest.raises(InputError, match="not a LoRA adapter folder"):
        Reranker(tiny_model, adapter=tiny_model)
    adapter = drawn_adapter(tiny_encoder, tmp_path / "b", 0)
    bare = Reranker(tiny_encoder, adapters={"own": adapter})
    assert len(bare.rank("dog", ["cat"], adapter="own")) == 1
    with pytest.raises(InputError, match=r"no trained scoring head .choose"):
        bare.rank("dog", ["cat"])


def test_an_adapter_without_its_head_is_an_error(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = drawn_adapter(tiny_encoder, tmp_path / "a", 0)
    weights = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "classifier" not in k}, weights)
    for options in ({"adapter": folder}, {"adapters": {"a": folder}}):
        with pytest.raises(InputError, match=r"neither the adapter nor .* has classifier\."):
            Reranker(tiny_encoder, **options)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k: v for k, v in w.items() if "query.lora_A" not in k},
        lambda w: {k.replace("layer.1", "layer.7"): v for k, v in w.items()},
        lambda w: w | {"base_model.model.other.lora_A.weight": torch.ones(4, 32)},
        lambda w: w | {"base_model.model.score.weight": torch.ones(1, 32)},
    ],
    ids=["missing", "other layers", "more", "another head"],
)
def test_an_adapter_is_read_as_a_whole(tiny_model: Path, tmp_path: Path, change: Any) -> None:
    folder = drawn_adapter(tiny_model, tmp_path / "a", 0)
    weights = folder / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)
    for options in ({"adapter": folder}, {"adapters": {"a": folder}}):
        with pytest.raises(InputError, match="weights of the adapter are missing or not loaded"):
            Reranker(tiny_model, **options)


def test_an_adapter_that_git_lfs_has_not_fetched(tiny_model: Path, tmp_path: Path) -> None:
    folder = drawn_adapter(tiny_model, tmp_path / "a", 0)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    (folder / "adapter_model.safetensors").write_text(text)
    with pytest.raises(InputError, match=r"adapter_model.safetensors: a Git LFS pointer"):
        Reranker(folder)


@pytest.fixture
def of_a_run(tiny_model: Path, tmp_path: Path) -> Path:
    """Train an adapter, which records a digest of its base."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    return lora_run(base, tmp_path / "adapter", trainer={"max_steps": 1})


def test_an_adapter_for_another_base_is_an_error(of_a_run: Path) -> None:
    base = of_a_run.with_name("base")
    moved = base.rename(of_a_run.with_name("moved"))
    np.testing.assert_array_equal(logits(moved, adapter=of_a_run), logits(moved, adapter=of_a_run))
    other = build_model(of_a_run.with_name("other"), hidden_size=64)
    with pytest.raises(InputError, match=r"the adapter was trained for .*base, not for .*other"):
        Reranker(other, adapters={"a": of_a_run})
    weights = load_file(moved / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, moved / "model.safetensors", {"format": "pt"})
    moved.rename(base)
    with pytest.raises(InputError, match="which has changed since"):
        Reranker(of_a_run)
    foreign = drawn_adapter(other, of_a_run.with_name("foreign"), 0)
    with pytest.raises(InputError, match=r"trained for .*other, not for .*base"):
        Reranker(base, adapter=foreign)


def test_adapters_that_were_trained_apart_must_agree(tiny_model: Path, tmp_path: Path) -> None:
    folders = {
        name: drawn_adapter(tiny_model, tmp_path / name, length)
        for name, length in (("a", 32), ("b", 64))
    }
    thresholds = {"a": 0.1, "b": 0.7}
    for (name, folder), length in zip(folders.items(), (32, 64), strict=True):
        settings = RerankSettings(max_length=length, thresholds={"best": thresholds[name]})
        settings.write(folder)
    with pytest.raises(InputError, match=r"the adapters have different values \(32, 64\)"):
        Reranker(tiny_model, adapters=folders)
    many = Reranker(tiny_model, adapters=folders, max_length=64)
    assert many.max_length == 64
    assert [many.settings(name).threshold("best") for name in "ab"] == [0.1, 0.7]
    replace(RerankSettings.read(folders["a"]), max_length=64).write(folders["a"])
    assert Reranker(tiny_model, adapters=folders).max_length == 64


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_target_modules": "query,value"},
        {"gradient_checkpointing": True, "lora_dropout": 0.1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_variants_of_lora_are_trained_and_loaded(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    trainer = {name: value for name, value in options.items() if name == "gradient_checkpointing"}
    of_lora = {name: value for name, value in options.items() if name not in trainer}
    folder = lora_run(tiny_model, tmp_path / "a", trainer=trainer, **of_lora)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["use_rslora"] == ("use_rslora" in options)
    assert config["use_dora"] == ("use_dora" in options)
    if "lora_target_modules" in options:
        assert sorted(config["target_modules"]) == ["query", "value"]
    scores = Reranker(tiny_model, adapters={"a": folder}, dtype="float32").logits(
        PAIRS, adapter="a"
    )
    np.testing.assert_allclose(scores, logits(folder), atol=1e-5)


def test_frozen_weights_in_bfloat16_change_nothing(
    family_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        loaded = load_model(family_model)
        model = add_adapter(
            loaded, base="m", r=4, alpha=8, dropout=0.0, dtype=torch.bfloat16
        ).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        inputs = loaded.tokenizer(
            [q for q, _ in PAIRS], [t for _, t in PAIRS], padding=True, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits.float()
        logits.square().sum().backward()
        gradients_by_name = {
            name: p.grad for name, p in model.named_parameters() if p.grad is not None
        }
        return logits.detach(), gradients_by_name

    logits, actual = gradients()
    monkeypatch.setattr(lora, "keep_frozen_in", lambda *_: None)
    expected_logits, expected = gradients()
    assert torch.equal(logits, expected_logits)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_a_base_in_4_bits_trains_adapter_and_head(plain_encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    runs = {}
    for in_4bit in (False, True):
        torch.manual_seed(0)
        loaded = load_model(plain_encoder, new_head=True)
        options: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, "in_4bit": in_4bit}
        model = add_adapter(loaded, base=str(plain_encoder), **options).to("cpu")
        inputs = loaded.tokenizer(
            [q for q, _ in PAIRS], [t for _, t in PAIRS], padding=True, return_tensors="pt"
        )
        logits = model(**inputs).logits
        logits.square().sum().backward()
        trained = {name for name, p in model.named_parameters() if p.grad is not None}
        frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
        runs[in_4bit] = logits.detach(), trained, frozen
    assert runs[True][1] == runs[False][1]
    assert runs[True][2] < runs[False][2]
    assert not torch.equal(runs[True][0], runs[False][0])
    torch.testing.assert_close(runs[True][0], runs[False][0], atol=0.3, rtol=0)
    model.save_pretrained(tmp_path / "a")
    assert len(Reranker(tmp_path / "a", dtype="float32").logits(PAIRS)) == len(PAIRS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_base_in_4_bits(tiny_encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options: dict[str, Any] = {"load_in_4bit": True, "device": "cuda", "dtype": "bfloat16"}
    folder = lora_run(tiny_encoder, tmp_path / "a", **options)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses and np.isfinite(losses).all()
    assert np.isfinite(logits(folder)).all()


def test_a_base_in_4_bits_is_for_gpus(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="load_in_4bit: requires a CUDA GPU"):
        lora_run(tiny_encoder, tmp_path / "a", load_in_4bit=True)


def test_target_modules_that_do_not_exist_are_errors(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="lora_target_modules: no linear layer is called 'q_proj'"
    ):
        lora_run(tiny_model, tmp_path / "a", lora_target_modules="query,q_proj")


def test_plain_peft_adapters_of_a_trained_base_work(tiny_model: Path, tmp_path: Path) -> None:
    """Without rerank.json, as other programs save them."""
    folder = drawn_adapter(tiny_model, tmp_path / "a", 0)
    assert not (folder / "rerank.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    from peft import PeftModel

    peft = PeftModel.from_pretrained(model, folder).eval()
    encoder = Reranker(tiny_model)._scorer.encoder
    inputs = encoder.tokenizer(
        [q for q, _ in PAIRS], [t for _, t in PAIRS], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        np.testing.assert_allclose(peft(**inputs).logits[:, 0], logits(folder), atol=1e-5)


def test_adapters_with_whole_layers_are_served_too(tiny_model: Path, tmp_path: Path) -> None:
    folder = by_peft(tiny_model, tmp_path / "a", modules_to_save=["intermediate.dense"])
    many = Reranker(tiny_model, adapters={"a": folder}, dtype="float32", device="cpu")
    np.testing.assert_allclose(many.logits(PAIRS, adapter="a"), logits(folder), atol=1e-5)
    np.testing.assert_allclose(many.logits(PAIRS), logits(tiny_model), atol=1e-5)


def test_an_adapter_that_changes_biases_of_the_base_is_loaded_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = by_peft(tiny_model, tmp_path / "a", bias="all")
    with pytest.raises(InputError, match="changes biases of the base: load it alone, or merge it"):
        Reranker(tiny_model, adapters={"a": folder})
    assert len(logits(folder)) == len(PAIRS)


def test_another_folder_of_the_same_name_is_another_base(tiny_model: Path, tmp_path: Path) -> None:
    """Adapters of peft alone record only the path of their base."""
    first, copy, other = (tmp_path / name / "model" for name in ("first", "copy", "other"))
    for folder in (first, copy):
        shutil.copytree(tiny_model, folder)
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    halved = {name: weight / 2 for name, weight in weights.items()}
    save_file(halved, other / "model.safetensors", {"format": "pt"})
    adapter = by_peft(first, tmp_path / "a")
    np.testing.assert_array_equal(logits(copy, adapter=adapter), logits(adapter))
    with pytest.raises(InputError, match=r"the adapter was trained for .*first/model, which"):
        Reranker(other, adapter=adapter)
    moved = first.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"if they are the same model, edit"):
        Reranker(moved, adapter=adapter)
    with pytest.raises(
        InputError, match=r"a: the base of the adapter: .*first/model: no such model folder"
    ):
        Reranker(adapter)


def test_a_moved_base_can_be_named_when_merging(of_a_run: Path) -> None:
    expected = logits(of_a_run)
    moved = of_a_run.with_name("base").rename(of_a_run.with_name("moved"))
    merged = of_a_run.with_name("merged")
    with pytest.raises(InputError, match="the base of the adapter: "):
        merge(model_dir=of_a_run, output_dir=merged)
    merge(model_dir=of_a_run, output_dir=merged, base_model=moved)
    np.testing.assert_allclose(logits(merged), expected, atol=1e-5)


def test_the_folders_that_an_adapter_needs_are_not_overwritten(of_a_run: Path) -> None:
    base = of_a_run.with_name("base")
    RerankSettings().write(base)
    for target in (of_a_run, base):
        with pytest.raises(OptionError, match=f"--output_dir: {target} is the base of the adapter"):
            merge(model_dir=of_a_run, output_dir=target, overwrite=True)
    with pytest.raises(
        OptionError, match=r"finetune_model_dir: .*base is the base of the adapter: "
    ):
        lora_run(base, base, overwrite=True)
    assert len(logits(of_a_run)) == len(PAIRS)


@pytest.mark.parametrize("kind", ["mount point", "link", "~"])
def test_a_model_is_merged_into_any_kind_of_folder(
    tiny_model: Path,
    tmp_path: Path,
    mounts: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = by_peft(tiny_model, tmp_path / "a")
    target: Path | str = tmp_path / "merged"
    if kind == "mount point":
        mount("tmpfs", mounts)
        target = mounts
    elif kind == "link":
        (tmp_path / "merged").symlink_to("disk")
    else:
        monkeypatch.setenv("HOME", str(tmp_path))
        target = "~/merged"
    merge(model_dir=adapter, output_dir=target)
    with pytest.raises(OptionError, match="contains a trained model"):
        merge(model_dir=adapter, output_dir=target)
    merge(model_dir=adapter, output_dir=target, overwrite=True)
    folder = Path(target).expanduser()
    assert folder.is_symlink() == (kind == "link")
    assert (folder / "model.safetensors").is_file() and not list(folder.glob(".*"))
    assert not list(tmp_path.glob("*.part"))
    rights = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert rights == {(folder / "rerank.json").stat().st_mode & 0o777} and rights != {0o600}


def test_a_merge_onto_a_full_disk_is_one_line(
    tiny_model: Path, tmp_path: Path, mounts: Path, cli: Run
) -> None:
    adapter = by_peft(tiny_model, tmp_path / "a")
    mount("tmpfs", mounts, "-o", "size=32k")
    for target in (mounts, mounts / "merged"):
        code, _, err = cli("merge", "--model_dir", adapter, "--output_dir", target)
        assert code == 1
        assert "No space left" in err and "make room and start the same command again" in err
        assert not list(mounts.iterdir())
    mount("tmpfs", mounts, "-o", "remount,ro")
    code, _, err = cli("merge", "--model_dir", adapter, "--output_dir", mounts)
    assert code == 2 and "--output_dir: " in err and "Read-only file system" in err


def test_a_merge_keeps_files_that_appear_meanwhile(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, target = by_peft(tiny_model, tmp_path / "a"), tmp_path / "merged"
    module = import_module("rerank_plugin.finetune.export.merge")
    write = module.write_records

    def late(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        with pytest.raises(OptionError, match="another command is writing it"):
            merge(model_dir=adapter, output_dir=target)
        target.mkdir()
        (target / "notes.txt").write_text("kept")

    monkeypatch.setattr(module, "write_records", late)
    with pytest.raises(OptionError, match="is not empty and contains no trained model"):
        merge(model_dir=adapter, output_dir=target)
    assert (target / "notes.txt").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "merged"}


def test_a_failed_merge_is_repeated_when_the_run_resumes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(lora_run(tiny_model, tmp_path / "a", merge=True))
    write = ComparisonReport.write

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ComparisonReport, "write", full)
    with pytest.raises(SavingError, match="No space left on device"):
        lora_run(tiny_model, tmp_path / "b", merge=True)
    # The unmerged adapter is kept for the next run.
    assert (tmp_path / "b.run" / "model" / "adapter_model.safetensors").is_file()
    monkeypatch.setattr(ComparisonReport, "write", write)
    np.testing.assert_array_equal(
        logits(lora_run(tiny_model, tmp_path / "b", merge=True)), expected
    )


def test_dtype_auto_without_bf16_trains_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": "auto", "trainer": {"bf16": False, "max_steps": 1}}
    expected = logits(lora_run(tiny_model, tmp_path / "a", trainer={"max_steps": 1}))
    scores = logits(lora_run(tiny_model, tmp_path / "b", **options))
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("family", sorted(PACKED_AND_PADDED - {*FAMILIES}))
def test_every_family_round_trips(family: str, tmp_path: Path) -> None:
    base = build_model(tmp_path / "encoder", family)
    AutoModel.from_pretrained(base).save_pretrained(base)
    folder = drawn_adapter(base, tmp_path / "a", 0)
    reranker, expected = assert_round_trips(base, folder)
    np.testing.assert_allclose(logits_of_peft(folder, reranker), expected, atol=1e-5)


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_every_causal_family_round_trips(family: str, tmp_path: Path) -> None:
    base = build_language_model(tmp_path / "model", family)
    folder = drawn_adapter(base, tmp_path / "a", 0)
    reranker, expected = assert_round_trips(base, folder)
    # Padded, as peft's own model takes no packed rows, with the tokens of the prompt.
    from peft import AutoPeftModelForSequenceClassification

    alone = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    encoder = reranker._scorer.encoder
    inputs = pad(encoder.encode(PAIRS), encoder.pad_id, with_types=False)
    with torch.inference_mode():
        by_peft_alone = alone(**inputs).logits[:, 0]
    np.testing.assert_allclose(by_peft_alone, expected, atol=1e-5)


def assert_round_trips(base: Path, folder: Path) -> tuple[Reranker, Any]:
    """Compare an adapter alone, for its base and among others; return the first and its logits."""
    reranker = Reranker(folder, dtype="float32", device="cpu")
    expected = reranker.logits(PAIRS)
    assert expected.std() > 1e-4
    many = Reranker(base, adapters={"a": folder}, dtype="float32", device="cpu")
    for other in (logits(base, adapter=folder), many.logits(PAIRS, adapter="a")):
        np.testing.assert_allclose(other, expected, atol=1e-5)
    return reranker, expected
