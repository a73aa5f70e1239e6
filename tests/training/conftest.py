"""A fixture that trains the tiny model, and the weights of what was trained."""

from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import load_file

from rerank_plugin.finetune import FinetuneConfig, FinetuneResult, finetune


class Train(Protocol):
    """Train in a folder of the test; options replace those of the fixture."""

    def __call__(self, folder: str = "out", **options: Any) -> FinetuneResult: ...


@pytest.fixture
def train(tiny_model: Path, groups_file: Path, eval_file: Path, tmp_path: Path) -> Train:
    """Train the tiny model on 24 groups, for three epochs of six steps."""

    def run(folder: str = "out", **options: Any) -> FinetuneResult:
        values: dict[str, Any] = {
            "model_name_or_path": tiny_model,
            "data_path": groups_file,
            "eval_data_path": eval_file,
            "finetune_model_dir": tmp_path / folder,
            "lr": 3e-3,
            "total_epoch": 3,
            "batch_size": 4,
            "max_len": 64,
        }
        return finetune(FinetuneConfig(**values | options))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder with one file of them."""
    (file,) = folder.glob("*.safetensors")
    return dict(load_file(file))


def same_model(folder: Path, other: Path) -> bool:
    """Return whether two folders have the same weights to the bit."""
    found, expected = weights(folder), weights(other)
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )
