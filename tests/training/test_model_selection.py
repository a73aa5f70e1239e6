import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.finetune.evaluation.scoring import Evaluation
from rerank_plugin.finetune.evaluation.significance import improvement_probability
from rerank_plugin.finetune.training.model_selection import ModelSelection
from rerank_plugin.finetune.training.schedule.lr_finder import choose

from ..factories import easy_groups, slow, write_lines
from .conftest import Train


def test_no_change_and_chance_are_no_improvement() -> None:
    before = np.random.default_rng(0).random(50)
    assert improvement_probability(before, before) == 0
    assert improvement_probability(before, before + 0.01) == 1
    noise = np.random.default_rng(1).normal(0, 0.2, 50)
    assert 0.02 < improvement_probability(before, before + noise - noise.mean()) < 0.98


def test_validation_and_test_queries_differ(tmp_path: Path, train: Train) -> None:
    data = write_lines(tmp_path / "sixty.jsonl", easy_groups(60))
    result = train(data_path=data, eval_data_path=None, eval_queries=20)
    metrics = json.loads((result.model_dir / "metrics.json").read_text())
    assert metrics["validation"]["after"]["queries"] == metrics["after"]["queries"] == 10
    entries = [entry for entry in result.history if "ndcg@10" in entry]
    (kept,) = (entry["ndcg@10"] for entry in entries if entry["step"] == metrics["best_step"])
    assert metrics["validation"]["after"]["ndcg@10"] == pytest.approx(kept)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ([0.3, 0.4], [0, 1, 2]),
        # Worse, but not significantly.
        ([0.3, 0.29], [0, 1, 2]),
        # Each is a little worse than the one before; the last is much worse than the best.
        ([0.4, 0.38, 0.34, 0.3], [0, 1, 2]),
        ([0.3, 0.1, 0.31], [0, 1, 3]),
        # Not better than the base.
        ([-0.2, 0.0, 0.3], [0, 3]),
    ],
)
def test_a_later_model_is_kept_unless_an_earlier_one_is_significantly_better(
    tmp_path: Path, changes: list[float], kept: list[int]
) -> None:
    random = np.random.default_rng(0)
    before = random.random(50) / 2
    noise = random.normal(0, 0.1, (len(changes), 50))
    changed = before + noise - noise.mean(1, keepdims=True) + np.array(changes)[:, None]
    trainer: Any = SimpleNamespace(save_model=lambda path, **_: Path(path).mkdir())
    keeper = ModelSelection(tmp_path / "model", trainer, patience=None)
    steps = []
    for step, values in enumerate([before, *changed]):
        trainer.latest = Evaluation({"ndcg@10": values}, 0.0)
        state = TrainerState(global_step=step)
        keeper.on_evaluate(TrainingArguments(), state, TrainerControl())
        steps.append(keeper.step)
    assert list(dict.fromkeys(steps)) == kept


def test_early_stopping_counts_evaluations_without_a_better_model(train: Train) -> None:
    result = train(lr=1e-9, total_epoch=20, early_stopping=3, trainer={"eval_steps": 2})
    assert not result.improved
    assert result.history[-1]["step"] == 6


@pytest.mark.parametrize("lora", [*slow(False), True])
def test_lr_auto_leaves_the_model_unchanged(
    train: Train, caplog: pytest.LogCaptureFixture, lora: bool
) -> None:
    caplog.set_level("INFO", "rerank_plugin")
    options: dict[str, Any] = {"lora": lora, "dtype": "float32", "trainer": {"max_steps": 1}}
    result = train(lr="auto", **options)
    assert "--lr auto: chose" in caplog.text
    plain = train("plain", **options)
    # The evaluation before the first step.
    assert result.history[0] == plain.history[0]


def test_the_lower_of_two_similar_rates_is_chosen() -> None:
    assert choose([1e-5, 2e-5, 4e-5, 8e-5], [2.0, 1.02, 1.0, 3.0]) == 2e-5
    assert choose([1e-5, 2e-5], [float("inf"), float("inf")]) == 1e-5
    # A loss that is as low as can be is rounded to one below.
    assert choose([1e-5, 2e-5, 4e-5], [-1e-9, -2e-9, 1.0]) == 2e-5
