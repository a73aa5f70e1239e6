"""The README and the documentation run as they are written.

Each block runs in a folder with the files that it reads. `<!-- not run: why -->` in the line above
a block leaves it out.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from os.path import expandvars
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin.cli.main import COMMANDS
from rerank_plugin.engine.cpu.int8_products import is_int8_supported
from rerank_plugin.model.settings import RerankSettings
from rerank_plugin.sample import sample_path

from .factories import build_language_model, build_model, easy_groups, write_lines
from .server.test_command import Process
from .training.test_lora import drawn_adapter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)```", re.DOTALL)

#: Options of other programs: pip, curl, docker, torchrun, vLLM, ASGI servers and the benchmarks.
FOREIGN = {
    *("config", "constraint", "editable", "help", "debug", "report_to"),
    *("nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint"),
    *("chat", "runner"),
    *("data", "header", "silent", "workers"),
    *("documents", "rows", "models", "epochs", "knowledge_distillation"),
    *("cap", "env", "publish", "read", "security", "time", "user", "volume"),
}


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def joined(self) -> str:
        """The text, with a command a line."""
        return self.text.replace("\\\n", " ")

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each rerank-plugin command."""
        commands = re.findall(r"^\$ rerank-plugin (.*)$", self.joined, re.MULTILINE)
        return [shlex.split(command, comments=True) for command in commands]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    return [
        Block(page.name, text[: match.start()].count("\n") + 1, match[2], match[3])
        for page in PAGES
        for text in [page.read_text("utf-8")]
        for match in BLOCK.finditer(text)
        if not match[1]
    ]


def page_name(page: Path) -> str:
    return page.name


PYTHON = [block for block in blocks() if block.language == "python"]
CONSOLE = [block for block in blocks() if block.language == "console" and block.commands]
#: Blocks that start a server, and send requests to it.
SERVED = [block for block in CONSOLE if block.commands[0][0] == "serve"]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the files that the blocks name."""
    folder = tmp_path_factory.mktemp("docs")
    build_language_model(folder / "Qwen" / "Qwen3-0.6B", max_position_embeddings=1024)
    base = build_model(folder / "BAAI" / "bge-reranker-base", max_position_embeddings=512)
    model = shutil.copytree(base, folder / "saved_model" / "mine")
    RerankSettings(
        calibration={"scale": 1.0, "bias": 0.0}, thresholds={"precision@0.9": 0.5}
    ).write(model)
    for seed, name in enumerate(("adapters/legal", "adapters/medical", "saved_model/lora")):
        drawn_adapter(base, folder / name, seed)
    write_groups(folder)
    write_retrieval(folder)
    return folder


def write_groups(folder: Path) -> None:
    """Write groups, and the same in the formats of other libraries."""
    groups = easy_groups(20)
    (folder / "data").mkdir()
    write_lines(folder / "data" / "train.jsonl", groups)
    write_lines(folder / "data" / "test.jsonl", easy_groups(6, start=100))
    write_lines(folder / "data" / "validation.jsonl", easy_groups(20, start=200))
    write_lines(folder / "toy_finetune_data.jsonl", groups)
    triplets = [(group["query"], group["pos"][0], group["neg"][0]) for group in groups]
    write_lines(
        folder / "triplets.jsonl",
        [{"anchor": query, "positive": pos, "negative": neg} for query, pos, neg in triplets],
    )
    passages = [{"passage_text": groups[0][key][0], "is_selected": n} for n, key in LABELS]
    record = {"query": groups[0]["query"], "passages": passages}
    (folder / "train_v2.1.json").write_text(json.dumps([record]), "utf-8")
    documents = ["Dogs are welcome.", {"text": "We sail at noon."}]
    write_lines(
        folder / "questions.jsonl", [{"query": "when does it sail", "documents": documents}]
    )


LABELS = ((1, "pos"), (0, "neg"))


def write_retrieval(folder: Path) -> None:
    """Write the sample's corpus, and its first queries with judgements and a run."""
    shutil.copy(sample_path("corpus.jsonl"), folder)
    lines = sample_path("queries.jsonl").read_text("utf-8").splitlines()[:30]
    (folder / "queries.jsonl").write_text("\n".join(lines), "utf-8")
    ids = [json.loads(line)["id"] for line in lines]
    judged = [line.split("\t") for line in sample_path("qrels.tsv").read_text("utf-8").split("\n")]
    judged = [row for row in judged if row[0] in ids]
    (folder / "qrels.tsv").write_text("".join("\t".join(row) + "\n" for row in judged), "utf-8")
    run = [f"{query} Q0 {passage} 1 9.5 bm25\n" for query, passage, _ in judged]
    for name in ("bm25.trec", "top200.trec"):
        (folder / name).write_text("".join(run), "utf-8")


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a copy of the files."""
    folder = shutil.copytree(files, tmp_path / "docs")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODEL", str(folder / "BAAI" / "bge-reranker-base"))
    return folder


def make_room(text: str) -> None:
    """Remove the results that a block writes."""
    outputs = r"(?:finetune_model_dir|output_dir|output|fix|report)(?:=\"| )([^\s\"]+)"
    splits = ["data/dev.jsonl", "data/test.jsonl"] if "--split" in text else []
    for name in [*re.findall(outputs, text), *splits]:
        path = Path(name)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def skip_int8(block: Block) -> None:
    """Skip a block that this machine cannot run."""
    if "quantize" in block.text and not is_int8_supported():
        pytest.skip("no products of bytes here")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block) -> None:
    skip_int8(block)
    for framework in re.findall(r"^from (langchain_core|llama_index\.core)", block.text, re.M):
        pytest.importorskip(framework)
    make_room(block.text)
    exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("block", [block for block in CONSOLE if block not in SERVED], ids=str)
def test_commands_run(block: Block, cli: Callable[..., tuple[int, str, str]]) -> None:
    skip_int8(block)
    make_room(block.text)
    for command in block.commands:
        code, _, stderr = cli(*map(expandvars, command))
        assert code == 0, stderr


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("block", SERVED, ids=str)
def test_requests_are_answered(block: Block) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    (command,) = block.commands
    process = Process(*command[1:], "--device", "cpu")
    try:
        address = process.url.removeprefix("http://")
        requests = re.findall(r"^\$ (curl .*)$", block.joined, re.MULTILINE)
        assert requests
        for request in requests:
            arguments = shlex.split(request.replace("localhost:8000", address))
            replied = subprocess.run(arguments, capture_output=True, text=True, check=True)
            assert "results" in json.loads(replied.stdout), replied.stdout
    finally:
        process.end()


def test_every_page_is_read() -> None:
    assert {block.page for block in PYTHON} >= {"README.md", "langchain.md", "llamaindex.md"}
    names = {command[0] for block in CONSOLE for command in block.commands}
    assert names == set(COMMANDS) - {"demo"}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_option_that_is_named_exists(page: Path) -> None:
    from rerank_plugin.finetune.commands.trainer_options import names

    known = FOREIGN | set(names())
    for entry in COMMANDS.values():
        options = getattr(import_module(entry.module), entry.options)
        for name, option in options.__dataclass_fields__.items():
            known |= {name.rstrip("_"), *option.metadata.get("aliases", ())}
    if page.name == "benchmarks.md":
        scripts = "".join(path.read_text("utf-8") for path in ROOT.glob("benchmarks/**/*.py"))
        known |= set(re.findall(r'"--([a-z][a-z0-9_]+)"', scripts))
    assert set(re.findall(r"--([a-z][a-z0-9_]+)", page.read_text("utf-8"))) <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=page_name)
def test_links_within_the_repository(page: Path) -> None:
    targets: list[Any] = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []
