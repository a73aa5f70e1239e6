"""What a model was loaded from and how: two loaded models of one identity are the same."""

import json
from collections.abc import Hashable, Mapping
from typing import Any

from rerank_plugin.errors import InputError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.settings import ADAPTER, read_object

#: The options that decide how it is loaded; how much is scored at once changes no score.
LOADING = (
    "device",
    "dtype",
    "max_length",
    "normalize",
    "long_documents",
    "revision",
    "trust_remote_code",
)

#: The kinds of files that make a model: others may come and go in its folder.
SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".py")


def absolute(name: str) -> str:
    """Return the absolute path of a folder, or a hub id as it is."""
    folder = expanded(name)
    return str(folder.resolve()) if folder.is_dir() else name


def identity(model: str, options: Mapping[str, Any]) -> Hashable:
    """Return what makes a loaded model one of a kind.

    A folder that was replaced, or in which a file was, is another one.
    """
    adapters = dict(sorted((options["adapters"] or {}).items()))
    folders = [model, *filter(None, [options["adapter"]]), *adapters.values()]
    chosen = {name: options[name] for name in LOADING}
    return (*map(state, folders), tuple(adapters), json.dumps(chosen, sort_keys=True))


def state(name: str) -> Hashable:
    """Return the files in a folder as they are now, with those of an adapter's base."""
    base = adapter_base(name)
    return (files(name), files(base)) if base else files(name)


def files(name: str) -> Hashable:
    """Return a folder's path and the files in it as they are now, or a hub id."""
    folder = expanded(name)
    if not folder.is_dir():
        return name
    found = [file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file()]
    stats = sorted((file.name, file.stat()) for file in found)
    return str(folder.resolve()), tuple(
        (name, item.st_ino, item.st_mtime_ns, item.st_size) for name, item in stats
    )


def adapter_base(name: str) -> str | None:
    """Return the base that an adapter folder names, if it is one that can be read."""
    try:
        base = read_object(expanded(name) / ADAPTER).get("base_model_name_or_path")
    except InputError:
        return None
    return base if isinstance(base, str) else None
