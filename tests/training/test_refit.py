"""`--refit`: a second run on all groups."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_plugin import Reranker
from rerank_plugin.errors import OptionError
from rerank_plugin.finetune import FinetuneResult
from rerank_plugin.finetune.training import refit, run_dir
from rerank_plugin.finetune.training.loop import train_steps
from rerank_plugin.finetune.training.run_dir import RunDir

from ..factories import easy_groups, write_lines
from .conftest import Train, same_model, weights

#: Of the groups, those that the first run trains on.
GROUPS, TRAINED = 60, 48


@pytest.fixture
def again(train: Train, tmp_path: Path) -> Train:
    """Train on 48 of 60 groups, and once more on all of them, unless an option says otherwise."""
    data = write_lines(tmp_path / "groups.jsonl", easy_groups(GROUPS))

    def run(folder: str = "out", **options: Any) -> FinetuneResult:
        values: dict[str, Any] = {
            "data_path": data,
            "eval_data_path": None,
            "refit": True,
            "total_epoch": 1,
            "dtype": "float32",
        }
        return train(folder, **values | options)

    return run


def on_all_groups(again: Train, eval_file: Path, steps: int, **options: Any) -> Path:
    """Train on all groups for some steps, and keep the last weights."""
    trainer = {"max_steps": steps, "eval_strategy": "no"}
    values = {"refit": False, "blend": 1, "eval_data_path": eval_file, "trainer": trainer}
    return again("whole", **values | options).model_dir


def test_the_weights_are_those_of_a_run_on_all_groups(
    again: Train, eval_file: Path, tmp_path: Path
) -> None:
    once = again("once", refit=False)
    result = again()
    record = result.refit
    assert record is not None
    assert record == {
        "groups": GROUPS,
        "held_out": GROUPS - TRAINED,
        "steps": record["steps"],
        "kept": True,
    }
    assert not same_model(result.model_dir, once.model_dir)
    assert same_model(result.model_dir, on_all_groups(again, eval_file, record["steps"]))
    # The figures are those of the first run.
    metrics, first = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (result.model_dir, once.model_dir)
    )
    assert metrics.pop("refit") == record
    assert metrics == first
    for file in ("README.md", "report.html"):
        text = (result.model_dir / file).read_text()
        assert f"on all {GROUPS} groups" in text and "those of the first run" in text
    card = (result.model_dir / "README.md").read_text()
    assert f"on {GROUPS} training groups" in card
    assert "test queries, which the first run used neither" in card
    assert not list(tmp_path.glob("*.run"))


def test_a_blend_and_an_adapter_are_trained_once_more(
    again: Train, tiny_model: Path, eval_file: Path
) -> None:
    result = again(blend=0.5)
    assert result.refit is not None and result.refit["kept"]
    whole = weights(on_all_groups(again, eval_file, result.refit["steps"]))
    base = weights(tiny_model)
    for name, tensor in weights(result.model_dir).items():
        assert torch.allclose(tensor, (base[name] + whole[name]) / 2, atol=1e-6), name
    adapter = again("adapter", lora=True)
    assert adapter.refit is not None and adapter.refit["kept"]
    assert Reranker(adapter.model_dir).score([("a", "refund"), ("a", "dog")]).shape == (2,)


@pytest.mark.parametrize(
    ("place", "trainer"),
    [
        ("train_steps", {"save_steps": 2}),
        ("train_steps", {"save_strategy": "no"}),
        pytest.param("save", {"save_steps": 2}, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_second_run_resumes(
    again: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    trainer: dict[str, Any],
) -> None:
    caplog.set_level("INFO")
    whole = again("whole")

    def stop(*arguments: Any) -> None:
        if place == "train_steps":
            _, _, interruption, _ = arguments
            interruption.received = True
            train_steps(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(refit, place, stop)
        with pytest.raises(KeyboardInterrupt):
            again(trainer=trainer)
    result = again(trainer=trainer)
    assert caplog.text.count("resuming from") == 2
    assert same_model(result.model_dir, whole.model_dir)


@pytest.mark.parametrize("options", [{"refit": False}, {"trainer": {"save_strategy": "no"}}])
def test_a_run_that_was_killed_while_it_was_published_starts_again(
    again: Train, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    options = {"overwrite": True, **options}
    first = again("first", **options)

    def kill(*arguments: Any, **_: Any) -> None:
        if options.get("refit", True):  # before the rename, otherwise after it
            raise SystemExit
        arguments[0].rename(arguments[1])
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(run_dir, "publish_folder", kill)
        patched.setattr(RunDir, "leave", RunDir._unlock)
        with pytest.raises(SystemExit):
            again(**options)
    assert same_model(again(**options).model_dir, first.model_dir)


def test_worse_weights_are_not_kept(
    again: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(refit, "win_probability", lambda *_: 1.0)
    result = again()
    assert result.refit is not None and not result.refit["kept"]
    assert same_model(result.model_dir, again("once", refit=False).model_dir)
    assert "those of the first run are kept" in caplog.text
    assert "are kept" in (result.model_dir / "README.md").read_text()


def test_where_the_base_is_kept_nothing_is_trained_once_more(
    again: Train, caplog: pytest.LogCaptureFixture
) -> None:
    assert again(lr=1e-9).refit is None
    assert "--refit: the base model is kept" in caplog.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"eval_data_path": "validation.jsonl"}, "all groups of --data_path"),
        ({"factor": 0.3}, "--factor"),
        ({"trainer": {"fsdp": "full_shard"}}, "FSDP"),
    ],
)
def test_a_refit_that_cannot_be_is_refused(
    again: Train, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError, match=rf"--refit: .*{problem}"):
        again(**options)
