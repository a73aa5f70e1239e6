import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_plugin import Reranker
from rerank_plugin.cli.main import main
from rerank_plugin.errors import InputError, OptionError, SavingError
from rerank_plugin.finetune import FinetuneConfig, finetune
from rerank_plugin.finetune.report.report import ComparisonReport
from rerank_plugin.finetune.training import run_dir
from rerank_plugin.finetune.training.interrupt import Interruption
from rerank_plugin.finetune.training.model_selection import ModelSelection
from rerank_plugin.finetune.training.run_dir import RunDir
from rerank_plugin.io import publishing

from ..factories import Run, easy_groups, mount, slow, write_lines
from .conftest import same_model

STEP = "/12 "


def train_options(model: Path, data: Path, folder: Path, *more: str) -> list[str]:
    options = {
        "model_name_or_path": model,
        "data_path": data,
        "finetune_model_dir": folder,
        "max_len": 48,
        "batch_size": 4,
        "train_group_size": 3,
        "lr": 1e-3,
        "max_steps": 12,
        "eval_steps": 3,
        "save_steps": 2,
        "dropout": 0.1,
        "report_to": "none",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["train", *arguments, *more]


def start(options: list[str], *launcher: str) -> "subprocess.Popen[str]":
    """Start a run in a process of its own, which a test can kill or send a signal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"}
    return subprocess.Popen(
        [*launcher, sys.executable, "-m", "rerank_plugin", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reach(process: "subprocess.Popen[str]", step: int) -> None:
    """Read the progress line until a step is done."""
    assert process.stderr is not None
    output = ""
    while f"{step}{STEP[:3]}" not in output:
        read = process.stderr.read(1)
        assert read, f"ended before step {step}: {output}"
        output = (output + read)[-4000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("resuming") / "train.jsonl", easy_groups(40))


@pytest.fixture(scope="module")
def whole(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main(train_options(tiny_model, data, folder)) == 0
    return folder


def read_metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_a_run_that_was_killed_three_times_ends_with_the_same_weights(
    tiny_model: Path, data: Path, whole: Path, tmp_path: Path, cli: Run
) -> None:
    folder = tmp_path / "out"
    options = train_options(tiny_model, data, folder)
    steps = sorted(random.Random(7).sample(range(1, 12), 3))
    for step in steps:
        process = start(options)
        reach(process, step)
        process.kill()
        process.wait()
        assert not folder.exists()
    code, _, err = cli(*options)
    assert code == 0, err
    assert "resuming from" in err
    assert same_model(folder, whole)
    assert read_metrics(folder) == read_metrics(whole)
    steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").open()]
    assert steps == [json.loads(line)["step"] for line in (whole / "history.jsonl").open()]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGINT, *slow(signal.SIGHUP)])
def test_a_signal_finishes_the_step_and_prints_how_to_resume(
    number: signal.Signals, tiny_model: Path, data: Path, whole: Path, tmp_path: Path, cli: Run
) -> None:
    folder = tmp_path / "out"
    options = train_options(tiny_model, data, folder)
    process = start(options)
    reach(process, 3)
    process.send_signal(number)
    assert process.stderr is not None
    output = process.stderr.read()
    assert process.wait() == 1
    assert "the same command resumes" in output and "Traceback" not in output
    code, _, err = cli(*options, "--weight_decay", "0.5")
    assert code == 2 and "--overwrite" in err
    assert cli(*options)[0] == 0
    assert same_model(folder, whole)


@pytest.mark.slow
def test_nohup_ignores_a_hangup(tiny_model: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    process = start(train_options(tiny_model, data, tmp_path / "out"), "nohup")
    reach(process, 3)
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert "stopping" not in process.stderr.read()
    assert process.wait() == 0
    assert same_model(tmp_path / "out", whole)


def test_two_runs_never_work_in_one_folder(
    tiny_model: Path, data: Path, tmp_path: Path, cli: Run
) -> None:
    options = train_options(tiny_model, data, tmp_path / "out")
    first = start(options)
    reach(first, 1)
    first.send_signal(signal.SIGSTOP)
    code, _, err = cli(*options)
    first.kill()
    first.wait()
    assert code == 2 and "another run" in err


@pytest.fixture
def small_disk(mounts: Path) -> Path:
    """A disk of 1 MB."""
    mount("tmpfs", mounts, "-o", "size=1m")
    return mounts


def test_a_full_disk_ends_a_run_with_one_line_and_it_resumes_when_there_is_room(
    tiny_model: Path, data: Path, whole: Path, small_disk: Path, cli: Run
) -> None:
    options = train_options(tiny_model, data, small_disk / "out")
    code, _, err = cli(*options)
    assert code == 1
    assert "No space left" in err and "Traceback" not in err
    mount("tmpfs", small_disk, "-o", "remount,size=50m")
    code, _, err = cli(*options)
    assert code == 0, err
    assert same_model(small_disk / "out", whole)


@pytest.mark.slow
def test_a_killed_run_in_a_mount_point_resumes_inside_it(
    tiny_model: Path, data: Path, whole: Path, mounts: Path, cli: Run
) -> None:
    """As in a container's volume: files outside it are lost with the container."""
    mount("tmpfs", mounts)
    options = train_options(tiny_model, data, mounts)
    process = start(options)
    reach(process, 5)
    process.kill()
    process.wait()
    assert [path for path in mounts.parent.iterdir() if path.name.startswith(mounts.name)] == [
        mounts
    ]
    assert not (mounts / "config.json").exists()
    code, _, err = cli(*options)
    assert code == 0, err
    assert "resuming from" in err
    assert same_model(mounts, whole) and read_metrics(mounts) == read_metrics(whole)
    assert not [path.name for path in mounts.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def earlier(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that an earlier run of one step left, to be copied."""
    folder = tmp_path_factory.mktemp("earlier") / "out"
    return finetune(config(tiny_model, data, folder, trainer={"max_steps": 1})).model_dir


@pytest.fixture(scope="module")
def two_steps(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("two_steps") / "out"
    return finetune(config(tiny_model, data, folder, trainer={"max_steps": 2})).model_dir


@pytest.mark.parametrize("overwrite", [False, *slow(True)])
@pytest.mark.parametrize("kept", [*slow(0), 1, *slow(4), -1])
def test_a_run_that_dies_filling_its_folder_ends_like_one_that_did_not(
    tiny_model: Path,
    data: Path,
    earlier: Path,
    two_steps: Path,
    mounts: Path,
    kept: int,
    overwrite: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mount("tmpfs", mounts)
    if overwrite:
        shutil.copytree(earlier, mounts, dirs_exist_ok=True)
    run = config(tiny_model, data, mounts, overwrite=overwrite, trainer={"max_steps": 2})
    link_or_copy, done = publishing.link_or_copy, 0

    def dies(source: Path, target: Path) -> None:
        nonlocal done
        if done == kept or (kept < 0 and target.name == "config.json"):
            raise SystemExit(9)
        link_or_copy(source, target)
        done += 1

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(publishing, "link_or_copy", dies)
        finetune(run)
    with pytest.raises(InputError, match=r"config\.json not found"):
        Reranker(str(mounts))
    finetune(run)
    assert same_model(mounts, two_steps)
    assert read_metrics(mounts) == read_metrics(two_steps)
    assert {path.name for path in mounts.iterdir()} == {path.name for path in two_steps.iterdir()}


def test_a_model_folder_may_be_a_link(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/out")
    for options in ({}, {"overwrite": True}):
        run = config(tiny_model, data, tmp_path / "out", trainer={"max_steps": 1}, **options)
        assert finetune(run).model_dir == tmp_path / "out"
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "out" / "rerank.json").is_file()
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("number", "taken"),
    [
        (errno.ENOSYS, False),
        (errno.ENOLCK, False),
        (errno.EOPNOTSUPP, False),
        (errno.EINVAL, False),
        (errno.EIO, False),
        (errno.EWOULDBLOCK, True),
        (errno.EACCES, True),
    ],
)
def test_missing_locks_are_not_taken_locks(
    tmp_path: Path,
    number: int,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    if taken:
        with pytest.raises(OptionError, match="another run is working"):
            RunDir(tmp_path / "out", {}, overwrite=False)
        return
    folder = RunDir(tmp_path / "out", {}, overwrite=False)
    assert os.strerror(number) in caplog.text
    folder.leave()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_before_the_data_is_read(
    tmp_path: Path, mounts: Path
) -> None:
    mount("tmpfs", mounts, "-o", "ro")
    for target in (mounts, mounts / "out", mounts / "deep" / "er"):
        with pytest.raises(OptionError, match=r"^--finetune_model_dir: .*Read-only file system"):
            finetune(config(tmp_path / "no model", tmp_path / "no data", target))


def config(model: Path, data: Path, folder: Path, **options: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "max_len": 48,
        "batch_size": 4,
        "train_group_size": 3,
        "lr": 1e-3,
        "dropout": 0.1,
        "total_epoch": 1,
        "device": "cpu",
        **options,
    }
    trainer: dict[str, Any] = {"report_to": "none", **options.get("trainer", {})}
    if trainer.get("save_strategy", "steps") == "steps":
        trainer.setdefault("save_steps", 1)
    values["trainer"] = trainer
    return FinetuneConfig(
        model_name_or_path=str(model),
        data_path=str(data),
        finetune_model_dir=str(folder),
        **values,
    )


def evaluations(folder: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (folder / "history.jsonl").open()]
    return [(entry["step"], entry["ndcg@10"]) for entry in entries if "ndcg@10" in entry]


def die_publishing(run: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and fail after the last step, before the model is moved to its folder."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(SavingError, match="No space left"):
        patched.setattr(ComparisonReport, "write", full)
        finetune(run)


CONSTANT = {"lr_scheduler_type": "constant"}


@pytest.mark.parametrize(
    "options",
    [
        {"trainer": {"max_steps": 3, "eval_strategy": "no", **CONSTANT}},
        {
            "total_epoch": 3,
            "early_stopping": 1,
            "lr": 1e-9,
            "trainer": {"eval_steps": 1, **CONSTANT},
        },
        {"fold_calibration": True, "lr": 3e-3, "trainer": {"eval_strategy": "no"}},
        {"overwrite": True, "trainer": {"max_steps": 3, "eval_steps": 2}},
    ],
    ids=["after the last step", "out of patience", "calibration", "overwrite"],
)
def test_a_run_that_dies_publishing_ends_like_one_that_did_not(
    tiny_model: Path,
    data: Path,
    earlier: Path,
    tmp_path: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "rerank_plugin")
    test = str(write_lines(tmp_path / "test.jsonl", easy_groups(24, start=200)))
    folder, whole = tmp_path / "out", tmp_path / "whole"
    if "overwrite" in options:
        shutil.copytree(earlier, folder)
    finetune(config(tiny_model, data, whole, test_data_path=test, **options))
    die_publishing(config(tiny_model, data, folder, test_data_path=test, **options), monkeypatch)
    finetune(config(tiny_model, data, folder, test_data_path=test, **options))
    assert "resuming from" in caplog.text
    assert same_model(folder, whole)
    assert read_metrics(folder) == read_metrics(whole)
    assert evaluations(folder) == evaluations(whole)
    last = [
        json.loads((model / "history.jsonl").read_text().splitlines()[-1])
        for model in (folder, whole)
    ]
    assert last[0]["step"] == last[1]["step"]
    assert last[0]["train_pairs"] == last[1]["train_pairs"]


#: Stops after two epochs without a better model.
PATIENT: dict[str, Any] = {
    "total_epoch": 3,
    "early_stopping": 2,
    "lr": 1e-9,
    "trainer": {"eval_strategy": "epoch", "save_strategy": "epoch"},
}


@pytest.fixture(scope="module")
def two_epochs(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_epochs") / "out"
    return finetune(config(tiny_model, data, folder, **PATIENT)).model_dir


def stop_after(step: int, config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt a run, as Ctrl-C would, after a step."""
    on_step_end = Interruption.on_step_end

    def asked(self: Interruption, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.received |= state.global_step == step
        on_step_end(self, args, state, control, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Interruption, "on_step_end", asked)
        finetune(config)


@pytest.mark.parametrize("step", [2, 8, 9], ids=["in an epoch", "at its end", "after it"])
def test_ctrl_c_adds_no_evaluation(
    tiny_model: Path,
    data: Path,
    two_epochs: Path,
    tmp_path: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = config(tiny_model, data, tmp_path / "out", **PATIENT)
    stop_after(step, run, monkeypatch)
    finetune(run)
    assert evaluations(tmp_path / "out") == evaluations(two_epochs)
    assert [at for at, _ in evaluations(tmp_path / "out")] == [0, 8, 16]


def test_data_that_changed_since_the_interruption_is_an_error(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = write_lines(tmp_path / "eval.jsonl", easy_groups(8, start=100))
    model = shutil.copytree(tiny_model, tmp_path / "model")
    run = config(
        model, data, tmp_path / "out", eval_data_path=str(held_out), trainer={"max_steps": 2}
    )
    die_publishing(run, monkeypatch)
    before = held_out.read_bytes()
    write_lines(held_out, easy_groups(8, start=300))
    with pytest.raises(OptionError, match="eval_data_path: the data has changed since the run was"):
        finetune(run)
    held_out.write_bytes(before)
    file = model / "model.safetensors"
    weights, original = load_file(file), file.read_bytes()
    doubled = {name: weight * 2 for name, weight in weights.items()}
    save_file(doubled, file, {"format": "pt"})
    with pytest.raises(OptionError, match="model_name_or_path: the model has changed"):
        finetune(run)
    file.write_bytes(original)
    finetune(run)


def test_a_run_folder_that_could_not_be_started_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(run_dir, "write_json", full)
        RunDir(tmp_path / "out", {}, overwrite=False)
    folder = RunDir(tmp_path / "out", {}, overwrite=False)
    logs = folder.work / "runs" / "today"
    for path in (logs, folder.model):
        path.mkdir(parents=True)
    (logs / "events").write_text("TensorBoard's")
    folder.publish(folder.model)
    assert (tmp_path / "out" / "runs" / "today" / "events").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_of_another_version_is_an_error(tmp_path: Path) -> None:
    state = {"schema_version": 0, "options": {}, "overwrite": False}
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "state.json").write_text(json.dumps(state))
    with pytest.raises(OptionError, match=r"an unfinished run that cannot be read: .*--overwrite"):
        RunDir(tmp_path / "out", {}, overwrite=False)


def test_metrics_are_those_of_the_kept_weights(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run saved a model after its last checkpoint, and the next run saves none."""
    trainer = {"max_steps": 6, "save_steps": 2, "eval_steps": 3, **CONSTANT}
    run = config(tiny_model, data, tmp_path / "out", lr=3e-3, trainer=trainer)
    keep = ModelSelection.save

    def killed(self: ModelSelection, state: Any) -> None:
        keep(self, state)
        if state.global_step:
            raise SystemExit(9)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(ModelSelection, "beats_the_base", lambda *_: True)
        patched.setattr(ModelSelection, "save", killed)
        finetune(run)
    kept = load_file(tmp_path / "out.run" / "model" / "model.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(ModelSelection, "beats_the_base", lambda *_: False)
        result = finetune(run)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["best_step"] == 3
    assert not (tmp_path / "out" / "kept.json").exists()
    assert result.after != result.before


@pytest.mark.parametrize("overwrite", [False, *slow(True)])
@pytest.mark.parametrize("kind", ["notes", *slow("a model", "a file")])
def test_a_target_that_appears_during_the_run_is_kept(
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    kind: str,
    overwrite: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, write = tmp_path / "out", ComparisonReport.write
    run = config(tiny_model, data, folder, overwrite=overwrite, trainer={"max_steps": 2})

    def late(*arguments: Any) -> None:
        write(*arguments)
        if kind == "a file":
            folder.write_text("kept")
        else:
            folder.mkdir()
            (folder / ("rerank.json" if kind == "a model" else "notes.txt")).write_text("kept")

    with monkeypatch.context() as patched:
        patched.setattr(ComparisonReport, "write", late)
        if kind == "a model" and overwrite:
            assert finetune(run).model_dir.joinpath("config.json").is_file()
            return
        with pytest.raises(SavingError, match="move it away and start the same command again"):
            finetune(run)
    files = [folder] if kind == "a file" else list(folder.iterdir())
    assert [path.read_text() for path in files] == ["kept"]
    folder.rename(tmp_path / "away")
    assert (finetune(run).model_dir / "config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "away"}
