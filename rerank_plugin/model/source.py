"""The source and options of a loaded model, and its identity: equal for equal models."""

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugin.arguments import (
    adapter_folders,
    device_name,
    dtype_name,
    flag,
    model_name,
    text_or_none,
    whole_number,
)
from rerank_plugin.errors import InputError
from rerank_plugin.inputs import instruction_text
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.files import model_files
from rerank_plugin.model.settings import ADAPTER, read_object

#: The options in a model's identity; the token budget and the threads change no score.
IDENTIFYING = (
    "device",
    "dtype",
    "max_length",
    "normalize",
    "long_documents",
    "instruction",
    "revision",
    "trust_remote_code",
)

if TYPE_CHECKING:
    import torch


def loading_options(
    *,
    adapter: str | Path | None,
    adapters: Mapping[str, str | Path] | None,
    device: "str | int | torch.device",
    dtype: "str | torch.dtype",
    max_length: int | None,
    normalize: str | None,
    long_documents: str,
    instruction: str | None,
    token_budget: int | None,
    threads: int | None,
    revision: str | None,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """Check the options of a `Reranker` and return them as plain values, with absolute paths.

    Raises:
        InputError: naming the option that is not valid.
    """
    adapter = None if adapter is None else absolute(model_name("adapter", adapter))
    folders = adapter_folders(adapters)
    if adapter is not None and folders:
        raise InputError("adapter: not allowed with adapters, of which each call chooses one")
    return {
        "adapter": adapter,
        "adapters": folders and {name: absolute(path) for name, path in folders.items()},
        "device": device_name(device),
        "dtype": dtype_name(dtype),
        "max_length": whole_number("max_length", max_length),
        "normalize": normalize,
        "long_documents": long_documents,
        "instruction": instruction_text(instruction) or None,
        "token_budget": whole_number("token_budget", token_budget),
        "threads": whole_number("threads", threads),
        "revision": text_or_none("revision", revision),
        "trust_remote_code": flag("trust_remote_code", trust_remote_code),
    }


def absolute(name: str) -> str:
    """Return the absolute path of a folder, or a hub id as it is."""
    folder = expanded(name)
    return str(folder.resolve()) if folder.is_dir() else name


def identity(model: str, options: Mapping[str, Any]) -> Hashable:
    """Return a value that is equal for equal loaded models.

    A folder that was replaced, or has a file that was, is another model.
    """
    adapters = dict(sorted((options["adapters"] or {}).items()))
    folders = [model, *filter(None, [options["adapter"]]), *adapters.values()]
    chosen = {name: options[name] for name in IDENTIFYING}
    return (*map(folder_state, folders), tuple(adapters), json.dumps(chosen, sort_keys=True))


def folder_state(name: str) -> Hashable:
    """Return the state of the files in a folder now, with those of an adapter's base."""
    base = adapter_base(name)
    return (file_states(name), file_states(base)) if base else file_states(name)


def file_states(name: str) -> Hashable:
    """Return a folder's path and the state of the files in it now, or a hub id."""
    folder = expanded(name)
    if not folder.is_dir():
        return name
    stats = [(str(file.relative_to(folder)), file.stat()) for file in model_files(folder)]
    return str(folder.resolve()), tuple(
        (name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats
    )


def adapter_base(name: str) -> str | None:
    """Return the base that an adapter folder names, if it can be read."""
    try:
        base = read_object(expanded(name) / ADAPTER).get("base_model_name_or_path")
    except InputError:
        return None
    return base if isinstance(base, str) else None
