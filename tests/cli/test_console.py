"""Streams that are closed, full or of another encoding, and unexpected errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_plugin.io.jsonl import input_files

from ..factories import Run, easy_groups, slow, write_lines

COMMAND = f"{sys.executable} -m rerank_plugin"


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of bash; fail if it hangs."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("rerank-plugin", COMMAND)],
        env=os.environ | environment,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [f"the ferry sails at {hour}" for hour in range(20)]
    records = [{"query": f"when {number}", "documents": documents} for number in range(300)]
    return write_lines(tmp_path_factory.mktemp("requests") / "requests.jsonl", records)


@pytest.mark.parametrize("stderr", ["2>/dev/full", *slow("2>&-", "2> >(head -c 10)")])
def test_a_closed_stderr_does_not_stop_the_work(
    stderr: str, tiny_model: Path, requests: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    options = f"--model_dir {tiny_model} --data_path {requests} --output {output} --device cpu"
    done = shell(f"rerank-plugin rerank {options} {stderr}")
    assert done.returncode == 0
    assert len(output.read_text().splitlines()) == 300


@pytest.mark.parametrize("stdout", [">/dev/full", "| head -c 5", *slow(">&-", "2>&1 | head -c 5")])
@pytest.mark.parametrize("command", ["evaluate", *slow("check"), "rerank", *slow("convert")])
def test_a_closed_stdout_ends_the_command_and_loses_no_file(
    command: str, stdout: str, tiny_model: Path, requests: Path, eval_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    options = {
        "evaluate": f"--model_dir {tiny_model} --data_path {eval_file} --output {output}",
        "check": f"--data_path {eval_file}",
        "rerank": f"--model_dir {tiny_model} --data_path {requests}",
        "convert": "--from groups --to sentence-transformers "
        f"--data_path {eval_file} --output {output}",
    }[command]
    done = shell(f"rerank-plugin {command} {options} {stdout}")
    assert done.returncode == 1 or "head" in stdout
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if "head" not in stdout:
        assert b"stdout: " in done.stderr
    if command in ("evaluate", "convert"):
        assert json.loads(
            output.read_text().splitlines()[0] if command == "convert" else output.read_text()
        )


@pytest.mark.parametrize("encoding", ["ascii", *slow("latin-1", "cp437", "shift_jis")])
@pytest.mark.parametrize(
    "command", ["rerank", *slow("check", "evaluate"), "--help", *slow("mine --help")]
)
def test_output_is_utf8_whatever_the_locale_is(
    command: str, encoding: str, tiny_model: Path, tmp_path: Path
) -> None:
    groups = easy_groups(5)
    groups[0]["query"] = "Fährt das Schiff nach Łódź? 渡轮 🚢"
    data = write_lines(tmp_path / "größe.jsonl", groups)
    asked = write_lines(tmp_path / "r.jsonl", [{"query": groups[0]["query"], "documents": ["é"]}])
    options = {
        "rerank": f"--model_dir {tiny_model} --data_path {asked}",
        "check": f"--data_path {data}",
        "evaluate": f"--model_dir {tiny_model} --baseline {tiny_model} --data_path {data}",
    }.get(command, "")
    done = shell(f"rerank-plugin {command} {options}", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode() + done.stderr.decode()
    if command == "rerank":
        assert json.loads(done.stdout)["query"] == groups[0]["query"]
    if command == "check":
        assert "größe.jsonl" in text


def test_an_unexpected_error_is_one_line_and_debug_prints_its_traceback(
    cli: Run, eval_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such thing\nmore of it")

    monkeypatch.setattr("rerank_plugin.finetune.check.check.describe", broken)
    code, _, err = cli("check", "--data_path", eval_file)
    (line,) = [line for line in err.splitlines() if "rerank-plugin" in line]
    assert code == 1
    assert "RuntimeError: no such thing" in line
    assert "--debug" in line
    assert "Traceback" not in err
    code, _, err = cli("check", "--debug", "--data_path", eval_file)
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "--token_budget"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "--token_budget",
        ),
        (ModuleNotFoundError("No module named 'bm25s'", name="bm25s"), "'rerank-plugin[mine]'"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (RecursionError("too deep"), "RecursionError: too deep"),
    ],
)
def test_errors_of_libraries_get_advice(
    cli: Run, eval_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("rerank_plugin.finetune.check.check.describe", broken)
    code, _, err = cli("check", "--data_path", eval_file)
    assert code == 1
    assert expected in err


def test_a_pipe_is_read_once_and_used_twice(tiny_model: Path, requests: Path) -> None:
    done = shell(
        f"rerank-plugin rerank --model_dir {tiny_model} --data_path <(head -2 {requests})"
        f" && head -2 {requests} | rerank-plugin rerank --model_dir {tiny_model} "
        "--data_path /dev/stdin"
    )
    assert len(done.stdout.splitlines()) == 4, done.stderr


@pytest.mark.parametrize("name", ["d[1]", "a*b", "what?", "[x"])
def test_existing_folders_are_not_read_as_patterns(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "in"
    folder.mkdir(parents=True)
    for file in ("a.jsonl", "b.jsonl", "[c].jsonl"):
        write_lines(folder / file, [{}])
    assert input_files(folder / "*.jsonl") == sorted(folder.iterdir())
    assert input_files(folder / "[c].jsonl") == [folder / "[c].jsonl"]
    assert input_files(folder.parent / "*" / "[ab].jsonl") == [
        folder / "a.jsonl",
        folder / "b.jsonl",
    ]
