"""Distillation: scores and a training run in one command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_plugin.errors import InputError
from rerank_plugin.finetune import DistillConfig, distill, score_groups
from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.evaluation.teacher import warn_of_teacher

from ..factories import Run, easy_groups, train_on_easy_groups, write_lines


@pytest.fixture(scope="module")
def teacher(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that ranks easy groups well."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return train_on_easy_groups(tiny_model, folder, total_epoch=4).model_dir


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "data_path": str(write_lines(folder / "train.jsonl", easy_groups(24))),
        "eval_data_path": str(write_lines(folder / "dev.jsonl", easy_groups(12, start=100))),
        "finetune_model_dir": str(folder / "student"),
        "total_epoch": 4.0,
        "lr": 3e-3,
        "batch_size": 4,
        "max_len": 64,
        "dtype": "float32",
        "device": "cpu",
        "trainer": {"report_to": "none"},
        **more,
    }


def test_one_command_scores_and_trains(
    teacher: Path, tiny_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = options(tmp_path, teacher=str(teacher), model_name_or_path=str(tiny_encoder))
    caplog.set_level("INFO", "rerank_plugin")
    result = distill(DistillConfig(**values))
    scores = tmp_path / "student.scores"
    names = {f"{side}{end}" for side in ("train", "validation") for end in (".jsonl", ".task.json")}
    assert {path.name for path in scores.iterdir()} == names
    by_hand = score_groups(
        teacher=teacher,
        data_path=values["data_path"],
        output=tmp_path / "by_hand.jsonl",
        max_length=64,
        dtype="float32",
        device="cpu",
    )
    assert (scores / "train.jsonl").read_text("utf-8") == by_hand.output.read_text("utf-8")
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert min(losses[1:]) < losses[0]
    assert "nDCG@10 on the validation queries: teacher" in caplog.text
    assert "the teacher is not better" not in caplog.text


def test_scores_are_taken_from_an_earlier_run(
    teacher: Path, tiny_encoder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    values = options(tmp_path, teacher=str(teacher), model_name_or_path=str(tiny_encoder))
    values["trainer"]["max_steps"] = 1
    distill(DistillConfig(**values))
    train = tmp_path / "student.scores" / "train.jsonl"
    written = train.stat().st_mtime_ns
    distill(DistillConfig(**{**values, "loss": "kl_divergence", "overwrite": True}))
    assert train.stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"--scores_dir: .* has scores of other data or another"):
        distill(DistillConfig(**{**values, "teacher": str(tiny_model), "overwrite": True}))


def test_queries_without_labels(
    cli: Run, teacher: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    unlabelled = write_lines(tmp_path / "more.jsonl", easy_groups(16, start=300, negatives=5))
    values = options(tmp_path)
    arguments = [f"--{name}={value}" for name, value in values.items() if name != "trainer"]
    code, _, err = cli(
        *("distill", "--teacher", teacher, "--model_name_or_path", tiny_encoder, *arguments),
        *("--unlabelled_data_path", unlabelled, "--candidates", 4),
        *("--report_to", "none", "--max_steps", 1),
    )
    assert code == 0, err
    groups = list(read_groups(tmp_path / "student.scores" / "unlabelled.jsonl"))
    assert [len(group.documents) for group in groups] == [4] * 16
    state = json.loads((tmp_path / "student" / "metrics.json").read_text("utf-8"))
    assert "after" in state


def test_a_teacher_that_is_no_better_is_a_warning(
    teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = options(tmp_path, teacher=str(teacher), model_name_or_path=str(teacher))
    values["trainer"]["max_steps"] = 1
    distill(DistillConfig(**values))
    assert "the teacher is not better" in caplog.text or "perfectly" in caplog.text


@pytest.mark.parametrize(
    ("teacher", "student", "warning"),
    [
        ([1.0, 1.0, 1.0], [0.5, 0.4, 0.6], "if their labels are its own"),
        ([0.9, 1.0, 0.8], [0.5, 0.4, 0.6], None),
        ([0.5, 0.4, 0.6], [0.5, 0.4, 0.6], "differs by +0.0000"),
        ([0.2, 1.0, 0.6], [0.9, 0.1, 0.6], "not better than the student"),
    ],
)
def test_when_a_teacher_is_warned_of(
    teacher: list[float],
    student: list[float],
    warning: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_teacher(np.array(teacher), np.array(student))
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(logged) == (warning is not None)
    assert warning is None or warning in logged[0]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"loss": "listnet"}, "--loss: listnet does not use the scores of a teacher"),
        ({"candidates": 4}, "--candidates: requires --unlabelled_data_path"),
        (
            {"unlabelled_data_path": "a.jsonl", "eval_data_path": None},
            "--unlabelled_data_path: requires --eval_data_path",
        ),
        ({"concurrency": 2}, "--concurrency: requires the URL of an endpoint"),
        ({"model_name_or_path": "no/model"}, "no/model"),
    ],
)
def test_errors_come_before_the_first_score(
    tiny_encoder: Path, tmp_path: Path, more: dict[str, Any], problem: str
) -> None:
    values = options(tmp_path, teacher=str(tiny_encoder), model_name_or_path=str(tiny_encoder))
    with pytest.raises(InputError) as error:
        distill(DistillConfig(**{**values, **more}))
    assert problem in str(error.value)
    assert not (tmp_path / "student.scores").exists()
