"""Read reranking requests from Parquet: a query and a list of documents in each row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerank_plugin.errors import InputError
from rerank_plugin.extras import require

#: How the name of a table ends.
TABLE = ".parquet"


def open_table(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        InputError: it is not one, or it is damaged.
    """
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as Parquet: {reason}") from None


def row_count(path: Path) -> int:
    """Return the number of rows of a Parquet file; raises as `open_table`."""
    with open_table(path) as table:
        return int(table.metadata.num_rows)


def read_rows(
    path: Path, columns: set[str], start: int = 0, count: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows with their indices, from the row groups that have them.

    Args:
        path: The Parquet file.
        columns: The columns that are read, where the file has them.
        start: The index of the first row.
        count: The number of rows; None for the rest.

    Raises:
        InputError: the file cannot be read.
    """
    with open_table(path) as table:
        names = [name for name in table.schema_arrow.names if name in columns]
        end = table.metadata.num_rows if count is None else start + count
        first = 0
        for group in range(table.metadata.num_row_groups):
            after = first + table.metadata.row_group(group).num_rows
            if first < end and start < after:
                rows = table.read_row_group(group, columns=names)
                lowest = max(start, first)
                part = rows.slice(lowest - first, min(end, after) - lowest)
                for batch in part.to_batches(max_chunksize=1_000):
                    for row in batch.to_pylist():
                        yield lowest, row
                        lowest += 1
            first = after
