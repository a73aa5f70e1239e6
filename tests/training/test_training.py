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
from rerank_plugin.finetune import FinetuneConfig, FinetuneResult, finetune
from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.evaluation.metrics import METRICS
from rerank_plugin.finetune.training.model import set_dropout
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.settings import RerankSettings

from ..factories import build_model, easy_groups, write_lines


def run(model: Path, data: Path, folder: Path, **options: Any) -> FinetuneResult:
    values: dict[str, Any] = {"lr": 3e-3, "total_epoch": 3, "batch_size": 4, "max_len": 64}
    return finetune(
        FinetuneConfig(
            model_name_or_path=str(model),
            data_path=str(data),
            finetune_model_dir=str(folder),
            **values | options,
        )
    )


def read_history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_train_save_load_rank(
    family_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path, lora: bool
) -> None:
    result = run(
        family_model,
        groups_file,
        tmp_path / "out",
        eval_data_path=str(groups_file),
        test_data_path=str(eval_file),
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


def test_the_files_of_a_run(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "out"
    result = run(tiny_model, groups_file, folder, eval_data_path=str(eval_file))
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
    assert metrics["after"] == result.after
    settings = json.loads((folder / "rerank.json").read_text())
    assert settings["max_length"] == 64
    assert settings["metrics"]["before"] == result.before
    assert settings["data"]["train_groups"] == 24
    history = read_history(folder)
    assert history == result.history
    assert history[0]["step"] == 0 and "ndcg@10" in history[0]
    assert {"step", "epoch", "loss", "learning_rate"} <= set(history[1])
    assert history[-1]["train_pairs"] == 24 * 4 * 3
    assert history[-1]["train_pairs_per_second"] > 0
    last_evaluation = [entry for entry in history if "ndcg@10" in entry][-1]
    assert last_evaluation["step"] == 18


def test_the_kept_model_has_the_reported_metrics(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    from rerank_plugin.finetune.evaluation.scoring import evaluate_groups

    files = {"eval_data_path": str(groups_file), "test_data_path": str(eval_file)}
    result = run(tiny_model, groups_file, tmp_path / "out", **files, dtype="float32")
    reranker = Reranker(result.model_dir, dtype="float32")
    assert evaluate_groups(reranker, read_groups(eval_file)).means == pytest.approx(result.after)


def test_a_run_that_never_improves_keeps_the_base(
    tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    # The positives of the evaluation are the negatives of the training.
    records = [{**group, "pos": group["neg"], "neg": group["pos"]} for group in easy_groups(8)]
    shuffled = write_lines(tmp_path / "dev.jsonl", records)
    trained = run(tiny_model, groups_file, tmp_path / "good", eval_data_path=str(groups_file))
    result = run(
        trained.model_dir, shuffled, tmp_path / "out", eval_data_path=str(groups_file), lr=1e-2
    )
    assert not result.improved
    assert result.after == result.before
    pairs = [("question", text) for text in ("refund", "a cabin", "dogs")]
    expected = Reranker(trained.model_dir, dtype="float32").score(pairs)
    np.testing.assert_array_equal(
        Reranker(result.model_dir, dtype="float32").score(pairs), expected
    )


def test_a_diverging_run_keeps_its_best(
    tiny_model: Path,
    groups_file: Path,
    eval_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = run(
        tiny_model,
        groups_file,
        tmp_path / "out",
        eval_data_path=str(eval_file),
        lr=1e30,
    )
    assert result.after["ndcg@10"] >= result.before["ndcg@10"]
    assert np.isfinite(Reranker(result.model_dir).score([("a", "b")])).all()
    assert "the best model so far is kept" in caplog.text


def test_the_same_seed_gives_the_same_run(
    tiny_encoder: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    results = [
        run(tiny_encoder, groups_file, tmp_path / name, eval_data_path=str(eval_file), seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    losses = [[entry.get("loss") for entry in result.history] for result in results]
    assert losses[0] == losses[1] != losses[2]


def test_a_step_is_the_same_however_it_is_accumulated(
    tiny_model: Path, tmp_path: Path, eval_file: Path
) -> None:
    records = easy_groups(6, negatives=2) + easy_groups(7, start=50, negatives=5)
    ragged = write_lines(tmp_path / "ragged.jsonl", records)
    weights = []
    for name, size, accumulation in (("one", 12, 1), ("four", 3, 4), ("six", 2, 6)):
        result = run(
            tiny_model,
            ragged,
            tmp_path / name,
            eval_data_path=str(eval_file),
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
        from safetensors.torch import load_file

        weights.append(load_file(result.model_dir / "model.safetensors"))
    start = load_model(tiny_model).model.state_dict()
    moved = max((weights[0][name] - start[name]).abs().max().item() for name in start)
    assert moved > 1e-4
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-4)


def test_held_out_queries_are_not_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    twice = easy_groups(20) + easy_groups(20)
    data = write_lines(tmp_path / "twice.jsonl", twice)
    result = run(tiny_model, data, tmp_path / "out", eval_queries=5, total_epoch=1)
    found = json.loads((result.model_dir / "rerank.json").read_text())["data"]
    assert found["validation_groups"] + found["test_groups"] == 10
    assert found["train_groups"] == 30
    assert result.after["queries"] == found["test_groups"] == 6


def test_factor_and_patience_follow_the_evaluation_loss(
    tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    # Training on the opposite of the evaluation: its loss only rises.
    records = [{**group, "pos": group["neg"], "neg": group["pos"]} for group in easy_groups(8)]
    opposite = write_lines(tmp_path / "dev.jsonl", records)
    result = run(
        tiny_model,
        groups_file,
        tmp_path / "out",
        eval_data_path=str(opposite),
        factor=0.5,
        patience=1,
        total_epoch=6,
        lr=1e-3,
    )
    rates = [entry["learning_rate"] for entry in result.history if "learning_rate" in entry]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] <= 5e-4
    assert all(later <= earlier for earlier, later in pairwise(rates[2:]))


def test_a_new_head_gets_its_own_rate_and_loss(
    tiny_encoder: Path,
    tiny_model: Path,
    groups_file: Path,
    eval_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def options(model: Path) -> float:
        result = run(
            model,
            groups_file,
            tmp_path / model.name,
            eval_data_path=str(eval_file),
            lr=None,
            total_epoch=1,
            overwrite=True,
        )
        losses.append(str(RerankSettings.read(result.model_dir).options["loss"]))
        return max(entry.get("learning_rate", 0) for entry in result.history)

    losses: list[str] = []
    assert options(tiny_encoder) > options(tiny_model)
    assert losses == ["listnet", "softmax_cross_entropy"]
    run(tiny_encoder, groups_file, tmp_path / "low", eval_data_path=str(eval_file), lr=1e-5)
    assert "is low for a newly initialised scoring head" in caplog.text


def test_eval_strategy_no_keeps_the_last_weights(
    tiny_model: Path,
    groups_file: Path,
    eval_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = run(
        tiny_model,
        groups_file,
        tmp_path / "out",
        eval_data_path=str(eval_file),
        trainer={"eval_strategy": "no"},
    )
    assert "the last weights are kept" in caplog.text
    assert json.loads((result.model_dir / "rerank.json").read_text())["metrics"]["best_step"] == 18


def test_dropout_of_hidden_states_and_none_of_attention(family_model: Path) -> None:
    model = load_model(family_model).model
    before = model.config.to_dict()
    set_dropout(model, 0.3)
    assert model.config.to_dict() == before
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    attention = {name for name in found if re.search(r"\.(self|attn)\.\w*drop\w*$", name)}
    assert {found[name] for name in attention} <= {0.0}
    assert {found[name] for name in set(found) - attention} == {0.3}
    assert attention or model.config.model_type == "modernbert"


def test_paths_may_be_paths(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig(
        model_name_or_path=tiny_model,  # type: ignore[arg-type]
        data_path=[groups_file],  # type: ignore[list-item]
        eval_data_path=eval_file,  # type: ignore[arg-type]
        finetune_model_dir=tmp_path / "out",  # type: ignore[arg-type]
        max_len=64,
    )
    assert (finetune(config).model_dir / "rerank.json").is_file()


def test_an_adapter_can_be_trained_on(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    adapter = run(tiny_model, groups_file, tmp_path / "a", eval_data_path=str(eval_file), lora=True)
    again = run(adapter.model_dir, groups_file, tmp_path / "b", eval_data_path=str(eval_file))
    assert again.before["ndcg@10"] == pytest.approx(adapter.after["ndcg@10"], abs=0.05)
    losses = [entry["loss"] for entry in again.history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_bad_lines_are_skipped_and_saved(tiny_model: Path, eval_file: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "train.jsonl", [*easy_groups(12), {"query": "q"}, 3])
    result = run(
        tiny_model,
        data,
        tmp_path / "out",
        eval_data_path=str(eval_file),
        total_epoch=1,
        on_bad_line="skip",
    )
    written = (result.model_dir / "skipped_lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in written] == [13, 14]


def test_evaluating_every_epoch_evaluates_the_end_once(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    result = run(
        tiny_model,
        groups_file,
        tmp_path / "out",
        eval_data_path=str(eval_file),
        trainer={"eval_strategy": "epoch"},
    )
    steps = [entry["step"] for entry in result.history if "ndcg@10" in entry]
    assert steps == [0, 6, 12, 18]


def test_an_unusable_run_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [{"query": "q", "pos": [], "neg": ["n"]}])
    with pytest.raises(InputError):
        run(tiny_model, bad, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_two_labels_can_be_trained(groups_file: Path, eval_file: Path, tmp_path: Path) -> None:
    model = build_model(tmp_path / "two", labels=2)
    options = {"eval_data_path": str(groups_file), "test_data_path": str(eval_file)}
    assert run(model, groups_file, tmp_path / "out", **options).improved


def test_the_card_of_an_adapter_with_two_labels(
    groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    model = build_model(tmp_path / "two", labels=2)
    result = run(model, groups_file, tmp_path / "out", eval_data_path=str(eval_file), lora=True)
    assert "num_labels=2" in (result.model_dir / "README.md").read_text("utf-8")


def test_a_diverging_run_without_evaluations_keeps_the_base(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    options = {"eval_data_path": str(eval_file), "trainer": {"eval_strategy": "no"}}
    result = run(tiny_model, groups_file, folder, lr=1e30, **options)
    assert not result.improved and result.before == result.after
    pairs = [("a question", "a refund"), ("a question", "none")]
    found, expected = (
        Reranker(place, dtype="float32").logits(pairs) for place in (folder, tiny_model)
    )
    np.testing.assert_array_equal(found, expected)


def test_a_warm_up_longer_than_the_run_is_a_warning(
    tiny_model: Path, groups_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = {"max_steps": 2, "warmup_steps": 3}
    run(tiny_model, groups_file, tmp_path / "out", trainer=trainer)
    assert "--warmup_steps 3: the run has only 2 steps" in caplog.text


def test_a_run_of_one_step_trains(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    options = {"eval_data_path": str(eval_file), "trainer": {"max_steps": 1}}
    run(tiny_model, groups_file, tmp_path / "out", **options)
    rates = [entry["learning_rate"] for entry in read_history(tmp_path / "out") if "loss" in entry]
    assert rates and rates[0] > 0


def test_a_run_shorter_than_an_epoch_is_evaluated(
    tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    """Epochs of six steps, of which a thousand are asked for, and eight steps in all."""
    options = {"eval_data_path": str(eval_file), "trainer": {"max_steps": 8}}
    run(tiny_model, groups_file, tmp_path / "out", total_epoch=1000, **options)
    steps = [entry["step"] for entry in read_history(tmp_path / "out") if "ndcg@10" in entry]
    assert steps == [0, 2, 4, 6, 8]


def test_too_few_groups_to_measure_a_rate(
    tiny_model: Path, eval_file: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "two.jsonl", easy_groups(2))
    with pytest.raises(InputError, match="--lr: auto needs 3 training groups, there are 2"):
        run(tiny_model, data, tmp_path / "out", lr="auto", eval_data_path=str(eval_file))


def test_only_bad_lines_are_an_error(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"query": 3}\n')
    with pytest.raises(InputError, match=r"no usable group .* first problem: .*bad\.jsonl:1: "):
        run(tiny_model, data, tmp_path / "out", on_bad_line="skip")


def reporter(event: str) -> type[TrainerCallback]:
    """A reporter that fails at an event, as TensorBoard's does on a full disk."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    return type("DiskReporter", (TrainerCallback,), {event: fail})


@pytest.mark.parametrize("event", ["on_log", "on_evaluate", "on_save", "on_train_end"])
def test_a_failing_reporter_is_one_warning(
    tiny_model: Path,
    groups_file: Path,
    tmp_path: Path,
    event: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "disk", reporter(event))
    trainer = {"report_to": "disk", "max_steps": 3, "logging_steps": 1, "save_steps": 1}
    run(tiny_model, groups_file, tmp_path / "out", trainer=trainer)
    lines = [line for line in caplog.messages if "DiskReporter: no more logs" in line]
    assert len(lines) == 1 and "No space left" in lines[0]


def test_a_requested_reporter_must_start(
    tiny_model: Path, groups_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "disk", reporter("on_train_begin"))
    with pytest.raises(OSError, match="No space left"):
        run(tiny_model, groups_file, tmp_path / "out", trainer={"report_to": "disk"})


@pytest.mark.parametrize("family", ["albert", "mpnet", "flaubert"])
def test_checkpointing_of_a_family_without_it_is_an_error(
    family: str, groups_file: Path, tmp_path: Path
) -> None:
    model = build_model(tmp_path / family, family)
    trainer = {"gradient_checkpointing": True, "max_steps": 1}
    with pytest.raises(OptionError, match=f"--gradient_checkpointing: {family} models do not"):
        run(model, groups_file, tmp_path / "out", trainer=trainer)
    assert list(tmp_path.glob("out*")) == []


def test_a_failing_report_loses_no_model(
    tiny_model: Path,
    groups_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("rerank_plugin.finetune.report.report.ComparisonReport.write", broken)
    result = run(tiny_model, groups_file, tmp_path / "out")
    assert (result.model_dir / "model.safetensors").is_file()
    assert (result.model_dir / "rerank.json").is_file()
    assert (result.model_dir / "metrics.json").is_file()
    assert "report.html was not written: RuntimeError: no fonts" in caplog.text
