"""Rows of tables in any kind of file: JSON, CSV, TSV, Parquet, or a saved data set."""

import csv
import io
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, nan
from pathlib import Path

from rerank_plugin.errors import InputError
from rerank_plugin.extras import require
from rerank_plugin.io.file_formats import delimiter_of
from rerank_plugin.io.jsonl import (
    SUFFIXES,
    DataPath,
    input_files,
    instruction_field,
    is_unicode,
    json_type,
    read_lines,
    reading,
)
from rerank_plugin.io.paths import expanded

from ..data.reason_counts import ReasonCounts

Values = dict[str, object]

#: Kinds of files beside JSON Lines, by the ends of their names.
DELIMITED = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TABLES = (*DELIMITED, ".parquet")

#: Files with one JSON value, or with JSON Lines.
JSON = (".json", ".json.gz")

#: How many bytes of a first line are read.
LONGEST_HEADER = 10_000

#: The name that pandas gives to a column without one.
UNNAMED = re.compile(r"Unnamed: [0-9.]+")

#: The line in which Excel may name the separator of columns.
SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)

#: Labels in a CSV file that are not numbers.
TRUTHS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Row:
    """One row: its values by column, in the order of the columns, and its position in the file."""

    values: Values
    where: str
    #: The decimal separator of numbers.
    decimal: str = "."

    def error(self, problem: str) -> InputError:
        """Return an error that names this row."""
        return InputError(f"{self.where}: {problem}")

    def text(self, column: str) -> str:
        """Return the text in a column; null is a blank text, as some data sets have it."""
        return self._text(self.values.get(column), f"column {column!r}", column in self.values)

    def texts(self, column: str) -> list[str]:
        """Return the list of texts in a column; null is a blank text."""
        value = self.values.get(column)
        if not isinstance(value, list):
            actual = json_type(value) if column in self.values else "missing"
            raise self.error(f"column {column!r} is {actual}, expected a list of texts")
        return [self._text(text, f"{column}[{i}]") for i, text in enumerate(value)]

    def _text(self, value: object, name: str, is_given: bool = True) -> str:
        if value is None and is_given:
            return ""
        if not isinstance(value, str):
            actual = json_type(value) if is_given else "missing"
            raise self.error(f"{name} is {actual}, expected a text")
        return value

    @property
    def instruction(self) -> str:
        """Return the instruction in the column of that name; "" without one."""
        return instruction_field(self.values, self.where)

    def count_others(self, columns: Collection[str], counts: ReasonCounts) -> None:
        """Count the values of columns that are not read; an instruction always is."""
        for name, value in self.values.items():
            if name not in (*columns, "instruction") and value is not None:
                counts.add(f"fields {name!r}, left out")

    def number(self, column: str) -> float:
        """Return the number in a column; in CSV it is a text."""
        return number(self, self.values.get(column), column)

    def numbers(self, column: str) -> list[float]:
        """Return the list of numbers in a column."""
        value = self.values.get(column)
        if not isinstance(value, list):
            actual = json_type(value) if column in self.values else "missing"
            raise self.error(f"column {column!r} is {actual}, expected a list of numbers")
        return [number(self, element, column) for element in value]


def number(row: Row, value: object, column: str) -> float:
    """Return a value as a finite number."""
    try:
        if isinstance(value, str):
            text = value.strip().lower().replace(row.decimal, ".")
            result = float(TRUTHS.get(text, text))
        elif isinstance(value, int | float | Decimal):
            result = float(value)
        else:
            raise TypeError
    except TypeError:
        problem = f"column {column!r} is {json_type(value)}, expected a finite number"
        raise row.error(problem) from None
    except (ValueError, OverflowError):
        result = nan
    if not isfinite(result):
        problem = f"column {column!r} is {str(value)[:40]!r}, expected a finite number"
        raise row.error(problem)
    return result


def positive_label(row: Row, value: float, column: str, threshold: float | None) -> float | None:
    """Return the label of a positive: from the threshold on, or from 1 without one; or None.

    Raises:
        InputError: there is no threshold, and the label is not a whole number.
    """
    if threshold is None and value != int(value):
        raise row.error(
            f"column {column!r} is {value:g}, not a whole number: give a --threshold, the lowest "
            "label of a positive"
        )
    return value if value >= (1 if threshold is None else threshold) else None


def read_rows(data_path: DataPath) -> Iterator[Row]:
    """Yield the rows of files, folders or globs, one at a time.

    A folder is a data set saved by `datasets`, or has its files read one after the other. CSV and
    TSV have a first line of column names.

    Raises:
        InputError: a file is missing, unreadable or of another kind.
    """
    for path in table_files(data_path):
        yield from saved_rows(path) if path.is_dir() else file_rows(path)


def file_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, of the kind that its name or else its contents show."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet") or is_parquet(path):
        yield from parquet_rows(path)
    elif is_table(path):
        yield from csv_rows(path)
    elif name.endswith(".json") or first_line(path).startswith("["):
        yield from json_rows(path)
    elif name.endswith(".jsonl") or first_line(path).startswith("{"):
        for line in read_lines(path):
            yield Row(line.record(), line.where)
    else:
        known = ", ".join((*SUFFIXES, *JSON, *TABLES))
        raise InputError(f"{path}: unknown kind of file, expected one of {known}")


def is_parquet(path: Path) -> bool:
    """Return whether a file begins like Parquet."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False  # reading it raises the error


def is_table(path: Path) -> bool:
    """Return whether a file is CSV or TSV."""
    return path.name.endswith(DELIMITED) or delimiter_of(first_line(path)) is not None


def first_line(path: Path) -> str:
    """Return the first line that is not blank; bytes that are not UTF-8 are replaced."""
    line = next(read_lines(path))
    return line.raw[:LONGEST_HEADER].decode("utf-8-sig", errors="replace").strip()


def table_files(data_path: DataPath, more: Sequence[str] = ()) -> list[Path]:
    """Return the files that a path means; a saved data set is its folder.

    Of a folder these are the files whose names end like those of tables, or in one of `more`.
    """
    if not isinstance(data_path, str | Path):
        return [file for path in data_path for file in table_files(path, more)]
    path = expanded(data_path)
    if (path / "dataset_dict.json").is_file():
        raise InputError(
            f"{path}: several data sets are saved there: give one, as {path / 'train'}"
        )
    if not path.is_dir() or (path / "dataset_info.json").is_file():
        return input_files(path) if not path.is_dir() else [path]
    endings = (*SUFFIXES, *TABLES, *more)
    files = sorted(file for file in path.iterdir() if file.name.endswith(endings))
    if not files:
        raise InputError(f"{path}: the folder has no file that ends in {', '.join(endings)}")
    return files


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file; both have quotes around values that need them.

    Rows without any value are left out, as spreadsheets append some. Columns without a name are
    left out too: they have the numbers of the rows, or nothing.
    """
    with open_text(path) as file:
        delimiter = find_delimiter(path, file)
        rows = numbered(path, file, delimiter)
        columns = header(path, rows)
        for row in rows:
            values = list(row.values.values())
            if len(values) != len(columns):
                raise row.error(f"{len(values)} values for {len(columns)} columns")
            if any(str(value).strip() for value in values):
                named = {name: value for name, value in zip(columns, values, strict=True) if name}
                # Where columns are separated by semicolons, numbers have a decimal comma.
                yield Row(named, row.where, "," if delimiter == ";" else ".")


def column_names(path: Path) -> list[str]:
    """Return the column names of a CSV or TSV file."""
    with open_text(path) as file:
        rows = numbered(path, file, find_delimiter(path, file))
        return [name for name in header(path, rows) if name]


def header(path: Path, rows: Iterator[Row]) -> list[str]:
    """Return the column names in the first row, each once; '' where there is none."""
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: the file is empty")
    names = [str(name).strip() for name in first.values.values()]
    names = ["" if UNNAMED.fullmatch(name) else name for name in names]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise first.error(f"two columns are called {twice!r}: rename or remove one")
    return names


def plain_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a TSV file without column names and quotes; its columns are `0`, `1` …."""
    for line in read_lines(path):
        columns: Values = {str(i): text for i, text in enumerate(line.text().split("\t"))}
        yield Row(columns, line.where)


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open a plain or gzipped file for reading text."""
    with reading(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        yield file


def find_delimiter(path: Path, file: io.TextIOWrapper) -> str:
    """Return the separator of columns, and move the file after a line that only names it."""
    try:
        first = file.readline(LONGEST_HEADER)
    except UnicodeDecodeError:
        raise undecodable(path) from None
    named = SEPARATOR.fullmatch(first.strip("\r\n \"'"))
    if named:
        return named[1]
    file.seek(0)
    if path.name.removesuffix(".gz").endswith(".tsv"):
        return "\t"
    return delimiter_of(first.strip("\r\n")) or ","


def numbered(path: Path, file: io.TextIOWrapper, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a delimited file without blank lines, each with its first line number."""
    csv.field_size_limit(sys.maxsize)
    line = 1 if file.tell() == 0 else 2
    before = line - 1
    try:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        for values in reader:
            if values:
                columns: Values = {str(i): value for i, value in enumerate(values)}
                yield Row(columns, f"{path}:{line}")
            line = before + reader.line_num + 1
    except UnicodeDecodeError:
        raise undecodable(path) from None
    except csv.Error as error:
        unclosed = "a quote in this row is never closed"
        reason = unclosed if str(error) == "unexpected end of data" else str(error)
        raise InputError(f"{path}:{line}: cannot be read: {reason}") from None


def undecodable(path: Path) -> InputError:
    """Return the error of a file that is not UTF-8, with the first line that is not."""
    for line in read_lines(path):
        try:
            line.text()
        except InputError as error:
            return InputError(f"{error} (Excel: CSV UTF-8)")
    return InputError(f"{path}: not UTF-8")


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a `.json` file: JSON Lines, a list of records, or an object of columns."""
    with reading(path) as file:
        try:
            value = json.loads(file.readline())
        except (ValueError, RecursionError):
            value = None
        has_more = any(not line.isspace() for line in file)
    if value is not None and has_more:
        yield from (Row(line.record(), line.where) for line in read_lines(path))
        return
    try:
        if value is None:
            with reading(path) as file:
                value = json.load(file)
        if not is_unicode(value):
            raise ValueError("a text has an unpaired surrogate (\\ud800 to \\udfff)")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: invalid JSON: {error}") from None
    yield from value_rows(path, value)


def value_rows(path: Path, value: object) -> Iterator[Row]:
    """Yield the rows of one JSON value; MS MARCO v2 has columns, each an object by row number."""
    if isinstance(value, list) and value and all(isinstance(record, dict) for record in value):
        yield from (Row(record, f"{path}, record {i}") for i, record in enumerate(value, 1))
        return
    columns = value if isinstance(value, dict) else {}
    queries = columns.get("query")
    if isinstance(queries, str):
        yield Row(columns, f"{path}:1")
    elif isinstance(queries, dict):
        for key, query in queries.items():
            mappings = {name: rows for name, rows in columns.items() if isinstance(rows, dict)}
            values = {name: rows.get(key) for name, rows in mappings.items()}
            yield Row({**values, "query": query}, f"{path}, row {key}")
    else:
        fields = ", ".join(map(ascii, list(columns)[:8]))
        actual = f"an object of {fields}" if columns else json_type(value)
        raise InputError(
            f"{path}: expected a list of records, or an object of columns with 'query', each an "
            f"object by row; found {actual}"
        )


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file, some thousands in memory at a time."""
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def saved_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a folder that `datasets.Dataset.save_to_disk` wrote."""
    datasets = require("datasets")
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails anywhere in datasets or pyarrow
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    for number, values in enumerate(rows, 1):
        yield Row(dict(values), f"{path}, row {number}")


def first_of(row: Row, names: Sequence[str], meant: str) -> str:
    """Return the first of some columns that a row has, in upper or lower case."""
    columns = {column.strip().lower(): column for column in row.values}
    column = next((columns[name] for name in names if name in columns), None)
    if column is None:
        raise row.error(
            f"no column for the {meant}: expected one of {', '.join(names)}, found "
            f"{', '.join(row.values)}"
        )
    return column
