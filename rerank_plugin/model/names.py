"""Short names of models for titles and legends."""

import re
from pathlib import Path

from rerank_plugin.io.paths import expanded

#: The folder of a snapshot in the hub's cache: `models--OWNER--NAME/snapshots/COMMIT`.
SNAPSHOT = re.compile(r"models--(.+)/snapshots/[0-9a-f]+/?$")

#: Names of folders that do not tell one model from another.
GENERIC = re.compile(
    r"(base|best|checkpoint(-\d+)?|final|merged|model|output|pytorch_model)$", re.I
)


def short_name(model: str | Path) -> str:
    """Return a short name of a model: its hub id, or its folder's name without the path to it.

    A folder such as `bge/model` keeps its parent's name, since `model` alone says nothing.
    """
    snapshot = SNAPSHOT.search(str(model))
    if snapshot:
        return snapshot[1].replace("--", "/")
    folder = expanded(model)
    if not (folder.is_dir() or folder.is_absolute()):
        return str(model)
    folder = folder.absolute()
    if GENERIC.match(folder.name) and folder.parent.name:
        return f"{folder.parent.name}/{folder.name}"
    return folder.name


def distinct_names(first: str | Path, second: str | Path) -> tuple[str, str]:
    """Return short names of two models that differ from each other."""
    names = short_name(first), short_name(second)
    return names if names[0] != names[1] else (f"{names[0]} (first)", f"{names[1]} (second)")
