"""Passages, queries and judgements in files: JSON Lines, or tab-separated lines.

Gaps that public data sets are known to have are left out and counted, by every command alike: texts
that are blank or null, judgements of missing queries or passages, repeated records. What can only
be a mistake is an error: two texts with one id, files without a common id.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import (
    DataPath,
    Line,
    input_files,
    instruction_field,
    json_type,
    read_lines,
)

from ..text.normalize import text_key
from .reason_counts import ReasonCounts

#: Fields of the id; BEIR writes `_id`.
ID_FIELDS = ("_id", "id")

#: Fields of the text of a passage, of a query and of an answer.
PASSAGE_TEXTS = ("text", "passage", "document")
QUERY_TEXTS = ("query", "question", "text")
ANSWERS = ("answer", "answers")

#: Names of the columns of a `.tsv` file, in its first line.
ID_COLUMNS = (
    *ID_FIELDS,
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

#: Names of the last column of judgements, in their first line.
GRADES = ("score", "grade", "label", "relevance", "rel", "relevancy", "judgement", "judgment")

#: Fields of the ids of query and passage in judgements as JSON Lines.
QUERY_IDS = ("query-id", "query_id", "qid", "query")
PASSAGE_IDS = ("corpus-id", "corpus_id", "docid", "doc_id", "pid", "passage_id", "passage")

#: A column between ASCII white space, as trec_eval splits lines.
COLUMN = re.compile(r"[^ \t\n\v\f\r]+")

#: Reasons why something is left out.
BLANK_QUERIES = "blank queries, left out"
REPEATED_QUERIES = "repeated queries, with the same id and text"
REPEATED_PASSAGES = "repeated passages, with the same id and text"
REPEATED_GRADES = "passages judged twice for a query: the highest grade counts"
MISSING_QUERIES = "judged queries that are not among the queries, left out"
MISSING_PASSAGES = "judged passages that are not in the corpus, left out"
BLANK_PASSAGES = "judged passages that are blank, left out"


@dataclass(frozen=True)
class Record:
    """A passage or a query."""

    id: str
    text: str
    #: The line, for messages.
    line: Line
    #: Answers to a query, where the record has some.
    answers: tuple[str, ...] = ()
    #: The instruction of a query; "" for the default.
    instruction: str = ""


@dataclass(frozen=True)
class Judgement:
    """The relevance of a passage for a query; 0 and below is not relevant."""

    query: str
    passage: str
    grade: float
    line: Line


class ChecksInstruction(Protocol):
    """A model, or an encoder of its pairs, that may take no instruction."""

    def check_instruction(self, instruction: str, where: str = "") -> None:
        """Raise an `InputError` that names the file and the line in `where`."""
        ...


def check_instructions(queries: Iterable[Record], model: ChecksInstruction) -> None:
    """Check that a model takes instructions, if a query has one.

    Raises:
        InputError: with file and line of the first query that has one.
    """
    query = next((query for query in queries if query.instruction), None)
    if query:
        model.check_instruction(query.instruction, query.line.where)


def read_passages(data_path: DataPath) -> Iterator[Record]:
    """Yield the passages of a corpus, `title` and text joined by a space, blank ones too.

    A file is JSON Lines with `_id` or `id`, `text` and perhaps `title`; a `.tsv` file has an id and
    a text a line, like MS MARCO's collection.
    """
    for line, record in read_records(data_path):
        title = record.get("title")
        text = text_field(line, record, PASSAGE_TEXTS)
        if title is not None and not isinstance(title, str):
            raise line.error(f"field 'title' is {json_type(title)}, expected a text")
        if title and title.strip():
            text = f"{title} {text}".strip()
        yield Record(id_of(line, record), text, line)


def read_queries(
    data_path: DataPath, counts: ReasonCounts, *, by_id: bool = True
) -> Iterator[Record]:
    """Yield the queries of a file, without blank and repeated ones.

    Args:
        data_path: JSON Lines or `.tsv` files, as for passages.
        counts: Counts the queries that are left out.
        by_id: Require ids; otherwise the id of a query without one is its index.

    Raises:
        InputError: a query without an id, two texts with the same, or none that is not blank.
    """
    seen: dict[str, tuple[str, str]] = {}
    is_empty = True
    for index, (line, record) in enumerate(read_records(data_path)):
        name = id_of(line, record, default=None if by_id else f"{index}")
        text = text_field(line, record, QUERY_TEXTS)
        instruction = instruction_field(record, line.where)
        if seen.get(name, (text, instruction)) != (text, instruction):
            field = "text" if seen[name][0] != text else "instruction"
            raise line.error(f"duplicate query id {name!r}, with another {field}")
        if name in seen:
            counts.add(REPEATED_QUERIES, at(name, line))
            continue
        seen[name] = text, instruction
        if not text.strip():
            counts.add(BLANK_QUERIES, at(name, line))
        else:
            is_empty = False
            yield Record(name, text, line, answers_of(line, record), instruction)
    if is_empty:
        raise InputError(f"{data_path}: no query is left ({', '.join(counts.lines())})")


def at(name: str, line: Line) -> str:
    """Return an id with file and line, for messages."""
    return f"{name!r} ({line.where})"


def read_records(data_path: DataPath) -> Iterator[tuple[Line, dict[str, object]]]:
    """Yield every line of JSON Lines or tab-separated files as a record."""
    for path in input_files(data_path):
        if path.name.removesuffix(".gz").endswith((".csv", ".parquet", ".json")):
            raise InputError(f"{path}: unknown kind of file, expected .jsonl or .tsv")
        is_table = path.name.removesuffix(".gz").endswith(".tsv")
        for line in read_lines(path):
            record = tab_separated(line) if is_table else line.record()
            if not (is_table and line.number == 1 and is_column_names(record)):
                yield line, record


def is_own_document(query: Record, text: str) -> bool:
    """Return whether a passage with a query's id is that query, with or without a title (ArguAna).

    It is not an answer, and BEIR removes it from rankings. Equal ids alone do not show it: numbered
    queries and passages have equal ids by chance.
    """
    key = text_key(query.text)
    return bool(key) and text_key(text).endswith(key)


def tab_separated(line: Line) -> dict[str, object]:
    """Return the id and the text of a line as a record."""
    fields = line.text().split("\t")
    if len(fields) != 2:
        raise line.error(
            f"expected an id and a text with a tab between, found {len(fields)} columns"
        )
    return {"id": fields[0], "text": fields[1]}


def is_column_names(record: dict[str, object]) -> bool:
    """Return whether a tab-separated line has the names of its columns."""
    name, text = (str(record[column]).strip().lower() for column in ("id", "text"))
    return name in ID_COLUMNS and text in TEXT_COLUMNS


def id_of(line: Line, record: dict[str, object], default: str | None = None) -> str:
    """Return the id of a record, as text without spaces around it."""
    name = next((name for name in ID_FIELDS if record.get(name) is not None), None)
    value = default if name is None else record[name]
    if value is None and not any(name in record for name in ID_FIELDS):
        raise line.error("field 'id' is missing, expected a text or a whole number")
    if isinstance(value, bool) or not isinstance(value, str | int):
        shown = value if isinstance(value, float) else json_type(value)
        problem = f"field '{name or 'id'}' is {shown}"
        raise line.error(f"{problem}, expected a text or a whole number")
    if not str(value).strip():
        raise line.error(f"field '{name or 'id'}' is blank, expected a text or a whole number")
    return str(value).strip()


def text_field(line: Line, record: dict[str, object], names: tuple[str, ...]) -> str:
    """Return the text of a record under the first of some names; null is a blank text."""
    name = next((name for name in names if name in record), None)
    if name is None:
        fields = ", ".join(map(ascii, list(record)[:8]))
        problem = f"field '{names[0]}' is missing, expected a text; the fields are {fields}"
        raise line.error(problem)
    text = record[name]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise line.error(f"field '{name}' is {json_type(text)}, expected a text")
    return text


def answers_of(line: Line, record: dict[str, object]) -> tuple[str, ...]:
    """Return the answers of a record: a text or a list of texts; none if blank or empty."""
    name = next((name for name in ANSWERS if record.get(name) is not None), None)
    if name is None:
        return ()
    value = record[name]
    texts = value if isinstance(value, list) else [value]
    if isinstance(value, str) and not value.strip():
        return ()
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise line.error(f"field '{name}' is neither a text nor a list of texts that are not blank")
    return tuple(texts)


def read_qrels(data_path: DataPath) -> Iterator[Judgement]:
    """Yield judgements, one a line: query, passage and grade (BEIR), or trec_eval's four columns.

    A first line that ends in the name of a grade, such as `score`, is a header. JSON Lines have
    `query-id`, `corpus-id` and `score`, as MTEB writes them.
    """
    for path in input_files(data_path):
        for line in read_lines(path):
            is_json = line.raw.lstrip().startswith((b"{", b"["))
            fields = record_columns(line) if is_json else columns_of(line)
            if not is_json and line.number == 1 and fields[2].lower() in GRADES:
                continue
            yield Judgement(fields[0], fields[1], grade_of(line, fields[2]), line)


def columns_of(line: Line) -> list[str]:
    """Return query, passage and grade of a line of columns, split at tabs or other space."""
    text = line.text().rstrip()
    fields = [field.strip() for field in text.split("\t")] if "\t" in text else COLUMN.findall(text)
    if len(fields) == 4:
        del fields[1]
    if len(fields) != 3 or not all(fields):
        blank = ", one of them blank" if len(fields) == 3 else ""
        raise line.error(f"expected query, passage and grade, found {len(fields)} columns{blank}")
    return fields


def record_columns(line: Line) -> list[str]:
    """Return query, passage and grade of a line of JSON."""
    record = line.record()
    fields = []
    for names in (QUERY_IDS, PASSAGE_IDS, GRADES):
        name = next((name for name in names if name in record), None)
        value = None if name is None else record[name]
        if name is None or isinstance(value, bool) or not isinstance(value, str | int | float):
            problem = "is missing" if name is None else f"is {json_type(value)}"
            raise line.error(f"field '{name or names[0]}' {problem}, expected an id or a grade")
        fields.append(str(value).strip())
    return fields


def grade_of(line: Line, text: str) -> float:
    """Return a grade as a number."""
    try:
        grade = float(text)
    except ValueError:
        raise line.error(f"the grade {text!r} is not a number") from None
    if not isfinite(grade):
        raise line.error(f"the grade {text!r} is not a finite number")
    return grade


def read_grades(qrels: DataPath, counts: ReasonCounts) -> dict[str, dict[str, float]]:
    """Return the grades of every query's judged passages, by their ids."""
    grades: dict[str, dict[str, float]] = {}
    for judgement in read_qrels(qrels):
        passages = grades.setdefault(judgement.query, {})
        grade = passages.setdefault(judgement.passage, judgement.grade)
        if grade != judgement.grade:
            passages[judgement.passage] = max(grade, judgement.grade)
            counts.add(REPEATED_GRADES, at(judgement.passage, judgement.line))
    return grades


def positives_by_query(data_path: DataPath, counts: ReasonCounts) -> dict[str, dict[str, float]]:
    """Return for every query id the grades of the passages that are judged relevant, by their ids.

    Raises:
        InputError: no passage is.
    """
    grades = read_grades(data_path, counts)
    positives = {
        query: {passage: grade for passage, grade in passages.items() if grade > 0}
        for query, passages in grades.items()
    }
    positives = {query: passages for query, passages in positives.items() if passages}
    if not positives:
        raise InputError(f"{data_path}: no passage is judged relevant (a grade above 0)")
    return positives


def judged_at(qrels: DataPath, query: str, passage: str) -> str:
    """Return a passage with file and line of its judgement, for messages."""
    # Read again, as the lines of all judgements would take much memory.
    judgements = (one for one in read_qrels(qrels) if (one.query, one.passage) == (query, passage))
    line = next((one.line for one in judgements), None)
    return at(passage, line) if line else repr(passage)


def check_match(
    what: str, one: DataPath, ids: Iterable[str], other: DataPath, other_ids: Collection[str]
) -> None:
    """Check that two files have ids in common.

    Raises:
        InputError: they have none, so they hardly belong together.
    """
    first = None
    for name in ids:
        if name in other_ids:
            return
        first = name if first is None else first
    if first is not None:
        raise no_match(what, one, first, other, next(iter(other_ids), None))


def no_match(
    what: str, one: DataPath, name: str, other: DataPath, other_name: str | None
) -> InputError:
    """Return the error of two files without a common id, with an id of each."""
    there = "no id" if other_name is None else repr(other_name)
    return InputError(
        f"{one}: none of its {what} ids is in {other}: found {name!r} here and {there} there; do "
        "the files belong together?"
    )
