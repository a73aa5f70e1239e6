import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune import FinetuneResult
from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.evaluation.metrics import METRICS
from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
from rerank_plugin.finetune.training.model import set_dropout
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.settings import RerankSettings

from ..factories import build_model, easy_groups, train_on_easy_groups, write_lines
from .conftest import Train


def read_history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """A run in a folder whose parent does not exist, validated on its 24 training groups."""
    folder = tmp_path_factory.mktemp("trained")
    files: dict[str, Any] = {
        "data_path": write_lines(folder / "train.jsonl", easy_groups(24)),
        "eval_data_path": folder / "train.jsonl",
        "test_data_path": write_lines(folder / "test.jsonl", easy_groups(8, start=100)),
    }
    files["finetune_model_dir"] = folder / "deep" / "out"
    return train_on_easy_groups(tiny_model, folder / "out", total_epoch=3, **files)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_trained_model_ranks_as_its_metrics_say(
    family_model: Path,
    groups_file: Path,
    eval_file: Path,
    tmp_path: Path,
    train: Train,
    lora: bool,
) -> None:
    result = train(
        model_name_or_path=family_model,
        eval_data_path=groups_file,
        test_data_path=eval_file,
        lora=lora,
        total_epoch=4,
        dtype="float32",
    )
    assert result.improved
    assert result.after["ndcg@10"] > result.before["ndcg@10"]
    assert result.after["queries"] == 8
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]
    reranker = Reranker(tmp_path / "out", dtype="float32")
    groups = list(read_groups(eval_file))
    first = [reranker.rank(group.query, group.documents)[0].document for group in groups]
    hits = sum(text in group.pos for text, group in zip(first, groups, strict=True))
    assert hits / len(groups) == result.after["hit@1"]


def test_the_files_of_a_run(trained: FinetuneResult) -> None:
    folder = trained.model_dir
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "rerank.json",
        "metrics.json",
        "history.jsonl",
        "README.md",
        "training_curves.png",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
    metrics = json.loads((folder / "metrics.json").read_text())
    for side in ("before", "after", "difference"):
        assert {*METRICS, "queries"} <= set(metrics[side])
    assert metrics["after"] == trained.after
    settings = json.loads((folder / "rerank.json").read_text())
    assert settings["max_length"] == 64
    assert settings["metrics"]["before"] == trained.before
    assert settings["data"]["train_groups"] == 24
    history = read_history(folder)
    assert history == trained.history
    assert history[0]["step"] == 0 and "ndcg@10" in history[0]
    assert {"step", "epoch", "loss", "learning_rate"} <= set(history[1])
    assert history[-1]["train_pairs"] == 24 * 4 * 3
    assert history[-1]["train_pairs_per_second"] > 0
    last_evaluation = [entry for entry in history if "ndcg@10" in entry][-1]
    assert last_evaluation["step"] == 18


def test_the_kept_model_has_the_reported_metrics(trained: FinetuneResult, eval_file: Path) -> None:
    reranker = Reranker(trained.model_dir, dtype="float32")
    assert evaluate_groups(reranker, read_groups(eval_file)).means == pytest.approx(trained.after)


def opposite_groups() -> list[dict[str, Any]]:
    """Groups whose positives are the negatives of the training groups."""
    return [{**group, "pos": group["neg"], "neg": group["pos"]} for group in easy_groups(8)]


def test_a_run_that_never_improves_keeps_the_base(
    trained: FinetuneResult, groups_file: Path, tmp_path: Path, train: Train
) -> None:
    result = train(
        model_name_or_path=trained.model_dir,
        data_path=write_lines(tmp_path / "opposite.jsonl", opposite_groups()),
        eval_data_path=groups_file,
        lr=1e-2,
    )
    assert not result.improved
    assert result.after == result.before
    pairs = [("question", text) for text in ("refund", "a cabin", "dogs")]
    expected = Reranker(trained.model_dir, dtype="float32").score(pairs)
    np.testing.assert_array_equal(
        Reranker(result.model_dir, dtype="float32").score(pairs), expected
    )


def test_a_diverging_run_keeps_its_best_model(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    result = train(lr=1e30)
    assert result.after["ndcg@10"] >= result.before["ndcg@10"]
    assert np.isfinite(Reranker(result.model_dir).score([("a", "b")])).all()
    assert "the best model so far is kept" in caplog.text


def test_the_same_seed_gives_the_same_run(tiny_encoder: Path, train: Train) -> None:
    options: dict[str, Any] = {"model_name_or_path": tiny_encoder, "trainer": {"max_steps": 3}}
    results = [train(name, seed=seed, **options) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    losses = [[entry.get("loss") for entry in result.history] for result in results]
    assert losses[0] == losses[1] != losses[2]


def test_a_step_is_the_same_however_it_is_accumulated(
    tiny_model: Path, tmp_path: Path, train: Train
) -> None:
    records = easy_groups(6, negatives=2) + easy_groups(7, start=50, negatives=5)
    ragged = write_lines(tmp_path / "ragged.jsonl", records)
    weights = []
    for name, size, accumulation in (("one", 12, 1), ("four", 3, 4), ("six", 2, 6)):
        result = train(
            name,
            data_path=ragged,
            batch_size=size,
            total_epoch=1,
            dtype="float32",
            lr=0.1,
            trainer={
                "gradient_accumulation_steps": accumulation,
                "optim": "sgd",
                "max_grad_norm": 0.0,
                "warmup_steps": 0,
                "eval_strategy": "no",
                "weight_decay": 0.0,
            },
        )
        assert result.history[-1]["step"] == 2
        weights.append(load_model(result.model_dir).model.state_dict())
    start = load_model(tiny_model).model.state_dict()
    moved = max((weights[0][name] - start[name]).abs().max().item() for name in start)
    assert moved > 1e-4
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-4)


def test_held_out_queries_are_not_trained_on(tmp_path: Path, train: Train) -> None:
    data = write_lines(tmp_path / "twice.jsonl", easy_groups(20) + easy_groups(20))
    result = train(data_path=data, eval_data_path=None, eval_queries=5, total_epoch=1)
    counts = json.loads((result.model_dir / "rerank.json").read_text())["data"]
    assert counts["validation_groups"] + counts["test_groups"] == 10
    assert counts["train_groups"] == 30
    assert result.after["queries"] == counts["test_groups"] == 6


def test_factor_and_patience_follow_the_evaluation_loss(tmp_path: Path, train: Train) -> None:
    # The evaluation loss only rises.
    opposite = write_lines(tmp_path / "opposite.jsonl", opposite_groups())
    result = train(eval_data_path=opposite, factor=0.5, patience=1, total_epoch=6, lr=1e-3)
    rates = [entry["learning_rate"] for entry in result.history if "learning_rate" in entry]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] <= 5e-4
    assert all(later <= earlier for earlier, later in pairwise(rates[2:]))


def test_a_new_head_has_another_default_rate_and_loss(
    tiny_encoder: Path, tiny_model: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    rates, losses = [], []
    for model in (tiny_encoder, tiny_model):
        result = train(model.name, model_name_or_path=model, lr=None, total_epoch=1)
        losses.append(RerankSettings.read(result.model_dir).options["loss"])
        rates.append(max(entry.get("learning_rate", 0) for entry in result.history))
    assert rates[0] > rates[1]
    assert losses == ["listnet", "softmax_cross_entropy"]
    train("low", model_name_or_path=tiny_encoder, lr=1e-5, trainer={"max_steps": 1})
    assert "is low for a newly initialised scoring head" in caplog.text


def test_a_kept_base_model_without_a_trained_head_is_named(
    tiny_encoder: Path, tmp_path: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    opposite = write_lines(tmp_path / "opposite.jsonl", opposite_groups())
    result = train(model_name_or_path=tiny_encoder, eval_data_path=opposite)
    assert not result.improved
    assert "is newly initialised and ranks at random" in caplog.text
    card = (result.model_dir / "README.md").read_text("utf-8")
    assert "before training: the scoring head is newly initialised" in card


def test_eval_strategy_no_keeps_the_last_weights(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    result = train(trainer={"eval_strategy": "no"})
    assert "the last weights are kept" in caplog.text
    assert json.loads((result.model_dir / "rerank.json").read_text())["metrics"]["best_step"] == 18


def test_dropout_is_set_for_hidden_states_but_not_for_attention(family_model: Path) -> None:
    model = load_model(family_model).model
    before = model.config.to_dict()
    set_dropout(model, 0.3)
    assert model.config.to_dict() == before
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    attention = {name for name in rates if re.search(r"\.(self|attn)\.\w*drop\w*$", name)}
    assert {rates[name] for name in attention} <= {0.0}
    assert {rates[name] for name in set(rates) - attention} == {0.3}
    assert attention or model.config.model_type == "modernbert"


def test_a_trained_adapter_can_be_trained_further(train: Train) -> None:
    adapter = train("a", lora=True)
    again = train("b", model_name_or_path=adapter.model_dir)
    assert again.before["ndcg@10"] == pytest.approx(adapter.after["ndcg@10"], abs=0.05)
    losses = [entry["loss"] for entry in again.history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_bad_lines_are_skipped_and_saved(tmp_path: Path, train: Train) -> None:
    data = write_lines(tmp_path / "bad.jsonl", [*easy_groups(12), {"query": "q"}, 3])
    result = train(data_path=[data], total_epoch=1, on_bad_line="skip")
    written = (result.model_dir / "skipped_lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in written] == [13, 14]


def test_evaluating_every_epoch_evaluates_the_end_once(train: Train) -> None:
    result = train(trainer={"eval_strategy": "epoch"})
    steps = [entry["step"] for entry in result.history if "ndcg@10" in entry]
    assert steps == [0, 6, 12, 18]


def test_a_run_on_unusable_data_leaves_no_files(tmp_path: Path, train: Train) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [{"query": "q", "pos": [], "neg": ["n"]}])
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError):
        train(data_path=bad, eval_data_path=None)
    assert set(tmp_path.iterdir()) == before


def test_a_model_with_two_labels_can_be_trained(
    groups_file: Path, eval_file: Path, tmp_path: Path, train: Train
) -> None:
    model = build_model(tmp_path / "two", labels=2)
    files: dict[str, Any] = {"eval_data_path": groups_file, "test_data_path": eval_file}
    assert train(model_name_or_path=model, **files).improved


def test_the_card_of_an_adapter_with_two_labels(tmp_path: Path, train: Train) -> None:
    model = build_model(tmp_path / "two", labels=2)
    result = train(model_name_or_path=model, lora=True, trainer={"max_steps": 1})
    assert "num_labels=2" in (result.model_dir / "README.md").read_text("utf-8")


def test_a_diverging_run_without_evaluations_keeps_the_base(tiny_model: Path, train: Train) -> None:
    result = train(lr=1e30, trainer={"eval_strategy": "no"})
    assert not result.improved and result.before == result.after
    pairs = [("a question", "a refund"), ("a question", "none")]
    logits, expected = (
        Reranker(folder, dtype="float32").logits(pairs) for folder in (result.model_dir, tiny_model)
    )
    np.testing.assert_array_equal(logits, expected)


def test_a_warm_up_longer_than_the_run_is_a_warning(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    train(eval_data_path=None, trainer={"max_steps": 2, "warmup_steps": 3})
    assert "--warmup_steps 3: the run has only 2 steps" in caplog.text


def test_a_run_of_one_step_trains(train: Train) -> None:
    history = train(trainer={"max_steps": 1}).history
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    assert rates and rates[0] > 0


def test_the_number_of_evaluations_follows_max_steps_rather_than_the_epochs(train: Train) -> None:
    history = train(total_epoch=1000, trainer={"max_steps": 8}).history
    steps = [entry["step"] for entry in history if "ndcg@10" in entry]
    assert steps == [0, 2, 4, 6, 8]


def test_lr_auto_with_too_few_groups_is_an_error(tmp_path: Path, train: Train) -> None:
    data = write_lines(tmp_path / "two.jsonl", easy_groups(2))
    with pytest.raises(InputError, match="--lr: auto requires 3 training groups, found 2"):
        train(data_path=data, lr="auto")


def test_data_of_bad_lines_alone_is_an_error(tmp_path: Path, train: Train) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"query": 3}\n')
    with pytest.raises(InputError, match=r"no usable group .* first problem: .*bad\.jsonl:1: "):
        train(data_path=data, eval_data_path=None, on_bad_line="skip")


def reporter(event: str) -> type[TrainerCallback]:
    """Return a reporter that fails at an event, as TensorBoard's does on a full disk."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    return type("DiskReporter", (TrainerCallback,), {event: fail})


@pytest.mark.parametrize("event", ["on_log", "on_evaluate", "on_save", "on_train_end"])
def test_a_failing_reporter_is_one_warning(
    train: Train,
    event: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "disk", reporter(event))
    trainer = {"report_to": "disk", "max_steps": 3, "logging_steps": 1, "save_steps": 1}
    train(eval_data_path=None, trainer=trainer)
    lines = [line for line in caplog.messages if "DiskReporter: no more logs" in line]
    assert len(lines) == 1 and "No space left" in lines[0]


def test_a_requested_reporter_that_cannot_start_is_an_error(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "disk", reporter("on_train_begin"))
    with pytest.raises(OSError, match="No space left"):
        train(eval_data_path=None, trainer={"report_to": "disk"})


@pytest.mark.parametrize("family", ["albert", "mpnet", "flaubert"])
def test_gradient_checkpointing_of_a_family_without_it_is_an_error(
    family: str, tmp_path: Path, train: Train
) -> None:
    model = build_model(tmp_path / family, family)
    trainer = {"gradient_checkpointing": True, "max_steps": 1}
    with pytest.raises(
        OptionError, match=f"--gradient_checkpointing: not supported by {family} models"
    ):
        train(model_name_or_path=model, eval_data_path=None, trainer=trainer)
    assert list(tmp_path.glob("out*")) == []


def test_a_failing_report_loses_no_model(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("rerank_plugin.finetune.report.report.ComparisonReport.write", broken)
    result = train(eval_data_path=None, trainer={"max_steps": 1})
    assert (result.model_dir / "model.safetensors").is_file()
    assert (result.model_dir / "rerank.json").is_file()
    assert (result.model_dir / "metrics.json").is_file()
    assert "report.html was not written: RuntimeError: no fonts" in caplog.text
