"""Read the files of a hub id or a model folder."""

import json
from pathlib import Path
from typing import Any

from rerank_plugin.errors import InputError

#: The folders of modules, as sentence-transformers names them.
MODULE_FOLDERS = "[0-9]*_*"

#: The suffixes of a model's files; its folder may have others that come and go.
MODEL_SUFFIXES = (".jinja", ".json", ".safetensors", ".model", ".txt", ".py")


def stored_files(folder: Path) -> list[Path]:
    """Return the files in a model folder and in those of its modules, in a fixed order."""
    paths = [*folder.glob("*"), *folder.glob(f"{MODULE_FOLDERS}/*")]
    return sorted(path for path in paths if path.is_file())


def model_files(folder: Path) -> list[Path]:
    """Return those stored files that a model may be loaded from."""
    return [file for file in stored_files(folder) if file.suffix in MODEL_SUFFIXES]


def model_file(
    source: str, name: str, revision: str | None, *, local_files_only: bool = False
) -> Path | None:
    """Return the path of a model's file; None if there is no such file.

    Args:
        source: A hub id or a folder.
        name: The name of the file.
        revision: Branch, tag or commit of a hub id.
        local_files_only: Download nothing.
    """
    # Importing it takes a second, which the files of a folder do not need.
    from transformers.utils.hub import cached_file

    path = cached_file(
        source,
        name,
        revision=revision,
        local_files_only=local_files_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def model_json(source: str, name: str, revision: str | None) -> Any:
    """Return what a JSON file of a model holds; None if there is no such file."""
    path = model_file(source, name, revision)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{source}: {name} is not JSON: {error}") from None


def model_object(source: str, name: str, revision: str | None) -> dict[str, Any]:
    """Return a JSON file of a model as an object; an empty one if there is no such file."""
    values = model_json(source, name, revision) or {}
    if not isinstance(values, dict):
        raise InputError(f"{source}: {name} is not a JSON object")
    return values
