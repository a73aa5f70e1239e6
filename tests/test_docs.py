"""What stands in the README works: its Python runs and its commands parse."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin.cli.main import COMMANDS
from rerank_plugin.cli.parser import parse_options
from rerank_plugin.model.settings import RerankSettings

from .factories import easy_groups, write_lines
from .training.test_lora import drawn_adapter

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    joined = "\n".join(blocks("console")).replace("\\\n", " ")
    return re.findall(r"^\$ (rerank-plugin .*)$", joined, re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Somewhere else: who has tried the README has its results lying in the checkout.
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    _, name, *argv = shlex.split(command)
    entry = COMMANDS[name]
    if name == "merge":
        pytest.skip("its options look at the folder")
    extras: Any = None
    if entry.extras:
        place, _, attribute = entry.extras.partition(":")
        extras = getattr(import_module(place), attribute)
    options = getattr(import_module(entry.module), entry.options)
    parse_options(options, entry.named(argv), command=name, extras=extras)


def test_there_are_commands_and_blocks() -> None:
    assert {shlex.split(command)[1] for command in commands()} >= {"train", "rerank", "evaluate"}
    assert len(blocks("python")) == 6


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(
    block: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for framework in re.findall(r"^from (langchain_core|llama_index\.core)", block, re.MULTILINE):
        pytest.importorskip(framework)
    # A folder by the name of the hub's model: the block runs as it stands.
    base = shutil.copytree(tiny_model, tmp_path / "BAAI" / "bge-reranker-base")
    for seed, name in enumerate(re.findall(r"adapters/(\w+)", block)):
        drawn_adapter(base, tmp_path / "adapters" / name, seed)
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "train.jsonl", easy_groups(20))
    if "finetune(" not in block:
        model = shutil.copytree(tiny_model, tmp_path / "saved_model" / "mine")
        RerankSettings(calibration={"scale": 1.0, "bias": 0.0}).write(model)
    monkeypatch.chdir(tmp_path)
    exec(block, {})


def test_every_option_that_is_named_exists() -> None:
    known = {"config", "help", "constraint", "editable", "report_to"}
    known |= {"rows", "seeds"}  # of benchmarks
    known |= {"nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint"}  # torchrun's
    for entry in COMMANDS.values():
        options = getattr(import_module(entry.module), entry.options)
        known |= {item.rstrip("_") for item in options.__dataclass_fields__}
    from rerank_plugin.finetune.commands.trainer_options import names

    known |= set(names())
    assert {name for name in re.findall(r"--([a-z0-9_]+)", README)} <= known
