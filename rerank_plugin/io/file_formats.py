"""Recognise files of other formats by their first bytes, and say what to do with them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

#: The first bytes of binary files, the name of their format, and the remedy.
SIGNATURES = (
    (b"PAR1", "a Parquet file", "table"),
    (b"ARROW1", "an Arrow file", "save it as Parquet or JSON Lines"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "give the folder that save_to_disk wrote"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save it as CSV UTF-8"),
    (b"\x1f\x8b", "compressed with gzip", "its name has to end in .gz, or unpack it"),
    (b"BZh", "compressed with bzip2", "unpack it"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it"),
    (b"(\xb5/\xfd", "compressed with zstd", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF", "a PDF document", "extract its text first"),
    (b"\x93NUMPY", "a NumPy array", "save it as JSON Lines"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "run `git lfs pull`"),
)

#: The number of bytes that are read to recognise a file.
HEAD = 64

#: The separators of the columns of a table, the likeliest first.
DELIMITERS = (",", ";", "\t", "|")

#: A column name, as opposed to a text.
COLUMN_NAME = re.compile(r"[\w .:#/-]{0,40}")


def foreign_format(head: bytes, path: Path) -> str | None:
    """Return the format of a file that is not UTF-8 text with a remedy, by its first bytes."""
    for signature, name, remedy in SIGNATURES:
        if head.startswith(signature):
            return f"{name}: {convert_command(path, remedy) if remedy == 'table' else remedy}"
    if len(head) > 3 and (not any(head[1:HEAD:2]) or not any(head[0:HEAD:2])) and any(head):
        return "UTF-16 text: save it as UTF-8"
    return None


def convert_command(path: Path, source: str) -> str:
    """Return the command that converts a file to groups."""
    name = shlex.quote(str(path))
    return (
        f"for training, convert it with `rerank-plugin convert --from {source} --data_path {name} "
        "--output groups.jsonl`"
    )


def first_line_problem(line: str, path: Path) -> str | None:
    """Return the format of a file whose first line is not a JSON object, with a remedy."""
    line = line.strip()
    expected = "expected one JSON object a line"
    if line.startswith("["):
        return f"a JSON array, {expected}; {convert_command(path, 'flagembedding')}"
    if line.startswith("{") and line.endswith(("{", ",", "[", ":")):
        return f"the JSON object continues on the next line, {expected}"
    if line.startswith("<"):
        return f"HTML or XML, {expected}: was the right file downloaded?"
    if delimiter_of(line):
        table = f"a table, as its first line {line[:60]!r} looks like one"
        return f"{table}, {expected}; {convert_command(path, 'table')}"
    return None


def delimiter_of(header: str) -> str | None:
    """Return the separator of column names in the first line of a table; None if it is not one."""
    fields = {delimiter: list(split_header(header, delimiter)) for delimiter in DELIMITERS}
    likely = [
        delimiter
        for delimiter in DELIMITERS
        if len(fields[delimiter]) > 1
        and any(fields[delimiter])
        and all(COLUMN_NAME.fullmatch(name) for name in fields[delimiter])
    ]
    return max(likely, key=lambda delimiter: len(fields[delimiter]), default=None)


def split_header(header: str, delimiter: str) -> Iterator[str]:
    """Return the column names of a header without quotes and white space."""
    return (name.strip().strip('"').strip() for name in header.split(delimiter))
