"""The versions in the JSON files that we write: of their schema, and of the package."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rerank_plugin.errors import InputError

#: The version of the schema of all files; a change that older versions cannot read raises it.
SCHEMA_VERSION = 1

PACKAGE_VERSION = version("rerank-plugin")


def with_versions(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the versions in front."""
    return {"schema_version": SCHEMA_VERSION, "rerank_plugin_version": PACKAGE_VERSION, **record}


def check_schema(record: Mapping[str, Any], path: Path) -> None:
    """Check that a file was not written by a newer version with another schema.

    Raises:
        InputError: it was.
    """
    schema = record.get("schema_version", SCHEMA_VERSION)
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        writer = record.get("rerank_plugin_version", "a newer version")
        raise InputError(
            f"{path}: unknown schema_version {schema!r}, written by rerank-plugin {writer}; "
            "upgrade rerank-plugin"
        )
