"""Hashes of a model's weights and of its files: equal for copies, on other machines too."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import extract_commit_hash

from rerank_plugin.io.jsonl import fingerprint
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.files import model_file, model_files
from rerank_plugin.model.head_modules import MODULE_LIST
from rerank_plugin.model.loaded import one_line_errors
from rerank_plugin.model.source import adapter_base

#: The number of values of each weight in a hash, which training changes all over.
VALUES_A_WEIGHT = 64


def weights_fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of the names, the shapes and the first values of weights.

    Args:
        weights: The weights by their names, in any fixed order.
    """
    digest = hashlib.sha256()
    for name, weight in weights:
        values = weight.flatten()[:VALUES_A_WEIGHT].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


def model_fingerprints(name: str, revision: str | None = None) -> dict[str, str]:
    """Return a hash of each file of a model and of an adapter's base; no weights are loaded.

    Args:
        name: A hub id, whose commit is returned, a folder or an adapter folder.
        revision: Branch, tag or commit of a hub id.

    Raises:
        InputError: a file or the hub cannot be read.
    """
    folder = expanded(name)
    if not folder.is_dir():
        return {name: hub_commit(name, revision)}
    files = {str(file.relative_to(folder)): file for file in model_files(folder)}
    hashes = {name: file_fingerprint(file) for name, file in files.items()}
    base = adapter_base(name)
    if base:
        hashes |= {f"{base}: {name}": value for name, value in model_fingerprints(base).items()}
    return hashes


def hub_commit(name: str, revision: str | None) -> str:
    """Return the commit of a hub id; "" if there is no such model, which loading it says."""
    with one_line_errors(name):
        for file in ("config.json", MODULE_LIST):
            path = model_file(name, file, revision)
            if path is not None:
                return extract_commit_hash(str(path), None) or ""
    return ""


def file_fingerprint(file: Path) -> str:
    """Return a hash of a file; of weights, as `weights_fingerprint`."""
    if file.suffix != ".safetensors":
        return fingerprint(file)
    with one_line_errors(str(file)):
        return weights_fingerprint(stored_weights(file))


def stored_weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights in a file, whose values are read once they are used."""
    with safe_open(file, framework="pt") as weights:
        for name in sorted(weights.keys()):
            yield name, weights.get_tensor(name)
