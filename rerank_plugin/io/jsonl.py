"""Read JSON Lines: the files of a path, and their lines, whose errors name file and number."""

import atexit
import errno
import glob
import gzip
import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import orjson

from rerank_plugin.errors import InputError
from rerank_plugin.inputs import instruction_text
from rerank_plugin.io.file_formats import HEAD, first_line_problem, foreign_format
from rerank_plugin.io.paths import expanded

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz")

DataPath = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Line:
    """One line of a file, undecoded, so that a wrong byte is an error of this line alone."""

    path: Path
    number: int
    raw: bytes

    @property
    def where(self) -> str:
        """Return the file and the line, as messages have them."""
        return f"{self.path}:{self.number}"

    def error(self, problem: str) -> InputError:
        """Return an error that names this line."""
        return InputError(f"{self.where}: {problem}")

    def text(self) -> str:
        """Return the line as text.

        Raises:
            InputError: not UTF-8.
        """
        try:
            # The mark may be in the middle of a file, if files were concatenated.
            return self.raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} of the line"
            raise self.error(f"not UTF-8 ({byte}): save the file as UTF-8") from None

    def quick_record(self) -> dict[str, object] | None:
        """Return the JSON object on this line by a parser that is quick but explains little.

        None if it fails: `record` decides and explains. Whole numbers beyond 64 bits become floats.
        """
        try:
            value = orjson.loads(self.raw)
        except orjson.JSONDecodeError:
            return None
        return value if isinstance(value, dict) else None

    def record(self) -> dict[str, object]:
        """Return the JSON object on this line.

        Raises:
            InputError: not UTF-8, not JSON, or not an object.
        """
        text = self.text()
        try:
            value = json.loads(text, object_pairs_hook=object_of)
            is_valid = is_unicode(value)
        except json.JSONDecodeError as error:
            raise self.error(self._not_json(text, error)) from None
        except (RecursionError, ValueError) as error:
            raise self.error(f"invalid JSON: {error}") from None
        if not isinstance(value, dict):
            problem = f"expected one JSON object a line, found {json_type(value)}"
            raise self.error(self._first_line_problem(text) or problem)
        if not is_valid:
            raise self.error("a text has an unpaired surrogate (\\ud800 to \\udfff)")
        if isinstance(value, Repeated):
            raise self.error(f"field {value.field!r} is given twice")
        return value

    def _not_json(self, text: str, error: json.JSONDecodeError) -> str:
        other = self._first_line_problem(text)
        if other:
            return other
        if "\r" in text:
            return "invalid JSON: lines end in a carriage return alone; save the file with \\n"
        return f"invalid JSON at column {error.colno}: {error.msg}"

    def _first_line_problem(self, text: str) -> str | None:
        return first_line_problem(text, self.path) if self.number == 1 else None


class Repeated(dict[str, object]):
    """A JSON object with a repeated field, one value of which is lost."""

    field: str


def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object by its fields."""
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    repeated, names = Repeated(record), [name for name, _ in pairs]
    repeated.field = next(name for name in names if names.count(name) > 1)
    return repeated


def json_type(value: object) -> str:
    """Return the JSON name of a value's type, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    name = "a number" if isinstance(value, int | float) else type(value).__name__
    return names.get(type(value), name)


def is_unicode(value: object) -> bool:
    """Return whether all texts in a JSON value can be encoded: some hold an unpaired surrogate."""
    # No recursion: values may be nested as deep as the parser reads them.
    unchecked = [value]
    while unchecked:
        node = unchecked.pop()
        if isinstance(node, str):
            try:
                node.encode()
            except UnicodeEncodeError:
                return False
        elif isinstance(node, list):
            unchecked.extend(node)
        elif isinstance(node, dict):
            unchecked.extend((*node, *node.values()))
    return True


def instruction_field(record: Mapping[str, object], where: str) -> str:
    """Return the instruction in a record; "" if it is missing, null or blank.

    Args:
        record: A request, a query or a row.
        where: The file and the line, for errors.

    Raises:
        InputError: not a string.
    """
    instruction = record.get("instruction")
    if instruction is not None and not isinstance(instruction, str):
        problem = f"field 'instruction' is {json_type(instruction)}, expected a text"
        raise InputError(f"{where}: {problem}")
    return instruction_text(instruction)


def input_files(data_path: DataPath) -> list[Path]:
    """Return the files of a path: a file, a folder's `.jsonl` and `.jsonl.gz`, or a glob.

    Raises:
        InputError: there are none.
    """
    if not isinstance(data_path, str | Path):
        return [file for path in data_path for file in input_files(path)]
    path = expanded(data_path)
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():
        return [spooled(path)]
    if path.is_dir():
        files = sorted(path.iterdir())
        files = [file for file in files if file.is_file() and file.name.endswith(SUFFIXES)]
        if not files:
            raise InputError(f"{path}: the folder has no .jsonl or .jsonl.gz file")
        return files
    files = sorted(Path(name) for name in glob.glob(pattern(path), recursive=True))  # noqa: PTH207
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(f"{data_path}: no such file, folder or glob")
    return files


def pattern(path: Path) -> str:
    """Return a path as a glob in which folders that exist are taken literally."""
    literal = next(folder for folder in path.parents if folder.is_dir())
    return str(Path(glob.escape(str(literal)), path.relative_to(literal)))


@cache
def spooled(path: Path) -> Path:
    """Return a file with the contents of a pipe, which can be read once only."""
    try:
        with path.open("rb") as pipe, (spool_folder() / path.name).open("wb") as file:
            shutil.copyfileobj(pipe, file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"no room for a copy in {gettempdir()}: set TMPDIR, or give a file"
        else:
            problem = f"cannot be read: {error.strerror}"
        raise InputError(f"{path}: {problem}") from None
    return Path(file.name)


@cache
def spool_folder() -> Path:
    """Return a folder for copies of pipes, which is removed when Python ends."""
    folder = TemporaryDirectory(prefix="rerank-plugin-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def is_input(file: Path, data_path: DataPath) -> bool:
    """Return whether a file is one of those of a path, under whatever name."""
    try:
        return file.exists() and any(file.samefile(other) for other in input_files(data_path))
    except InputError:
        return False  # whoever reads the path raises this error


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader | gzip.GzipFile]:
    """Open a plain or gzipped file to read bytes; errors inside name it."""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            problem = foreign_format(file.peek(HEAD)[:HEAD], path)
            if problem:
                raise InputError(f"{path}: {problem}")
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from None


def read_lines(data_path: DataPath) -> Iterator[Line]:
    """Yield every line that is not blank, in the order of the files.

    Raises:
        InputError: a file is missing, unreadable or empty.
    """
    for path in input_files(data_path):
        empty = True
        with reading(path) as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    empty = False
                    yield Line(path, number, raw.rstrip(b"\r\n"))
        if empty:
            raise InputError(f"{path}: the file is empty")


def fingerprint(data_path: DataPath) -> str:
    """Return a hash of all files of a path, as they are on the disk.

    Raises:
        InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in input_files(data_path):
        try:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]


class SkippedLines:
    """The bad lines that a run skipped, saved with the problem of each.

    The file is created with the first bad line: without any there is no file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        #: Whether the file cannot be written.
        self._unwritten = False
        #: The problem of the first of them.
        self.first: InputError | None = None

    def add(self, line: Line, problem: InputError) -> None:
        """Save one bad line."""
        record = {
            "file": str(line.path),
            "line": line.number,
            "problem": str(problem),
            "text": line.raw.decode("utf-8", errors="replace"),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.count else "w", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            # The line is skipped and counted all the same.
            if not self._unwritten:
                logger.warning("%s cannot be written: %s", self.path, error.strerror)
            self._unwritten = True
        self.count += 1
        self.first = self.first or problem
