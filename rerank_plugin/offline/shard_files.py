"""The files of shards: written beside their names, and renamed when they are complete."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from rerank_plugin.extras import require
from rerank_plugin.io.disk_errors import naming
from rerank_plugin.io.sync import sync_file

Records = Iterable[Mapping[str, Any]]

#: How the names of incomplete files end.
STAGED = ".part"


def write_shard(path: Path, records: Records) -> None:
    """Write records into a file, which appears under its name when it is complete.

    Any number of processes may write it: they write the same.
    """
    staged = path.with_name(f".{path.name}.{uuid4().hex}{STAGED}")
    write = WRITERS[path.suffix]
    try:
        with naming(staged):
            write(staged, records)
            sync_file(staged)
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_lines(path: Path, records: Records) -> None:
    """Write records as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_table(path: Path, records: Records) -> None:
    """Write records as Parquet."""
    pyarrow = require("pyarrow")
    score = pyarrow.float32()
    ranked = pyarrow.struct([("index", pyarrow.int32()), ("score", score)])
    schema = pyarrow.schema(
        [
            ("query", pyarrow.string()),
            ("scores", pyarrow.list_(score)),
            ("ranking", pyarrow.list_(ranked)),
        ]
    )
    table = pyarrow.Table.from_pylist(list(records), schema=schema)
    require("pyarrow.parquet").write_table(table, path)


#: What writes a kind of file, by its suffix.
WRITERS: dict[str, Callable[[Path, Records], None]] = {
    ".jsonl": write_lines,
    ".parquet": write_table,
}
