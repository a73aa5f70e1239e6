"""`--total_epoch auto`, and how long a run is said to take."""

import json
import re
from pathlib import Path

import pytest

from rerank_plugin.finetune.training.schedule.duration import default_epochs, in_words
from rerank_plugin.model.settings import RerankSettings

from .conftest import Train

NEW = "a newly initialised scoring head"


def test_few_groups_have_more_epochs_and_many_have_one() -> None:
    epochs = [default_epochs(NEW, groups=groups, step_groups=8) for groups in (8, 400, 10_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert 1 == epochs[-1] < epochs[1] < epochs[0]


def test_larger_steps_have_more_epochs() -> None:
    small, large = (default_epochs(NEW, groups=1000, step_groups=size) for size in (8, 64))
    assert small < large


def test_the_chosen_epochs_are_logged_kept_and_trained(
    tiny_encoder: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = train(model_name_or_path=tiny_encoder, total_epoch="auto", train_group_size=2)
    chosen = default_epochs(NEW, groups=24, step_groups=4)
    assert f"total_epoch: {chosen} (24 groups, {NEW})" in caplog.text
    assert RerankSettings.read(result.model_dir).options["total_epoch"] == chosen
    assert result.history[-1]["epoch"] == chosen


def test_a_given_number_of_epochs_is_not_changed(
    tiny_encoder: Path, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = train(model_name_or_path=tiny_encoder, total_epoch=0.5)
    assert result.history[-1]["step"] == 3
    assert "total_epoch: " not in caplog.text


def test_the_time_that_a_run_takes_is_said_before_its_first_step(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = train(trainer={"eval_steps": 6})
    assert re.search(r"this machine takes about \d+ s for 18 steps, and \d+ s for", caplog.text)
    assert json.loads((result.model_dir / "metrics.json").read_text())["best_step"] <= 18


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (99, "99 s"), (290, "5 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
