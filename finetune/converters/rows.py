"""Rows of tables, whatever file holds them: JSON, CSV, TSV, Parquet, or a saved data set."""

import csv
import io
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from math import isfinite, nan
from pathlib import Path

from rerank_plugin.errors import InputError
from rerank_plugin.io.file_formats import delimiter_of
from rerank_plugin.io.jsonl import (
    SUFFIXES,
    DataPath,
    input_files,
    is_unicode,
    json_type,
    read_lines,
    reading,
)
from rerank_plugin.io.paths import expanded

from ..data.reason_counts import ReasonCounts

Values = dict[str, object]

#: Kinds of files beside JSON Lines, by what their names end with.
DELIMITED = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TABLES = (*DELIMITED, ".parquet")

#: Names of files that are one JSON value, or JSON Lines by another name.
JSON = (".json", ".json.gz")

#: How many bytes of a first line are looked at.
LONGEST_HEADER = 10_000

#: What pandas calls a column that has no name.
UNNAMED = re.compile(r"Unnamed: [0-9.]+")

#: How Excel may say in a line of its own what separates the columns.
SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)

#: What a label may be in a CSV file, beside a number.
TRUTHS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Row:
    """One row: its values by column, in the order of the columns, and where it stands."""

    values: Values
    where: str
    #: What stands before the fraction of a number.
    decimal: str = "."

    def error(self, problem: str) -> InputError:
        """An error that names this row."""
        return InputError(f"{self.where}: {problem}")

    def text(self, column: str) -> str:
        """The text in a column; a blank one where it is null, as data sets have some."""
        return self._text(self.values.get(column), f"column {column!r}", column in self.values)

    def texts(self, column: str) -> list[str]:
        """The list of texts in a column; a blank one where one is null."""
        value = self.values.get(column)
        if not isinstance(value, list):
            found = json_type(value) if column in self.values else "missing"
            raise self.error(f"column {column!r} is {found}, expected a list of texts")
        return [self._text(item, f"{column}[{place}]") for place, item in enumerate(value)]

    def _text(self, value: object, name: str, there: bool = True) -> str:
        if value is None and there:
            return ""
        if not isinstance(value, str):
            found = json_type(value) if there else "missing"
            raise self.error(f"{name} is {found}, expected a text")
        return value

    def count_others(self, columns: Collection[str], counts: ReasonCounts) -> None:
        """Count what is in other columns than those that are read."""
        for name, value in self.values.items():
            if name not in columns and value is not None:
                counts.add(f"fields {name!r}, left out")

    def number(self, column: str) -> float:
        """The number in a column; in CSV it is a text."""
        return number(self, self.values.get(column), column)

    def numbers(self, column: str) -> list[float]:
        """The list of numbers in a column."""
        value = self.values.get(column)
        if not isinstance(value, list):
            found = json_type(value) if column in self.values else "missing"
            raise self.error(f"column {column!r} is {found}, expected a list of numbers")
        return [number(self, item, column) for item in value]


def number(row: Row, value: object, column: str) -> float:
    """A value as a finite number."""
    try:
        if isinstance(value, str):
            text = value.strip().lower().replace(row.decimal, ".")
            found = float(TRUTHS.get(text, text))
        elif isinstance(value, int | float | Decimal):
            found = float(value)
        else:
            raise TypeError
    except TypeError:
        problem = f"column {column!r} is {json_type(value)}, expected a finite number"
        raise row.error(problem) from None
    except (ValueError, OverflowError):
        found = nan
    if not isfinite(found):
        problem = f"column {column!r} is {str(value)[:40]!r}, expected a finite number"
        raise row.error(problem)
    return found


def is_positive(row: Row, value: float, column: str, threshold: float | None) -> bool:
    """Whether a label says that a passage is right; without a threshold from 1 on.

    Raises:
        InputError: there is no threshold, and the label is not a whole number.
    """
    if threshold is None and value != int(value):
        raise row.error(
            f"column {column!r} is {value:g}, not a whole number: give a --threshold, the lowest "
            "label of a positive"
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
        yield from saved_rows(path) if path.is_dir() else file_rows(path)


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a file of any kind, which its contents tell where its name does not."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet") or is_parquet(path):
        yield from parquet_rows(path)
    elif is_table(path):
        yield from csv_rows(path)
    elif name.endswith(".json") or first_line(path).startswith("["):
        yield from json_rows(path)
    elif name.endswith(".jsonl") or first_line(path).startswith("{"):
        for line in read_lines(path):
            yield Row(line.record(), f"{path}:{line.number}")
    else:
        known = ", ".join((*SUFFIXES, *JSON, *TABLES))
        raise InputError(f"{path}: unknown kind of file, expected one of {known}")


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False  # whoever reads it says why it cannot be read


def is_table(path: Path) -> bool:
    """Whether a file is CSV or TSV."""
    return path.name.endswith(DELIMITED) or delimiter_of(first_line(path)) is not None


def first_line(path: Path) -> str:
    """The first line that is not blank; a replacement character where it is not UTF-8."""
    line = next(read_lines(path))
    return line.raw[:LONGEST_HEADER].decode("utf-8-sig", errors="replace").strip()


def table_files(data_path: DataPath, more: Sequence[str] = ()) -> list[Path]:
    """The files that a path means; a saved data set is its folder.

    Of a folder those are taken whose names end as tables' do, or in one of `more`.
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
    found = sorted(file for file in path.iterdir() if file.name.endswith(endings))
    if not found:
        raise InputError(f"{path}: the folder holds no file that ends in {', '.join(endings)}")
    return found


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV or TSV file; both have quotes around values that need them.

    Rows without any value are none, as spreadsheets leave them at the end. A column without a name
    is left out: it has the numbers of the rows, or nothing.
    """
    with text_of(path) as file:
        delimiter = find_delimiter(path, file)
        rows = numbered(path, file, delimiter)
        columns = header(path, rows)
        for row in rows:
            values = list(row.values.values())
            if len(values) != len(columns):
                raise row.error(f"{len(values)} values for {len(columns)} columns")
            if any(str(value).strip() for value in values):
                named = {name: value for name, value in zip(columns, values, strict=True) if name}
                # Where a comma is in numbers, something else is between columns.
                yield Row(named, row.where, "," if delimiter == ";" else ".")


def column_names(path: Path) -> list[str]:
    """The column names of a CSV or TSV file."""
    with text_of(path) as file:
        rows = numbered(path, file, find_delimiter(path, file))
        return [name for name in header(path, rows) if name]


def header(path: Path, rows: Iterator[Row]) -> list[str]:
    """The column names of which the first row consists, each of them once; '' where it is none."""
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: the file is empty")
    names = [str(name).strip() for name in first.values.values()]
    names = ["" if UNNAMED.fullmatch(name) else name for name in names]
    twice = next((name for name in names if name and names.count(name) > 1), None)
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


def find_delimiter(path: Path, file: io.TextIOWrapper) -> str:
    """What is between the columns; the file is then behind a line that only says so."""
    try:
        first = file.readline(LONGEST_HEADER)
    except UnicodeDecodeError:
        raise undecodable(path) from None
    said = SEPARATOR.fullmatch(first.strip("\r\n \"'"))
    if said:
        return said[1]
    file.seek(0)
    if path.name.removesuffix(".gz").endswith(".tsv"):
        return "\t"
    return delimiter_of(first.strip("\r\n")) or ","


def numbered(path: Path, file: io.TextIOWrapper, delimiter: str) -> Iterator[Row]:
    """What a file has between delimiters, without blank lines, each row with its first line."""
    csv.field_size_limit(sys.maxsize)
    line = 1 if file.tell() == 0 else 2
    before = line - 1
    try:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        for values in reader:
            if values:
                columns: Values = {str(place): value for place, value in enumerate(values)}
                yield Row(columns, f"{path}:{line}")
            line = before + reader.line_num + 1
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
            return InputError(f"{error} (Excel: CSV UTF-8)")
    return InputError(f"{path}: not UTF-8")


def json_rows(path: Path) -> Iterator[Row]:
    """The rows of a `.json` file: JSON Lines, a list of records, or an object of columns."""
    with reading(path) as file:
        try:
            value = json.loads(file.readline())
        except (ValueError, RecursionError):
            value = None
        has_more = any(not line.isspace() for line in file)
    if value is not None and has_more:
        yield from (Row(line.record(), f"{path}:{line.number}") for line in read_lines(path))
        return
    try:
        if value is None:
            with reading(path) as file:
                value = json.load(file)
        if not is_unicode(value):
            raise ValueError("a text holds half a surrogate pair (\\ud800 to \\udfff)")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}") from None
    yield from value_rows(path, value)


def value_rows(path: Path, value: object) -> Iterator[Row]:
    """The rows of one JSON value; MS MARCO v2 is columns, each an object by row number."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield from (Row(item, f"{path}, record {place}") for place, item in enumerate(value, 1))
        return
    columns = value if isinstance(value, dict) else {}
    queries = columns.get("query")
    if isinstance(queries, str):
        yield Row(columns, f"{path}:1")
    elif isinstance(queries, dict):
        for key, query in queries.items():
            own = {name: of.get(key) for name, of in columns.items() if isinstance(of, dict)}
            yield Row({**own, "query": query}, f"{path}, row {key}")
    else:
        fields = ", ".join(map(ascii, list(columns)[:8]))
        found = f"an object of {fields}" if columns else json_type(value)
        raise InputError(
            f"{path}: expected a list of records, or an object of columns with 'query', each an "
            f"object by row; found {found}"
        )


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
    """The first of some columns that a row has, in upper or lower case."""
    there = {column.strip().lower(): column for column in row.values}
    found = next((there[name] for name in names if name in there), None)
    if found is None:
        have = ", ".join(row.values)
        raise row.error(
            f"no column for the {meant}: expected one of {', '.join(names)}, has {have}"
        )
    return found
