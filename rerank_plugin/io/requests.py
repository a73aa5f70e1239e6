"""Read reranking requests: queries with their documents, as JSON, JSON Lines or Parquet."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import InputError
from rerank_plugin.inputs import DocumentsRequest, RetrievalScores, checked_scores
from rerank_plugin.io.file_formats import first_line_problem
from rerank_plugin.io.jsonl import (
    SUFFIXES,
    DataPath,
    Repeated,
    input_files,
    instruction_field,
    is_unicode,
    json_type,
    object_of,
    read_lines,
    reading,
)
from rerank_plugin.io.paths import expanded
from rerank_plugin.io.request_tables import TABLE, read_rows

#: The fields that may have the documents; `kowndges` is that of older scripts.
SPELLINGS = ("documents", "kowndges", "passages", "texts")

#: The field with the scores of the retriever.
SCORES = "retrieval_scores"


@dataclass(frozen=True)
class RerankRequest:
    """A query, the documents to rank for it, and an instruction, "" for the default."""

    query: str
    documents: list[str | dict[str, object]]
    instruction: str
    #: The file and the line, for errors.
    where: str
    #: The scores of the retriever; None without them.
    retrieval_scores: RetrievalScores | None = None

    @property
    def to_rank(self) -> DocumentsRequest[str | dict[str, object]]:
        """The request as `Reranker.rank_stream` takes it."""
        return self.query, self.documents, self.instruction, self.retrieval_scores


def request_files(data_path: DataPath) -> list[Path]:
    """Return the files of a path: as `input_files`, and a folder's tables if it has no other.

    Raises:
        InputError: there are none.
    """
    if not isinstance(data_path, str | Path):
        return [file for path in data_path for file in request_files(path)]
    folder = expanded(data_path)
    if folder.is_dir() and not any(file.name.endswith(SUFFIXES) for file in folder.iterdir()):
        tables = [file for file in sorted(folder.glob(f"*{TABLE}")) if file.is_file()]
        if not tables:
            problem = f"the folder has no .jsonl, .jsonl.gz or {TABLE} file"
            raise InputError(f"{folder}: {problem}")
        return tables
    return input_files(data_path)


def read_requests(data_path: DataPath) -> Iterator[RerankRequest]:
    """Yield the requests of JSON Lines, Parquet, or a `.json` file (one object or a list).

    Raises:
        InputError: naming the file and the line, or the index of the row or in the list.
    """
    for path in request_files(data_path):
        if path.name.endswith(SUFFIXES):
            for line in read_lines(path):
                yield parse_request(line.record(), line.where)
        elif path.name.endswith(TABLE):
            yield from read_table_requests(path)
        else:
            yield from read_json_requests(path)


def read_table_requests(
    path: Path, start: int = 0, count: int | None = None
) -> Iterator[RerankRequest]:
    """Yield the requests in the rows of a Parquet file.

    Args:
        path: The file.
        start: The index of the first row.
        count: The number of rows; None for the rest.
    """
    for index, row in read_rows(path, {"query", "instruction", SCORES, *SPELLINGS}, start, count):
        yield parse_request(row, f"{path}[{index}]")


def read_json_requests(path: Path) -> Iterator[RerankRequest]:
    """Yield the requests of one JSON file, which may be JSON Lines under another name."""
    with reading(path) as file:
        raw = file.read()
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=object_of)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise InputError(not_json(path, error)) from None
        for line in read_lines(path):
            yield parse_request(line.record(), line.where)
        return
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: invalid JSON: {error}") from None
    if isinstance(value, dict):
        yield parse_request(value, str(path))
    elif isinstance(value, list):
        for index, record in enumerate(value):
            yield parse_request(record, f"{path}[{index}]")
    else:
        raise InputError(f"{path}: expected an object or a list, found {json_type(value)}")


def not_json(path: Path, error: json.JSONDecodeError) -> str:
    """Return the problem with a file of requests that is not JSON."""
    text = error.doc
    if not text.strip():
        return f"{path}: the file is empty"
    first = text.lstrip().partition("\n")[0]
    other = None if first.startswith(("{", "[")) else first_line_problem(first, path)
    problem = other or f"invalid JSON at column {error.colno}: {error.msg}"
    return f"{path}:{error.lineno}: {problem}"


def parse_request(record: object, where: str) -> RerankRequest:
    """Return the request in a JSON value; errors begin with `where`."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object, found {json_type(record)}")
    if not is_unicode(record):
        raise InputError(f"{where}: a text has an unpaired surrogate (\\ud800 to \\udfff)")
    if isinstance(record, Repeated):
        raise InputError(f"{where}: field {record.field!r} is given twice")
    query = query_of(record, where)
    names = [name for name in SPELLINGS if name in record]
    if len(names) != 1:
        actual = f"found {' and '.join(names)}" if names else field_names(record)
        raise InputError(f"{where}: expected one list of documents under 'documents'; {actual}")
    documents = record[names[0]]
    if not isinstance(documents, list):
        problem = f"field '{names[0]}' is {json_type(documents)}, expected a list"
        raise InputError(f"{where}: {problem}")
    for index, document in enumerate(documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            problem = f"{names[0]}[{index}] is neither a text nor an object with a 'text'"
            raise InputError(f"{where}: {problem}")
    scores = record.get(SCORES)
    if scores is not None:
        scores = checked_scores(scores, len(documents), f"{where}: ")
    return RerankRequest(query, documents, instruction_field(record, where), where, scores)


def query_of(record: dict[str, object], where: str) -> str:
    """Return the query of a request."""
    if "query" not in record:
        problem = f"field 'query' is missing, expected a text; {field_names(record)}"
        raise InputError(f"{where}: {problem}")
    query = record["query"]
    if not isinstance(query, str):
        raise InputError(f"{where}: field 'query' is {json_type(query)}, expected a text")
    if not query.strip():
        raise InputError(f"{where}: field 'query' is blank")
    return query


def field_names(record: dict[str, object]) -> str:
    """Return the names of a record's fields in words."""
    return f"the fields are {', '.join(map(ascii, list(record)[:8]))}"
