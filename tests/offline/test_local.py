"""`rerank-plugin rerank`: results in a file, streamed and resumed."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin import Reranker
from rerank_plugin.model.settings import RerankSettings
from rerank_plugin.offline import local

from ..factories import Run, build_model, mount, sample_texts, unmount, write_lines
from ..training.test_lora import drawn_adapter


def rerank_file(path: Path, count: int) -> Path:
    texts = sample_texts()
    requests = [
        {"query": f"question {i}", "documents": texts[i % 90 : i % 90 + i % 4]}
        for i in range(count)
    ]
    return write_lines(path, requests)


def test_an_output_file_equals_stdout(
    cli: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugin.engine.scorer.PAIRS_AT_ONCE", 7)
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
    assert "out.jsonl already exists" in err


def test_an_output_may_be_a_link_a_pipe_or_a_mounted_file(
    cli: Run, tiny_model: Path, tmp_path: Path, mounts: Path
) -> None:
    data = rerank_file(tmp_path / "requests.jsonl", 5)
    options = ("rerank", "--model_dir", tiny_model, "--data_path", data, "--dtype", "float32")
    expected = cli(*options)[1]
    link, pipe, inside = (tmp_path / "link", tmp_path / "pipe", mounts / "out.jsonl")
    link.symlink_to("real.jsonl")
    assert cli(*options, "--output", link)[0] == 0
    assert link.is_symlink() and (tmp_path / "real.jsonl").read_text("utf-8") == expected
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text("utf-8")))
    reader.start()
    assert cli(*options, "--output", pipe)[0] == 0
    reader.join()
    assert received == [expected]
    inside.touch()
    mount(tmp_path / "real.jsonl", inside, "--bind")
    try:
        assert cli(*options, "--output", inside, "--overwrite", "--top_n", 1)[0] == 0
    finally:
        unmount(inside)
    assert len((tmp_path / "real.jsonl").read_text("utf-8")) < len(expected)
    assert {path.name for path in mounts.iterdir()} == {"out.jsonl"}


def test_a_threshold_and_calibrated_scores_are_those_of_the_model(
    cli: Run, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    query, documents = "when does it sail", sample_texts()[:20]
    record = {"query": query, "documents": documents}
    data = write_lines(tmp_path / "requests.jsonl", [record])
    median = Reranker(tiny_model, dtype="float32").rank(query, documents)[10].score
    calibration = {"scale": 1.0, "bias": 0.0}
    RerankSettings(calibration=calibration, thresholds={"p@9": median}).write(folder)
    reranker = Reranker(folder, dtype="float32", normalize="calibrated")
    for threshold in (median, "p@9"):
        ranking = reranker.rank(query, documents, score_threshold=threshold)
        options = ("--dtype", "float32", "--normalize", "calibrated", "--score-threshold")
        _, out, _ = cli("rerank", "--model_dir", folder, "--data_path", data, *options, threshold)
        expected = [{"index": result.index, "score": result.score} for result in ranking]
        assert json.loads(out)["ranking"] == expected
        assert 0 < len(ranking) < 20
    code, _, err = cli("rerank", "--model_dir", folder, "--data_path", data, *options, "recall@2")
    assert code == 2 and "no calibrated threshold 'recall@2'" in err


@pytest.mark.parametrize("written", ["no json", "[]", ""])
def test_unfinished_results_of_an_unknown_command_are_not_resumed(
    cli: Run, tiny_model: Path, tmp_path: Path, written: str
) -> None:
    data, output = rerank_file(tmp_path / "requests.jsonl", 5), tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.part").write_text("{}\n")
    (tmp_path / "out.jsonl.part.json").write_text(written)
    options = ("rerank", "--model_dir", tiny_model, "--data_path", data)
    code, _, err = cli(*options, "--output", output)
    assert code == 2 and "unfinished results of another run (its record cannot be read)" in err


def test_a_killed_ranking_resumes_after_its_last_result(
    cli: Run, tiny_model: Path, tmp_path: Path
) -> None:
    data, output = rerank_file(tmp_path / "requests.jsonl", 400), tmp_path / "out.jsonl"
    options = ("rerank", "--model_dir", tiny_model, "--data_path", data, "--dtype", "float32")
    expected = cli(*options)[1]
    program = (
        "import os, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from rerank_plugin.engine import scorer\n"
        "from rerank_plugin.engine.distinct import EncodedPairs\n"
        "from rerank_plugin.cli.main import main\n"
        "scorer.PAIRS_AT_ONCE = 64\n"
        "pair_logits, calls = EncodedPairs.pair_logits, []\n"
        "def dies(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return pair_logits(*arguments)\n"
        "EncodedPairs.pair_logits = dies\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, *map(str, options), "--output", str(output)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    partial = tmp_path / "out.jsonl.part"
    done = partial.read_text("utf-8").count("\n")
    assert 0 < done < 400
    with partial.open("a") as file:
        file.write('{"query": "half a li')
    code, _, err = cli(*options, "--output", output, "--top_n", 1)
    assert code == 2
    assert "unfinished results of another run (--top_n was None, not 1)" in err
    code, _, err = cli(*options, "--output", output)
    assert code == 0
    assert f"resuming after {done} requests" in err
    results = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    complete = [json.loads(line) for line in expected.splitlines()]
    assert [result["query"] for result in results] == [result["query"] for result in complete]
    for result, other in zip(results, complete, strict=True):
        assert result["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert {file.name for file in tmp_path.iterdir()} == {"requests.jsonl", "out.jsonl"}


@pytest.mark.parametrize("adapter", [False, True])
def test_results_of_a_model_that_was_replaced_are_not_resumed(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, adapter: bool
) -> None:
    base = model = build_model(tmp_path / "base")
    if adapter:
        model = drawn_adapter(base, tmp_path / "adapter", seed=0)
    data, output = rerank_file(tmp_path / "requests.jsonl", 5), tmp_path / "out.jsonl"
    options = ("rerank", "--model_dir", model, "--data_path", data, "--output", output)
    rank_all = local.rank_all

    def interrupted(*arguments: Any, **options: Any) -> None:
        rank_all(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "rank_all", interrupted)
    assert cli(*options)[0] == 1
    monkeypatch.setattr(local, "rank_all", rank_all)
    shutil.move(base, tmp_path / "moved")
    build_model(base, seed=1)
    code, _, err = cli(*options)
    changed = f"{base}: model.safetensors" if adapter else "model.safetensors"
    assert code == 2 and f"another run (the model has changed: {changed})" in err
    shutil.rmtree(base)
    shutil.copytree(tmp_path / "moved", base)
    code, _, err = cli(*options)
    assert code == 0 and "resuming after 5 requests" in err


def test_two_commands_never_write_one_output(
    cli: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = rerank_file(tmp_path / "requests.jsonl", 5), tmp_path / "out.jsonl"
    command = ("rerank", "--model_dir", tiny_model, "--data_path", data, "--output", output)
    codes: list[tuple[int, str, str]] = []
    rank_all = local.rank_all

    def begins_another(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(local, "rank_all", rank_all)
        codes.append(cli(*command))
        return rank_all(*arguments, **options)

    monkeypatch.setattr(local, "rank_all", begins_another)
    assert cli(*command)[0] == 0
    ((code, _, err),) = codes
    assert code == 2 and "another command is writing it" in err
    assert len(output.read_text("utf-8").splitlines()) == 5


@pytest.mark.parametrize("problem", ["no model", "killed before its first result"])
def test_a_command_without_a_result_leaves_none(
    cli: Run, tiny_model: Path, tmp_path: Path, problem: str
) -> None:
    data, output = rerank_file(tmp_path / "requests.jsonl", 5), tmp_path / "out.jsonl"
    if problem == "no model":
        code, _, err = cli(
            "rerank", "--model_dir", tmp_path, "--data_path", data, "--output", output
        )
        assert code == 2 and "stopped: results so far" not in err
        assert {path.name for path in tmp_path.iterdir()} == {"requests.jsonl"}
    else:
        (tmp_path / "out.jsonl.part").touch()
        (tmp_path / "out.jsonl.part.json").write_text("{}")
    assert cli("rerank", "--model_dir", tiny_model, "--data_path", data, "--output", output)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"requests.jsonl", "out.jsonl"}


def test_an_output_that_appears_meanwhile_is_kept(
    cli: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = rerank_file(tmp_path / "requests.jsonl", 5), tmp_path / "out.jsonl"
    rank_all = local.rank_all

    def late(*arguments: Any, **options: Any) -> Any:
        output.write_text("kept")
        return rank_all(*arguments, **options)

    monkeypatch.setattr(local, "rank_all", late)
    options = ("rerank", "--model_dir", tiny_model, "--data_path", data, "--output", output)
    code, _, err = cli(*options)
    assert code == 1 and "out.jsonl.part" in err
    assert output.read_text() == "kept"
    output.unlink()
    monkeypatch.setattr(local, "rank_all", rank_all)
    assert cli(*options)[0] == 0
    assert len(output.read_text("utf-8").splitlines()) == 5


def test_a_full_disk_is_named_and_results_so_far_are_kept(
    cli: Run, tiny_model: Path, tmp_path: Path, mounts: Path
) -> None:
    data, output = rerank_file(tmp_path / "requests.jsonl", 2000), mounts / "out.jsonl"
    mount("tmpfs", mounts, "-o", "size=48k")
    options = ("rerank", "--model_dir", tiny_model, "--data_path", data, "--output", output)
    code, _, err = cli(*options)
    assert code == 1 and f"{output}.part: No space left on device" in err
    mount("tmpfs", mounts, "-o", "remount,size=10m")
    assert cli(*options)[0] == 0
    queries = [json.loads(line)["query"] for line in output.read_text("utf-8").splitlines()]
    assert queries == [f"question {i}" for i in range(2000)]


def test_a_pipe_without_disk_space_for_its_copy_names_the_folder(
    cli: Run, tiny_model: Path, tmp_path: Path, mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, data = tmp_path / "pipe", rerank_file(tmp_path / "requests.jsonl", 500)
    mount("tmpfs", mounts, "-o", "size=8k")
    monkeypatch.setattr("rerank_plugin.io.jsonl.spool_folder", lambda: mounts)
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(data.read_bytes())

    writer = threading.Thread(target=write)
    writer.start()
    code, _, err = cli("rerank", "--model_dir", tiny_model, "--data_path", pipe)
    writer.join()
    assert code == 2 and "no room for a copy" in err and "TMPDIR" in err
