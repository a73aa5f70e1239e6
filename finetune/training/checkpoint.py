"""What a run needs to go on from a step: safetensors and JSON, whole or not there at all.

Transformers writes a checkpoint in place and keeps optimizer, schedule and random states as
pickles. Here a checkpoint is written beside its place, synced, renamed, and holds none.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rerank_plugin.io.atomic import sync, sync_file, write_text

PREFIX = "checkpoint-"
OPTIMIZER = "optimizer.safetensors"
RECORD = "run.json"

#: What to do when a disk that could not be written can be.
RESUMES = "start the same command again: it resumes from the last checkpoint"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run: its record is what was written last."""
    found = {
        int(path.parent.name[len(PREFIX) :]): path.parent
        for path in folder.glob(f"{PREFIX}*/{RECORD}")
        if path.parent.name[len(PREFIX) :].isdigit()
    }
    return found[max(found)] if found else None


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None]) -> None:
    """Let `write` fill a checkpoint's folder, put it in its place, and remove earlier ones."""
    target, staged = folder / f"{PREFIX}{step}", folder / f"{PREFIX}{step}.new"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    write(staged)
    sync(staged)
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    sync_file(folder)
    remove_others(target)


def remove_others(kept: Path) -> None:
    """Remove all checkpoints beside one."""
    for path in kept.parent.glob(f"{PREFIX}*"):
        if path != kept:
            shutil.rmtree(path)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what is no tensor."""
    write_text(folder / RECORD, json.dumps(record))


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_record` wrote."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def write_optimizer(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Write the tensors of an optimizer's `state_dict`; the rest comes back, as JSON."""
    tensors: dict[str, Tensor] = {}

    def rest_of(values: Mapping[Any, Any], path: str) -> dict[str, Any]:
        rest: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{path}{name}"] = value.detach().contiguous()
            elif isinstance(value, Mapping):
                rest[str(name)] = rest_of(value, f"{path}{name}.")
            else:
                rest[str(name)] = value
        return rest

    rest = rest_of(state["state"], "")
    save_file(tensors, folder / OPTIMIZER)
    return {"state": rest, "param_groups": state["param_groups"]}


def read_optimizer(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict` of which `write_optimizer` wrote the tensors."""
    state: dict[int, dict[str, Any]] = {
        int(number): dict(values) for number, values in record["state"].items()
    }
    for key, tensor in load_file(folder / OPTIMIZER).items():
        number, *path, name = key.split(".")
        values = state.setdefault(int(number), {})
        for part in path:
            values = values.setdefault(part, {})
        values[name] = tensor
    return {"state": state, "param_groups": record["param_groups"]}


def random_states() -> dict[str, Any]:
    """The states of all random number generators of this process, as JSON."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state().tolist()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Go on drawing where `random_states` was asked."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8))
