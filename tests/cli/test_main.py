"""The commands as a user types them: exit codes, streams, messages and files."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin import Reranker

from ..factories import Run, build_model, easy_groups, write_lines

GOOD = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}


def train_options(model: Path, data: Path, folder: Path) -> list[object]:
    return [
        "train",
        "--model_name_or_path",
        model,
        "--data_path",
        data,
        "--finetune_model_dir",
        folder,
        "--max_len",
        64,
        "--batch_size",
        4,
        "--total_epoch",
        3,
        "--lr",
        3e-3,
        "--device",
        "cpu",
    ]


def test_train_evaluate_and_rerank(
    cli: Run, tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    code, out, err = cli(
        *train_options(tiny_model, groups_file, folder), "--eval_data_path", eval_file
    )
    assert code == 0, err
    assert "ndcg@10" in out
    assert f"model: {folder}" in err

    figures = tmp_path / "metrics.json"
    code, out, err = cli(
        "evaluate",
        "--model_dir",
        folder,
        "--data_path",
        eval_file,
        "--baseline",
        tiny_model,
        "--output",
        figures,
        "--fail_if_not_better",
    )
    assert code == 0, err
    record = json.loads(figures.read_text())
    assert record["improved"]
    assert record["after"]["ndcg@10"] == record["ndcg@10"] > record["before"]["ndcg@10"]
    code, *_ = cli(
        "evaluate",
        "--model_dir",
        tiny_model,
        "--data_path",
        eval_file,
        "--baseline",
        folder,
        "--fail_if_not_better",
    )
    assert code == 3
    code, _, err = cli(
        "evaluate", "--model_dir", tiny_model, "--data_path", eval_file, "--fail_below", 1
    )
    assert code == 3
    assert "is below 1.0" in err


@pytest.mark.parametrize("spelling", ["documents", "kowndges", "passages", "texts"])
def test_rerank_prints_one_object_a_request(
    cli: Run, tiny_model: Path, tmp_path: Path, spelling: str
) -> None:
    documents = ["a dog", {"text": "a cabin"}, "a dog", ""]
    request = {"query": "狗", spelling: documents}
    one = tmp_path / "one.json"
    one.write_text(json.dumps(request, indent=2), encoding="utf-8")
    many = tmp_path / "many.json"
    many.write_text(json.dumps([request] * 3), encoding="utf-8")
    lines = write_lines(tmp_path / "lines.jsonl", [request] * 2)
    for path, count in ((one, 1), (many, 3), (lines, 2)):
        code, out, err = cli("rerank", "--model_dir", tiny_model, "--data_path", path)
        assert code == 0, err
        results = [json.loads(line) for line in out.splitlines()]
        assert len(results) == count
    (result, _) = results
    assert list(result) == ["query", "scores", "ranking"]
    assert result["query"] == "狗"
    assert len(result["scores"]) == 4
    assert result["scores"][0] == result["scores"][2]
    assert sorted(entry["index"] for entry in result["ranking"]) == [0, 1, 2, 3]
    for entry in result["ranking"]:
        assert entry["score"] == result["scores"][entry["index"]]
    code, out, _ = cli("rerank", "--model_dir", tiny_model, "--data_path", one, "--top_n", 1)
    assert len(json.loads(out)["ranking"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"query": "q"}', "expected one list of documents under 'documents'"),
        ('{"query": "q", "documents": [], "texts": []}', "found documents and texts"),
        ('{"query": " ", "documents": []}', "field 'query' is blank"),
        ('{"question": "q", "texts": []}', "field 'query' is missing, expected a text; the fields"),
        ('{"query": null, "documents": []}', "field 'query' is null"),
        ('{"query": "q", "documents": [{"body": 1}]}', "documents[0] is neither a text"),
        ('{"query": "q", "documents": "d"}', "field 'documents' is a string"),
        ('{"query": "q", \n "documents": [', "invalid JSON"),
        ("3", "expected an object or a list"),
        ("[[]]", "a.json[0]: expected an object, found a list"),
        ("", "a.json: the file is empty"),
        ("\n", "a.json: the file is empty"),
        ("query,passage\nq,p\n", "a.json:1: a table, as its first line"),
        ('{"query": "q", "pos": ["p"], "neg": []}', "; the fields are 'query', 'pos', 'neg'"),
        ('{"query": "q", "query": "p", "texts": []}', "field 'query' is given twice"),
        ('[{"query": "q", "texts": ["\\udc00"]}]', "a.json[0]: a text has an unpaired surrogate"),
        ('{"query": "q", "texts": ["t", null]}', "texts[1] is neither a text nor an object"),
        ('{"query": "q", "texts": [{"text": 1}]}', "texts[0] is neither a text nor an object"),
        ('{"query": {"text": "q"}, "texts": []}', "field 'query' is an object"),
    ],
)
def test_bad_requests_name_file_and_position(
    cli: Run, tiny_model: Path, tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    code, out, err = cli("rerank", "--model_dir", tiny_model, "--data_path", path)
    assert (code, out) == (2, "")
    assert "a.json" in err and expected in err
    assert len(err.strip().splitlines()) == 1


def bad_train_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    def file(name: str, raw: bytes) -> Path:
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    line = json.dumps(GOOD).encode() + b"\n"
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("no_query", {"pos": ["p"], "neg": ["n"]}, "field 'query' is missing"),
        ("typed", {**GOOD, "pos": "p"}, "field 'pos' is a string"),
        ("no_pos", {**GOOD, "pos": []}, "field 'pos' is empty"),
        ("blank", {**GOOD, "query": "  "}, "field 'query' is blank"),
        ("no_neg", {"query": "q", "pos": ["p"]}, "field 'neg' is missing"),
        ("empty_neg", {**GOOD, "neg": []}, "field 'neg' is empty"),
        ("both", {**GOOD, "neg": ["p"]}, "is in 'pos' too"),
    ]
    files = {
        name: (file(f"{name}.jsonl", line + json.dumps(record).encode()), f":2: {expected}")
        for name, record, expected in bad
    }
    files["both"] = (files["both"][0], ":2: neg[0] is in 'pos' too")
    files["missing"] = (tmp_path / "missing.jsonl", "no such file")
    files["empty"] = (file("empty.jsonl", b""), "the file is empty")
    files["broken"] = (file("broken.jsonl", line + b'{"query": '), ":2: invalid JSON")
    files["surrogate"] = (
        file("surrogate.jsonl", line + rb'{"query": "\ud83d", "pos": ["p"], "neg": ["n"]}'),
        ":2: a text has an unpaired surrogate",
    )
    files["long_number"] = (file("long.jsonl", line + b"1" * 5000), ":2: invalid JSON")
    files["cut_gzip"] = (file("cut.jsonl.gz", gzip.compress(line * 999)[:-20]), "cannot be read")
    files["utf8"] = (file("utf8.jsonl", line + b'{"query": "\xe4"}'), ":2: not UTF-8")
    return files


KINDS = (
    "no_query",
    "typed",
    "no_pos",
    "blank",
    "no_neg",
    "empty_neg",
    "both",
    "missing",
    "empty",
    "broken",
    "utf8",
    "surrogate",
    "long_number",
    "cut_gzip",
)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data_ends_a_run_with_one_line(
    cli: Run, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    path, expected = bad_train_files(tmp_path)[kind]
    before = {file.name for file in tmp_path.iterdir()}
    code, out, err = cli(*train_options(tiny_model, path, tmp_path / "out"))
    assert (code, out) == (2, "")
    assert expected in err and path.name in err
    assert len(err.strip().splitlines()) == 1
    assert {file.name for file in tmp_path.iterdir()} == before, "something was left behind"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        (
            "--train_group_size",
            1,
            "--train_group_size: must be at least 2, a positive and a negative, not 1",
        ),
        ("--max_len", 4096, "--max_len: 4096 is more than the model's 128 positions"),
        ("--fp16", "true", "--fp16: float16 is not supported on a CPU"),
        ("--dtype", "int8", "--dtype: int8 is for scoring, not for training; use auto"),
        ("--dtype", "int4", "--dtype: invalid choice: 'int4'"),
        ("--optim", "nonsense", "nonsense"),
        ("--optim", "schedule_free_adamw", "schedulefree"),
        ("--lr_scheduler_type", "cosine_with_min_lr", "min_lr"),
        ("--report_to", "no_such_logger", "no_such_logger"),
        ("--seed", -1, "--seed: must be from 0"),
        ("--gradient_accumulation_steps", 0, "--gradient_accumulation_steps: must be more"),
        ("--max_len", 7, "--max_len: 7 leaves no room"),
        ("--device", "gpu", "--device: unknown device 'gpu'"),
        ("--learning_rate", 1, "--lr and --learning_rate are the same option"),
        ("--frobnicate", 1, "unknown option --frobnicate"),
    ],
)
def test_bad_options_end_a_run_with_one_line(
    cli: Run,
    tiny_model: Path,
    groups_file: Path,
    tmp_path: Path,
    option: str,
    value: object,
    expected: str,
) -> None:
    code, _, err = cli(*train_options(tiny_model, groups_file, tmp_path / "out"), option, value)
    assert code == 2
    assert expected in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("rerank-plugin train: ")
    assert expected in last
    assert "Traceback" not in err
    assert {file.name for file in tmp_path.iterdir()} == {"train.jsonl"}


def test_an_output_folder_with_other_files_is_never_overwritten(
    cli: Run, tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work", encoding="utf-8")
    options = [*train_options(tiny_model, groups_file, other), "--max_steps", 1]
    for extra in ((), ("--overwrite",)):
        code, _, err = cli(*options, *extra)
        assert code == 2
        assert "is not empty and contains no trained model" in err
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]

    options = [*train_options(tiny_model, groups_file, tmp_path / "mine"), "--max_steps", 1]
    assert cli(*options)[0] == 0
    code, _, err = cli(*options)
    assert code == 2
    assert "contains a trained model" in err
    assert cli(*options, "--overwrite")[0] == 0


def test_files_beside_the_output_folder_are_kept(
    cli: Run, tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    options = [*train_options(tiny_model, groups_file, tmp_path / "mine"), "--max_steps", 1]
    work = tmp_path / "mine.run"
    work.mkdir()
    (work / "thesis.txt").write_text("years of work", encoding="utf-8")
    code, _, err = cli(*options, "--overwrite")
    assert code == 2
    assert "is not empty, and the run needs it" in err
    assert (work / "thesis.txt").is_file()

    (work / "thesis.txt").rename(work / "state.json")
    code, _, err = cli(*options)
    assert code == 2
    assert "unfinished run" in err

    backup = tmp_path / "mine.old"
    backup.mkdir()
    (backup / "weights").write_text("precious", encoding="utf-8")
    for _ in range(2):
        assert cli(*options, "--overwrite")[0] == 0
    assert [path.name for path in backup.iterdir()] == ["weights"]
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.old", "train.jsonl"}


def test_unusable_models_end_a_run_with_one_line(
    cli: Run, groups_file: Path, tmp_path: Path
) -> None:
    model = build_model(tmp_path / "model", labels=3)
    code, _, err = cli(*train_options(model, groups_file, tmp_path / "out"))
    assert code == 2
    assert "3 labels" in err
    for missing in ("tokenizer.json", "model.safetensors"):
        (model / missing).unlink()
        code, _, err = cli(*train_options(model, groups_file, tmp_path / "out"))
        assert code == 2
        assert f"{missing} not found" in err
    assert not list(tmp_path.glob("out*"))


def test_repeated_training_queries_are_a_warning(
    cli: Run, tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    options = train_options(tiny_model, groups_file, tmp_path / "out")
    code, _, err = cli(*options, "--eval_data_path", groups_file, "--max_steps", 1)
    assert code == 0
    assert "24 of 24 queries are training queries too" in err


def test_fail_if_not_better_is_exit_code_3(
    cli: Run, tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    opposite = [{**group, "pos": group["neg"], "neg": group["pos"]} for group in easy_groups(8)]
    data = write_lines(tmp_path / "opposite.jsonl", opposite)
    good = tmp_path / "good"
    assert (
        cli(*train_options(tiny_model, groups_file, good), "--eval_data_path", groups_file)[0] == 0
    )
    options = train_options(good, data, tmp_path / "out")
    code, _, err = cli(*options, "--eval_data_path", groups_file, "--fail_if_not_better")
    assert code == 3
    assert "no checkpoint beat the base model" in err
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not json.loads((tmp_path / "out" / "metrics.json").read_text())["improved"]


def test_merge(
    cli: Run, tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    options = train_options(tiny_model, groups_file, adapter)
    code, _, err = cli(*options, "--lora", "--eval_data_path", eval_file, "--max_steps", 1)
    assert code == 0, err
    settings = json.loads((adapter / "rerank.json").read_text())
    calibrated = {"normalize": "calibrated", "calibration": {"scale": 2.0, "bias": -1.0}}
    (adapter / "rerank.json").write_text(json.dumps(settings | calibrated))
    assert cli("merge", "--model_dir", adapter, "--output_dir", merged)[0] == 0
    assert Reranker(merged, device="cpu").normalize == "calibrated"
    assert (merged / "model.safetensors").is_file()
    assert json.loads((merged / "rerank.json").read_text())["max_length"] == 64
    code, _, err = cli("merge", "--model_dir", merged, "--output_dir", tmp_path / "again")
    assert code == 2
    assert "not a LoRA adapter folder: " in err
    code, _, err = cli("merge", "--model_dir", adapter, "--output_dir", merged)
    assert code == 2


def test_check_reports_everything_at_once(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    files = bad_train_files(tmp_path)
    together = tmp_path / "together.jsonl"
    contents = [
        path.read_bytes() for name, (path, _) in files.items() if name not in ("missing", "empty")
    ]
    together.write_bytes(b"\n".join(contents))
    good = write_lines(tmp_path / "good.jsonl", [GOOD, {**GOOD, "query": "other"}])
    code, out, _ = cli(
        "check",
        "--data_path",
        together,
        "--eval_data_path",
        good,
        "--model_name_or_path",
        tiny_model,
        "--max_len",
        16,
    )
    assert code == 2
    assert "24 lines, 11 usable groups" in out
    for kind in (
        "missing 'query'",
        "wrong type of 'pos'",
        "empty 'pos'",
        "blank 'query'",
        "missing 'neg'",
        "empty 'neg'",
        "a text in both 'pos' and 'neg'",
        "not UTF-8",
        "invalid JSON",
    ):
        assert re.search(rf"\d × {kind}", out), kind
    assert f"{together}:4: field 'pos' is a string" in out
    assert "1 evaluation queries are training queries" in out
    assert "(median)" in out and "--max_len 16 cuts" in out
    code, out, _ = cli("check", "--data_path", good)
    assert code == 0
    assert "characters of a pair" in out
    code, out, _ = cli("check", "--data_path", tmp_path / "no.jsonl", "--eval_data_path", tmp_path)
    assert code == 2
    assert "no such file" in out
    assert "2 × unusable file" in out
    code, out, _ = cli(
        "check", "--data_path", good, "--model_name_or_path", tiny_model, "--max_len", 999
    )
    assert code == 2
    assert "999 is more than the model's 128 positions" in out


def test_commands_and_streams() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rerank_plugin", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("--version").stdout.startswith("rerank-plugin ")
    overview = run()
    assert overview.returncode == 2
    assert "train" in overview.stdout
    unknown = run("trian")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("rerank-plugin: unknown command 'trian' (choose from train, ")
    assert unknown.stderr.endswith("did you mean train?\n")
    bad = run("rerank", "--model_dir", "./nowhere", "--data_path", "no.json")
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
    assert "no.json" in bad.stderr
    lean = subprocess.run(
        [sys.executable, "-OO", "-m", "rerank_plugin", "check", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert lean.returncode == 2 and "unset PYTHONOPTIMIZE" in lean.stderr
    for command in ("rerank", "evaluate", "merge", "check", "demo", "train"):
        shown = run(command, "--help")
        assert shown.returncode == 0
        assert "usage: rerank-plugin" in shown.stdout


def test_help_and_misuse_do_not_wait_for_the_trainer() -> None:
    code = "import sys\nfrom rerank_plugin.cli.main import main\n"
    code += "try:\n    main(['train', *sys.argv[1:]])\nexcept SystemExit:\n    pass\n"
    code += "sys.exit('transformers' in sys.modules)"
    for argument in ("--help", "--lora"):
        subprocess.run([sys.executable, "-c", code, argument], capture_output=True, check=True)


def test_compare_names_the_models_that_it_expects(cli: Run) -> None:
    code, _, err = cli("compare", "./one", "--data_path", "test.jsonl")
    assert code == 2
    assert "expected 2 models: rerank-plugin compare BASELINE MODEL_DIR" in err


def test_the_folder_of_an_output_is_created(cli: Run, groups_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "groups.jsonl"
    options = ("--from", "flagembedding", "--data_path", groups_file, "--output", output)
    assert cli("convert", *options)[0] == 0
    assert output.is_file()
    below = output / "groups.jsonl"
    code, _, err = cli("convert", *options[:-1], below)
    assert code == 2
    assert f"--output: {below} cannot be written" in err


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("rerank", "--model_dir", "./none", "--overwrite"), "output"),
        (("evaluate", "--model_dir", "./none"), "output"),
        (("check", "--eval_data_path", "other.jsonl", "--overwrite"), "fix"),
        (("convert", "--from", "flagembedding", "--overwrite"), "output"),
        (("mine", "--queries", "other.jsonl", "--overwrite"), "output"),
    ],
)
def test_no_command_overwrites_its_input(
    cli: Run, groups_file: Path, command: tuple[str, ...], name: str
) -> None:
    before = groups_file.read_bytes()
    reads = "--corpus" if command[0] == "mine" else "--data_path"
    other = groups_file.parent / "." / "." / groups_file.name
    code, _, err = cli(*command, reads, groups_file, f"--{name}", other)
    assert code == 2
    assert f"--{name}: {other} is an input of the command: choose another" in err
    assert groups_file.read_bytes() == before


@pytest.mark.parametrize("name", ["finetune_model_dir", "model_name_or_path", "data_path"])
def test_a_home_folder_that_does_not_exist_is_an_error(
    cli: Run, tiny_model: Path, groups_file: Path, tmp_path: Path, name: str
) -> None:
    folder = "~nobody-of-this-name/models"
    options = train_options(tiny_model, groups_file, tmp_path / "out")
    code, _, err = cli(*options, "--max_steps", 1, f"--{name}", folder)
    assert code == 2 and folder in err and "Traceback" not in err
    assert not Path(folder.partition("/")[0]).exists()


def test_figures_on_stdout_are_json_alone(
    tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "rerank_plugin", "evaluate", "--model_dir", str(tiny_model)]
    command += ["--baseline", str(tiny_model), "--data_path", str(groups_file)]
    with (tmp_path / "figures").open("wb") as file:
        subprocess.run([*command, "--output", "/dev/stdout"], stdout=file, check=True)
    assert json.loads((tmp_path / "figures").read_bytes())["queries"] == 24


@pytest.mark.parametrize("depth", [10, 450, 800])
def test_deep_values_are_read_alike_by_every_command(
    cli: Run, tiny_model: Path, tmp_path: Path, depth: int
) -> None:
    deep = "[" * depth + "]" * depth
    group, request = tmp_path / "g.jsonl", tmp_path / "r.jsonl"
    group.write_text(f'{{"query": "q", "pos": ["p"], "neg": ["n"], "more": {deep}}}\n')
    request.write_text(f'{{"query": "q", "documents": [{{"text": "d", "more": {deep}}}]}}\n')
    assert cli("check", "--data_path", group)[0] == 0
    assert cli("rerank", "--model_dir", tiny_model, "--data_path", request)[0] == 0
