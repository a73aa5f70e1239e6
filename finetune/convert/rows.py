"""Rows of tables, whatever file holds them: JSON Lines, CSV, TSV, Parquet, or a saved data set."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from rerank_plugin.errors import InputError
from rerank_plugin.jsonl import (
    SUFFIXES,
    DataPath,
    input_files,
    json_type,
    read_lines,
    reading,
)

Values = dict[str, object]

#: Kinds of files beside JSON Lines, by what their names end with.
DELIMITED = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TABLES = (*DELIMITED, ".parquet")

#: What a label may be in a CSV file, beside a number.
TRUTHS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Row:
    """One row: its values by column, in the order of the columns, and where it stands."""

    values: Values
    where: str

    def error(self, problem: str) -> InputError:
        """An error that names this row."""
        return InputError(f"{self.where}: {problem}")

    def text(self, column: str) -> str:
        """The text in a column, not blank."""
        value = self.values.get(column)
        if not isinstance(value, str):
            raise self.error(f"column {column!r} is {json_type(value)}, expected a text")
        if not value.strip():
            raise self.error(f"column {column!r} is blank, expected a text")
        return value

    def texts(self, column: str) -> list[str]:
        """The list of texts in a column."""
        value = self.values.get(column)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"column {column!r} is no list of texts")
        return [str(item) for item in value]

    def count_others(self, columns: Collection[str], notes: "Counter[str]") -> None:
        """Count what is in other columns than those that are read."""
        for name, value in self.values.items():
            if name not in columns and value is not None:
                notes[f"fields {name!r}, left out"] += 1

    def number(self, column: str) -> float:
        """The number in a column; in CSV it is a text."""
        return number(self, self.values.get(column), column)

    def numbers(self, column: str) -> list[float]:
        """The list of numbers in a column."""
        value = self.values.get(column)
        if not isinstance(value, list):
            raise self.error(f"column {column!r} is no list of numbers")
        return [number(self, item, column) for item in value]


def number(row: Row, value: object, column: str) -> float:
    """A value as a finite number."""
    try:
        if not isinstance(value, str | int | float | Decimal):
            raise ValueError
        if isinstance(value, str) and value.strip().lower() in TRUTHS:
            return TRUTHS[value.strip().lower()]
        found = float(value)
        if not isfinite(found):
            raise ValueError
        return found
    except (ValueError, OverflowError):
        shown = json_type(value) if isinstance(value, list | dict | None) else repr(str(value))
        raise row.error(f"column {column!r} is {shown}, expected a finite number") from None


def is_right(row: Row, value: float, column: str, threshold: float | None) -> bool:
    """Whether a label says that a passage is right; without a threshold from 1 on.

    Raises:
        InputError: it is no whole number, of which only a threshold says what it means.
    """
    if threshold is None and value != int(value):
        raise row.error(
            f"column {column!r} is {value:g}, no whole number: say with --threshold from which on "
            "a passage is right"
        )
    return value >= (1 if threshold is None else threshold)


def read_rows(data_path: DataPath) -> Iterator[Row]:
    """The rows of files, folders or globs, one at a time.

    A folder is a data set saved by `datasets`, or has its files read one after the other. CSV and
    TSV have a first line of column names.

    Raises:
        InputError: a file is missing, unreadable or of another kind.
    """
    for path in table_files(data_path):
        if path.is_dir():
            yield from saved_rows(path)
        elif path.name.endswith(SUFFIXES):
            for line in read_lines(path):
                yield Row(line.record(), f"{path}:{line.number}")
        elif path.suffix == ".parquet":
            yield from parquet_rows(path)
        elif path.name.endswith(DELIMITED):
            yield from csv_rows(path)
        else:
            known = ", ".join((*SUFFIXES, *TABLES))
            raise InputError(f"{path}: unknown kind of file, expected one of {known}")


def table_files(data_path: DataPath, more: Sequence[str] = ()) -> list[Path]:
    """The files that a path means; a saved data set is its folder.

    Of a folder those are taken whose names end as tables' do, or in one of `more`.
    """
    if not isinstance(data_path, str | Path):
        return [file for path in data_path for file in table_files(path, more)]
    path = Path(data_path).expanduser()
    if (path / "dataset_dict.json").is_file():
        raise InputError(
            f"{path}: several data sets are saved there: give one, as {path / 'train'}"
        )
    if not path.is_dir() or (path / "dataset_info.json").is_file():
        return input_files(path) if not path.is_dir() else [path]
    endings = (*SUFFIXES, *TABLES, *more)
    found = sorted(file for file in path.iterdir() if file.name.endswith(endings))
    if not found:
        raise InputError(f"{path}: the folder holds no file that ends in {', '.join(endings)}")
    return found


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV or TSV file; both have quotes around values that need them."""
    with text_of(path) as file:
        rows = numbered(path, csv_reader(path, file))
        columns = header(path, rows)
        for values in rows:
            if len(values.values) != len(columns):
                raise values.error(f"{len(values.values)} values for {len(columns)} columns")
            yield Row(dict(zip(columns, values.values.values(), strict=True)), values.where)


def column_names(path: Path) -> list[str]:
    """The column names of a CSV or TSV file."""
    with text_of(path) as file:
        return header(path, numbered(path, csv_reader(path, file)))


def header(path: Path, rows: Iterator[Row]) -> list[str]:
    """The column names of which the first row consists, each of them once."""
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: the file is empty")
    names = [str(name) for name in first.values.values()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise first.error(f"two columns are called {twice!r}: rename one, or take it out")
    return names


def plain_rows(path: Path) -> Iterator[Row]:
    """The rows of a TSV file without column names and quotes; its columns are `0`, `1` …."""
    for line in read_lines(path):
        columns: Values = {str(place): text for place, text in enumerate(line.text().split("\t"))}
        yield Row(columns, f"{path}:{line.number}")


@contextmanager
def text_of(path: Path) -> Iterator[io.TextIOWrapper]:
    """A plain or gzipped file, open for reading text."""
    with reading(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        yield file


def csv_reader(path: Path, file: io.TextIOWrapper) -> "csv._reader":  # type: ignore[name-defined]
    """A reader for the kind of file that a name says."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    return csv.reader(file, delimiter=delimiter, strict=True)


def numbered(path: Path, reader: "csv._reader") -> Iterator[Row]:  # type: ignore[name-defined]
    """What a reader gives, without blank lines, each row with the place of its first line."""
    line = 1
    try:
        for values in reader:
            if values:
                columns = {str(place): value for place, value in enumerate(values)}
                yield Row(columns, f"{path}:{line}")
            line = reader.line_num + 1
    except UnicodeDecodeError:
        raise undecodable(path) from None
    except csv.Error as error:
        unclosed = "a quote in this row is never closed"
        reason = unclosed if str(error) == "unexpected end of data" else str(error)
        raise InputError(f"{path}:{line}: cannot be read: {reason}") from None


def undecodable(path: Path) -> InputError:
    """What is said of a file that is not UTF-8, with the first line that is not."""
    for line in read_lines(path):
        try:
            line.text()
        except InputError as error:
            return InputError(f"{error}: save it as UTF-8")
    return InputError(f"{path}: not UTF-8")


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, some thousands in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            place = 0
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    place += 1
                    yield Row(values, f"{path}, row {place}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def saved_rows(path: Path) -> Iterator[Row]:
    """The rows of a folder that `datasets.Dataset.save_to_disk` wrote."""
    if find_spec("datasets") is None:
        raise InputError(
            f"{path}: the datasets library reads it and is missing: pip install datasets"
        )
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for place, values in enumerate(rows, 1):
        yield Row(dict(values), f"{path}, row {place}")


def first_of(row: Row, names: Sequence[str], meant: str) -> str:
    """The first of some columns that a row has."""
    found = next((name for name in names if name in row.values), None)
    if found is None:
        have = ", ".join(row.values)
        raise row.error(
            f"no column for the {meant}: expected one of {', '.join(names)}, has {have}"
        )
    return found
