import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rerank_plugin.finetune.checkpoint import read_optimizer, write_optimizer

from .conftest import easy_groups, write_lines

STEP = "/12 "


def command(model: Path, data: Path, folder: Path, *more: str) -> list[str]:
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
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "rerank_plugin", "train", *arguments, *more]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def reach(process: "subprocess.Popen[str]", step: int) -> None:
    """Read the progress line until a step is done."""
    assert process.stderr is not None
    told = ""
    while f"{step}{STEP[:3]}" not in told:
        read = process.stderr.read(1)
        assert read, f"ended before step {step}: {told}"
        told = (told + read)[-4000:]


def finish(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    process = start(arguments)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("resuming") / "train.jsonl", easy_groups(40))


@pytest.fixture(scope="module")
def whole(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    done = finish(command(tiny_model, data, folder))
    assert done.returncode == 0, done.stderr
    return folder


def same_model(folder: Path, other: Path) -> bool:
    found, expected = (load_file(place / "model.safetensors") for place in (folder, other))
    return found.keys() == expected.keys() and all(
        bool((found[name] == expected[name]).all()) for name in found
    )


def figures(folder: Path) -> object:
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    tiny_model: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    moments = sorted(random.Random(7).sample(range(1, 12), 3))
    for moment in moments:
        process = start(command(tiny_model, data, folder))
        reach(process, moment)
        process.kill()
        process.wait()
        assert not folder.exists()
    done = finish(command(tiny_model, data, folder))
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    assert same_model(folder, whole)
    assert figures(folder) == figures(whole)
    steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").open()]
    assert steps == [json.loads(line)["step"] for line in (whole / "history.jsonl").open()]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(
    tiny_model: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    process = start(command(tiny_model, data, folder))
    reach(process, 3)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    told = process.stderr.read()
    assert process.wait() == 1
    assert "the same command goes on" in told and "Traceback" not in told
    other = finish(command(tiny_model, data, folder, "--weight_decay", "0.5"))
    assert other.returncode == 2 and "--overwrite" in other.stderr
    assert finish(command(tiny_model, data, folder)).returncode == 0
    assert same_model(folder, whole)


def test_two_runs_never_work_in_one_folder(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    first = start(command(tiny_model, data, tmp_path / "out"))
    reach(first, 1)
    first.send_signal(signal.SIGSTOP)
    second = finish(command(tiny_model, data, tmp_path / "out"))
    first.kill()
    first.wait()
    assert second.returncode == 2 and "another run" in second.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_a_run_with_one_line_and_it_goes_on_when_there_is_room(
    tiny_model: Path, data: Path, whole: Path, small_disk: Path
) -> None:
    folder = small_disk / "out"
    full = finish(command(tiny_model, data, folder))
    assert full.returncode == 1
    assert "No space left" in full.stderr and "Traceback" not in full.stderr
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    done = finish(command(tiny_model, data, folder))
    assert done.returncode == 0, done.stderr
    assert same_model(folder, whole)


def test_the_state_of_any_optimizer_comes_back(tmp_path: Path) -> None:
    """Some keep tensors in mappings of their own."""
    own = {"step": 3, "mean": torch.arange(3.0), "narrow": {"codes": torch.arange(4), "bits": 8}}
    state = {"state": {0: own, 11: {"step": 4}}, "param_groups": [{"lr": 1e-3, "params": [0, 11]}]}
    record = json.loads(json.dumps(write_optimizer(tmp_path, state)))
    found = read_optimizer(tmp_path, record)
    assert found["param_groups"] == state["param_groups"] and found["state"].keys() == {0, 11}
    again = found["state"][0]
    assert torch.equal(again.pop("mean"), torch.arange(3.0))
    assert torch.equal(again["narrow"].pop("codes"), torch.arange(4))
    assert again == {"step": 3, "narrow": {"bits": 8}} and found["state"][11] == {"step": 4}
