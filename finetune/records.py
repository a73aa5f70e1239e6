"""Passages, queries and judgements as they stand in files: JSON Lines, or tab-separated lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from rerank_plugin.errors import InputError
from rerank_plugin.jsonl import DataPath, Line, input_files, json_type, read_lines

#: Where the id may stand; BEIR writes `_id`.
IDS = ("_id", "id")

#: Where the text of a passage, of a query and of an answer may stand.
PASSAGE_TEXTS = ("text", "passage", "document")
QUERY_TEXTS = ("query", "question", "text")
ANSWERS = ("answer", "answers")

#: What the columns of a `.tsv` file are called, where its first line says so.
ID_COLUMNS = (
    *IDS,
    "pid",
    "qid",
    "docid",
    "doc_id",
    "passage_id",
    "query_id",
    "query-id",
    "corpus-id",
)
TEXT_COLUMNS = (*PASSAGE_TEXTS, *QUERY_TEXTS, "contents")

#: What the last column of judgements is called, where their first line says so.
GRADES = ("score", "grade", "label", "relevance", "rel", "relevancy", "judgement", "judgment")


@dataclass(frozen=True)
class Record:
    """A passage or a query."""

    id: str
    text: str
    #: Where it stands, for messages.
    line: Line
    #: What answers a query, where the record says so.
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """How relevant a passage is for a query; 0 and below is not at all."""

    query: str
    passage: str
    grade: float
    line: Line


def read_passages(data_path: DataPath) -> Iterator[Record]:
    """The passages of a corpus, `title` and text joined by a space, blank ones too.

    A file is JSON Lines with `_id` or `id`, `text` and perhaps `title`; a `.tsv` file has an id and
    a text a line, as MS MARCO's collection.
    """
    for line, record in read_records(data_path):
        title = record.get("title")
        text = text_of(line, record, PASSAGE_TEXTS)
        if title is not None and not isinstance(title, str):
            raise line.error(f"field 'title' is {json_type(title)}, expected a text")
        if title and title.strip():
            text = f"{title} {text}".strip()
        yield Record(id_of(line, record), text, line)


def read_queries(data_path: DataPath, *, by_id: bool = True) -> Iterator[Record]:
    """The queries of a file, as passages are read.

    Args:
        data_path: Where they are.
        by_id: Judgements name them; otherwise a query without an id has its place as one.

    Raises:
        InputError: a blank query, one without an id, or two with the same.
    """
    seen: set[str] = set()
    for place, (line, record) in enumerate(read_records(data_path)):
        name = id_of(line, record, default=None if by_id else f"{place}")
        text = text_of(line, record, QUERY_TEXTS)
        if not text.strip():
            raise line.error("the query is blank, expected a text")
        if name in seen:
            raise line.error(f"a second query has the id {name!r}")
        seen.add(name)
        yield Record(name, text, line, answers_of(line, record))


def read_records(data_path: DataPath) -> Iterator[tuple[Line, dict[str, object]]]:
    """Every line of JSON Lines or tab-separated files as a record."""
    for path in input_files(data_path):
        if path.name.removesuffix(".gz").endswith((".csv", ".parquet", ".json")):
            raise InputError(f"{path}: unknown kind of file, expected .jsonl or .tsv")
        is_table = path.name.removesuffix(".gz").endswith(".tsv")
        for line in read_lines(path):
            record = tab_separated(line) if is_table else line.record()
            if not (is_table and line.number == 1 and is_header(record)):
                yield line, record


def tab_separated(line: Line) -> dict[str, object]:
    """A line with an id and a text."""
    fields = line.text().split("\t")
    if len(fields) != 2:
        raise line.error(f"expected an id and a text with a tab between, found {len(fields)} parts")
    return {"id": fields[0], "text": fields[1]}


def is_header(record: dict[str, object]) -> bool:
    """Whether a tab-separated line has the names of its columns."""
    name, text = (str(record[column]).strip().lower() for column in ("id", "text"))
    return name in ID_COLUMNS and text in TEXT_COLUMNS


def id_of(line: Line, record: dict[str, object], default: str | None = None) -> str:
    """The id of a record, as text without spaces around it."""
    name = next((name for name in IDS if record.get(name) is not None), None)
    found = default if name is None else record[name]
    if found is None and not any(name in record for name in IDS):
        raise line.error("field 'id' is missing, expected a text or a whole number")
    if isinstance(found, bool) or not isinstance(found, str | int):
        problem = f"field '{name or 'id'}' is {json_type(found)}"
        raise line.error(f"{problem}, expected a text or a whole number")
    if not str(found).strip():
        raise line.error(f"field '{name or 'id'}' is blank, expected a text or a whole number")
    return str(found).strip()


def text_of(line: Line, record: dict[str, object], names: tuple[str, ...]) -> str:
    """The text of a record under the first of some names."""
    name = next((name for name in names if name in record), None)
    if name is None:
        raise line.error(f"field '{names[0]}' is missing, expected a text")
    text = record[name]
    if not isinstance(text, str):
        raise line.error(f"field '{name}' is {json_type(text)}, expected a text")
    return text


def answers_of(line: Line, record: dict[str, object]) -> tuple[str, ...]:
    """The answers of a record: a text or a list of texts; none where it is blank or empty."""
    name = next((name for name in ANSWERS if record.get(name) is not None), None)
    if name is None:
        return ()
    found = record[name]
    texts = found if isinstance(found, list) else [found]
    if isinstance(found, str) and not found.strip():
        return ()
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise line.error(f"field '{name}' is no text and no list of texts, none of them blank")
    return tuple(texts)


def read_qrels(data_path: DataPath) -> Iterator[Judgement]:
    """Judgements, a line each: query, passage and grade (BEIR), or trec_eval's four columns.

    A first line that ends in the name of a grade, such as `score`, is a header.
    """
    for path in input_files(data_path):
        for line in read_lines(path):
            text = line.text().rstrip()
            fields = [field.strip() for field in text.split("\t")] if "\t" in text else text.split()
            if len(fields) == 4:
                del fields[1]
            if len(fields) != 3 or not all(fields):
                blank = ", one of them blank" if len(fields) == 3 else ""
                raise line.error(
                    f"expected query, passage and grade, found {len(fields)} columns{blank}"
                )
            if line.number == 1 and fields[2].lower() in GRADES:
                continue
            yield Judgement(fields[0], fields[1], grade_of(line, fields[2]), line)


def grade_of(line: Line, text: str) -> float:
    """A grade as a number."""
    try:
        grade = float(text)
    except ValueError:
        raise line.error(f"the grade {text!r} is no number") from None
    if not isfinite(grade):
        raise line.error(f"the grade {text!r} is no finite number")
    return grade


def positives_by_query(data_path: DataPath) -> dict[str, list[str]]:
    """For every query's id the ids of the passages that are judged relevant.

    Raises:
        InputError: there are none.
    """
    found: dict[str, list[str]] = {}
    for judgement in read_qrels(data_path):
        if judgement.grade > 0:
            found.setdefault(judgement.query, []).append(judgement.passage)
    if not found:
        raise InputError(f"{data_path}: no passage is judged relevant (a grade above 0)")
    return found
