"""`rerank-plugin rerank --engine ray`: shards of requests, ranked by the workers of a cluster."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pytest
from pyarrow import parquet

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.requests import read_requests
from rerank_plugin.model.fingerprint import model_fingerprints
from rerank_plugin.offline import RerankResult, rerank_files
from rerank_plugin.offline.ray_workers import plan_workers
from rerank_plugin.offline.shard_folder import ShardFolder
from rerank_plugin.offline.shard_ranker import Ranking, ShardRanker
from rerank_plugin.offline.shards import find_shards, read_shard

from ..factories import Run, build_model, sample_texts, write_lines


def requests(count: int, documents: int = 3) -> list[dict[str, Any]]:
    texts = sample_texts()
    return [
        {"query": f"question {i}", "documents": texts[i % 90 : i % 90 + i % documents]}
        for i in range(count)
    ]


def results(files: list[Path]) -> list[dict[str, Any]]:
    if files[0].suffix == ".parquet":
        return [row for file in files for row in parquet.read_table(file).to_pylist()]
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def check_equal(files: list[Path], expected: list[dict[str, Any]]) -> None:
    """Check that results have the order, the scores and the rankings of others."""
    actual = results(files)
    assert [result["query"] for result in actual] == [result["query"] for result in expected]
    for result, other in zip(actual, expected, strict=True):
        assert result["scores"] == pytest.approx(other["scores"], abs=1e-5)
        order, other_order = (
            [result["scores"][ranked["index"]] for ranked in ranking["ranking"]]
            for ranking in (result, other)
        )
        assert order == pytest.approx(other_order, abs=1e-5)


@pytest.fixture
def rank(tiny_model: Path, tmp_path: Path) -> Callable[..., RerankResult]:
    """Rank the requests of `tmp_path` on the cluster."""

    def call(name: str = "requests.jsonl", **options: Any) -> RerankResult:
        defaults: dict[str, Any] = {
            "model_dir": tiny_model,
            "output": tmp_path / "ranked",
            "workers": 2,
            "dtype": "float32",
        }
        return rerank_files(data_path=tmp_path / name, engine="ray", **defaults | options)

    return call


@pytest.fixture
def one_process(tiny_model: Path, tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Rank the requests of `tmp_path` in this process."""

    def call(name: str) -> list[dict[str, Any]]:
        file = tmp_path / "one.jsonl"
        options: dict[str, Any] = {"output": file, "overwrite": True, "dtype": "float32"}
        rerank_files(model_dir=tiny_model, data_path=tmp_path / name, **options)
        return results([file])

    return call


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_command_and_a_killed_worker_lose_nothing(
    rank: Callable[..., RerankResult],
    one_process: Callable[[str], list[dict[str, Any]]],
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ray = pytest.importorskip("ray")
    data = write_lines(tmp_path / "requests.jsonl", requests(1500, documents=8))
    output = tmp_path / "ranked"
    command = ["rerank", "--engine", "ray", "--model_dir", tiny_model, "--data_path", data]
    command += ["--output", output, "--dtype", "float32", "--workers", 1, "--shard_size", 50]
    program = "import sys; from rerank_plugin.cli.main import main; main(sys.argv[1:])"
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    arguments = [sys.executable, "-c", program, *map(str, command)]
    with subprocess.Popen(arguments, env=environment) as process:
        while not list(output.glob("part-*")):
            assert process.poll() is None
        process.kill()
    assert not (output / "_SUCCESS").exists()
    finished = {file: file.stat().st_mtime_ns for file in output.glob("part-*")}
    assert 0 < len(finished) < 30
    with pytest.raises(OptionError, match=r"results of another run \(--top_n was None, not 1\)"):
        rank(shard_size=50, top_n=1)

    with ThreadPoolExecutor() as pool:
        resumed = pool.submit(rank, shard_size=50)
        while not (workers := busy_workers()):
            assert not resumed.done()
        workers[0].kill()
        result = resumed.result()
    assert "a worker died while it ranked the requests from" in caplog.text
    assert result.requests == 1500 and result.resumed >= 50 * len(finished)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    check_equal(result.files, one_process("requests.jsonl"))
    names = {f"part-{number:05d}.jsonl" for number in range(30)} | {"_SUCCESS", "_task.json"}
    assert {file.name for file in output.iterdir()} == names


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_shards_of_a_model_or_data_that_changed_are_not_kept(
    rank: Callable[..., RerankResult], tmp_path: Path
) -> None:
    model, output = build_model(tmp_path / "model"), tmp_path / "ranked"
    data = tmp_path / "data"
    data.mkdir()
    first, second = (write_lines(data / f"{name}.jsonl", requests(4)) for name in "ab")
    options: dict[str, Any] = {"model_dir": model, "shard_size": 3, "workers": 1}

    def interrupt() -> None:
        (output / "_SUCCESS").unlink()
        (output / "part-00003.jsonl").unlink()

    rank("data", **options)
    interrupt()
    known = first.read_text("utf-8"), second.read_text("utf-8")
    lines = "".join(known).splitlines(keepends=True)
    for changes, problem in (
        ((known[0], known[1] * 2), "the data has changed: file 2"),
        (("".join(lines[:5]), "".join(lines[5:])), "the data has changed: file 1, file 2"),
    ):
        for file, text in zip((first, second), changes, strict=True):
            file.write_text(text, "utf-8")
        with pytest.raises(OptionError, match=problem):
            rank("data", **options)
    for file, text in zip((first, second), known, strict=True):
        file.write_text(text, "utf-8")
    assert rank("data", **options).resumed == 7

    interrupt()
    shutil.rmtree(model)
    build_model(model, seed=1)
    with pytest.raises(OptionError, match=r"\(the model has changed: model.safetensors\): run"):
        rank("data", **options)
    assert not (output / "part-00003.jsonl").exists()
    assert rank("data", **options, overwrite=True).resumed == 0


def test_a_worker_with_another_model_is_refused(tiny_model: Path) -> None:
    fingerprints = model_fingerprints(str(tiny_model))
    other = {**fingerprints, "model.safetensors": "0"}
    loading: dict[str, Any] = {"revision": None}
    ShardRanker(Ranking(str(tiny_model), fingerprints, loading, None, None)).load()
    with pytest.raises(InputError, match=r"the model has changed: model.safetensors \(or is"):
        ShardRanker(Ranking(str(tiny_model), other, loading, None, None)).load()


def busy_workers() -> list[psutil.Process]:
    """Return the processes that rank shards."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "ray::ShardRanker.rank" in " ".join(process.info["cmdline"] or [])
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_tables_in_and_out(
    rank: Callable[..., RerankResult],
    one_process: Callable[[str], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    records = requests(50)
    for name, part in (("a", records[:20]), ("b", records[20:])):
        table = pyarrow.Table.from_pylist(part)
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=8)
    result = rank("tables", shard_size=12)
    assert [file.name for file in result.files] == [f"part-{i:05d}.parquet" for i in range(5)]
    expected = one_process("tables")
    assert [line["query"] for line in expected] == [record["query"] for record in records]
    check_equal(result.files, expected)
    assert rank("tables", shard_size=12) == RerankResult(result.files, 50, resumed=50)


@pytest.mark.usefixtures("ray_cluster")
def test_the_error_of_a_worker_is_one_line(cli: Run, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "requests.jsonl", requests(4))
    options = ["rerank", "--engine", "ray", "--data_path", data, "--output", tmp_path / "ranked"]
    code, _, err = cli(*options, "--model_dir", tmp_path)
    assert code == 2
    (error,) = [line for line in err.splitlines() if line.startswith("rerank-plugin")]
    assert "config.json not found" in error
    assert not (tmp_path / "ranked").exists()


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"query": "q"}, ":5: expected one list of documents under 'documents'"),
        ({"query": "q", "documents": ["a"], "instruction": "i"}, ":5: .* takes no instruction"),
    ],
)
def test_a_bad_request_is_named(
    tiny_model: Path, tmp_path: Path, request_: dict[str, Any], problem: str
) -> None:
    data = write_lines(tmp_path / "requests.jsonl", [*requests(4), request_, *requests(4)])
    hashes = model_fingerprints(str(tiny_model))
    ranker = ShardRanker(Ranking(str(tiny_model), hashes, {"revision": None}, None, None))
    ranker.load()
    first, second, _ = find_shards([data], 4)
    ranker.rank(first, tmp_path / "part-00000.jsonl")
    with pytest.raises(InputError, match=problem):
        ranker.rank(second, tmp_path / "part-00001.jsonl")
    assert {file.name for file in tmp_path.iterdir()} == {"requests.jsonl", "part-00000.jsonl"}


def test_shards_have_all_requests(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in requests(25)]
    text = "\n".join([*lines[:7], "", "  ", *lines[7:], ""])
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    parquet.write_table(
        pyarrow.Table.from_pylist(requests(25)), tmp_path / "c.parquet", row_group_size=4
    )
    files = sorted(tmp_path.iterdir())
    expected = [request for file in files for request in read_requests(file)]
    for size in (1, 6, 7, 100):
        shards = find_shards(files, size)
        assert [shard.number for shard in shards] == list(range(len(shards)))
        assert [request for shard in shards for request in read_shard(shard)] == expected
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:3]), "utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl: the file has changed"):
        read_shard(shards[0])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", "{}", "expected .jsonl, .jsonl.gz or .parquet with --engine ray"),
        ("a.jsonl", "", "the file is empty"),
        ("a.parquet", "PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_file_without_shards(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: {problem}"):
        find_shards([tmp_path / name], 10)


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    for overwrite in (False, True):
        with (
            pytest.raises(OptionError, match="is not empty: choose another folder"),
            ShardFolder.open(tmp_path, [], "jsonl", {}, overwrite=overwrite),
        ):
            pass
    assert {file.name for file in tmp_path.iterdir()} == {"thesis.txt"}


def test_earlier_shards_are_replaced_if_they_are_complete_or_of_another_task(
    tmp_path: Path,
) -> None:
    data = write_lines(tmp_path / "requests.jsonl", requests(4))
    shards = find_shards([data], 2)

    def unfinished(name: str, *, overwrite: bool) -> int:
        output, task = tmp_path / "out", {"name": name, "data": {}, "model": {}}
        with ShardFolder.open(output, shards, "jsonl", task, overwrite=overwrite) as folder:
            count = len(folder.unfinished())
            folder.files[0].touch()
        return count

    assert unfinished("a", overwrite=False) == 2
    assert unfinished("a", overwrite=True) == 1
    with pytest.raises(OptionError, match="has results of another run"):
        unfinished("b", overwrite=False)
    assert unfinished("b", overwrite=True) == 2
    (tmp_path / "out" / "_SUCCESS").touch()
    assert unfinished("b", overwrite=False) == 1
    assert unfinished("b", overwrite=True) == 2


def test_two_commands_never_write_one_folder(tmp_path: Path) -> None:
    with (
        ShardFolder.open(tmp_path / "out", [], "jsonl", {}, overwrite=False),
        pytest.raises(BlockingIOError, match="another command is writing it"),
        ShardFolder.open(tmp_path / "out", [], "jsonl", {}, overwrite=False),
    ):
        pass


NODE = {"Alive": True, "Resources": {"CPU": 16.0}}
GPU_NODE = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}
DEAD = {"Alive": False, "Resources": {"CPU": 16.0, "GPU": 4.0}}


@pytest.mark.parametrize(
    ("nodes", "count", "device", "threads", "expected"),
    [
        ([GPU_NODE, GPU_NODE, DEAD], None, "auto", None, (8, {"num_gpus": 1})),
        ([GPU_NODE, NODE], 2, "cuda", None, (2, {"num_gpus": 1})),
        ([GPU_NODE, NODE], None, "cpu", None, (2, {"num_cpus": 16})),
        ([NODE, NODE], 3, "auto", None, (3, {"num_cpus": 10})),
        ([NODE, NODE], 1, "auto", None, (1, {"num_cpus": 16})),
        ([NODE], 40, "auto", None, (40, {"num_cpus": 1})),
        ([NODE], 2, "auto", 4, (2, {"num_cpus": 4})),
    ],
)
def test_workers_share_the_cluster(
    nodes: list[Any], count: int | None, device: str, threads: int | None, expected: object
) -> None:
    assert plan_workers(nodes, count, device, threads) == expected


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"output": None}, "--output: a folder is required by --engine ray"),
        ({"device": "cuda:1"}, "--device: cuda:1 is not allowed with --engine ray"),
        ({"engine": "local", "workers": 2}, "--workers: requires --engine ray"),
        ({"engine": "spark"}, "--engine: invalid choice: 'spark'"),
        ({"shard_size": 0}, "--shard_size: must be at least 1, not 0"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    defaults: dict[str, Any] = {"engine": "ray", "output": tmp_path / "out"}
    with pytest.raises(OptionError, match=problem):
        rerank_files(model_dir="m", data_path="d", **defaults | options)
    with pytest.raises(OptionError, match="--device: the Ray cluster has no GPU"):
        plan_workers([NODE, DEAD], None, "cuda", None)
