"""`rerank-plugin rerank`: results in a file, streamed and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run, sample_texts, write_lines


def rerank_file(path: Path, count: int) -> Path:
    texts = sample_texts()
    requests = [
        {"query": f"question {i}", "documents": texts[i % 90 : i % 90 + i % 4]}
        for i in range(count)
    ]
    return write_lines(path, requests)


def test_an_output_file_holds_what_stdout_would(
    cli: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugin.scoring.PAIRS_AT_ONCE", 7)
    data, output = rerank_file(tmp_path / "requests.jsonl", 50), tmp_path / "out.jsonl"
    options = ("rerank", "--model_dir", tiny_model, "--data_path", data, "--dtype", "float32")
    code, out, _ = cli(*options)
    assert code == 0
    assert [json.loads(line)["query"] for line in out.splitlines()] == [
        f"question {i}" for i in range(50)
    ]
    assert cli(*options, "--output", output)[0] == 0
    assert output.read_text("utf-8") == out
    assert {file.name for file in tmp_path.iterdir()} == {"requests.jsonl", "out.jsonl"}
    code, _, err = cli(*options, "--output", output)
    assert code == 2
    assert "out.jsonl exists" in err


def test_a_killed_ranking_goes_on_where_it_stopped(
    cli: Run, tiny_model: Path, tmp_path: Path
) -> None:
    data, output = rerank_file(tmp_path / "requests.jsonl", 400), tmp_path / "out.jsonl"
    options = ("rerank", "--model_dir", tiny_model, "--data_path", data, "--dtype", "float32")
    expected = cli(*options)[1]
    program = (
        "import os, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from rerank_plugin import scoring\n"
        "from rerank_plugin.cli import main\n"
        "scoring.PAIRS_AT_ONCE = 64\n"
        "of_pairs, calls = scoring.EncodedPairs.of_pairs, []\n"
        "def dies(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return of_pairs(*arguments)\n"
        "scoring.EncodedPairs.of_pairs = dies\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, *map(str, options), "--output", str(output)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    part = tmp_path / "out.jsonl.part"
    done = part.read_text("utf-8").count("\n")
    assert 0 < done < 400
    with part.open("a") as file:
        file.write('{"query": "half a li')
    code, _, err = cli(*options, "--output", output, "--top_n", 1)
    assert code == 2
    assert "unfinished results of other data or options" in err
    code, _, err = cli(*options, "--output", output)
    assert code == 0
    assert f"going on behind the {done} requests" in err
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    wanted = [json.loads(line) for line in expected.splitlines()]
    assert [item["query"] for item in found] == [item["query"] for item in wanted]
    for item, other in zip(found, wanted, strict=True):
        assert item["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert {file.name for file in tmp_path.iterdir()} == {"requests.jsonl", "out.jsonl"}
