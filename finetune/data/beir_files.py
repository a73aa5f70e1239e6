"""Passages, queries and judgements as they stand in files: JSON Lines, or tab-separated lines.

What public data sets are known to lack is left out, counted and told, by every command alike: texts
that are blank or null, judgements of queries or passages that are not there, records that come
twice. What can only be a mistake is an error: two texts of one id, files whose ids have nothing in
common.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import DataPath, Line, input_files, json_type, read_lines

from ..text.normalize import text_key
from .reason_counts import ReasonCounts

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

#: The same of judgements as JSON Lines, with the ids of query and passage.
QUERY_IDS = ("query-id", "query_id", "qid", "query")
PASSAGE_IDS = ("corpus-id", "corpus_id", "docid", "doc_id", "pid", "passage_id", "passage")

#: Columns with anything but ASCII's white space between them, as trec_eval takes them.
COLUMN = re.compile(r"[^ \t\n\v\f\r]+")

#: Why something is left out.
BLANK_QUERIES = "blank queries, left out"
REPEATED_QUERIES = "queries that come twice, with the same id and text"
REPEATED_PASSAGES = "passages that come twice, with the same id and text"
REPEATED_GRADES = "passages judged twice for a query: the highest grade counts"
MISSING_QUERIES = "judged queries that are not among the queries, left out"
MISSING_PASSAGES = "judged passages that are not in the corpus, left out"
BLANK_PASSAGES = "judged passages that are blank, left out"


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


def read_queries(
    data_path: DataPath, counts: ReasonCounts, *, by_id: bool = True
) -> Iterator[Record]:
    """The queries of a file, as passages are read, none of them blank and each once.

    Args:
        data_path: Where they are.
        counts: Counts those that are left out.
        by_id: Judgements name them; otherwise a query without an id has its place as one.

    Raises:
        InputError: a query without an id, two texts with the same, or none that is not blank.
    """
    seen: dict[str, str] = {}
    some = False
    for place, (line, record) in enumerate(read_records(data_path)):
        name = id_of(line, record, default=None if by_id else f"{place}")
        text = text_of(line, record, QUERY_TEXTS)
        if seen.get(name, text) != text:
            raise line.error(f"a second query has the id {name!r}, with another text")
        if name in seen:
            counts.add(REPEATED_QUERIES, at(name, line))
            continue
        seen[name] = text
        if not text.strip():
            counts.add(BLANK_QUERIES, at(name, line))
        else:
            some = True
            yield Record(name, text, line, answers_of(line, record))
    if not some:
        raise InputError(f"{data_path}: no query is left ({', '.join(counts.lines())})")


def at(name: str, line: Line) -> str:
    """An id and where it stands, for messages."""
    return f"{name!r} ({line.path}:{line.number})"


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


def is_own_document(query: Record, text: str) -> bool:
    """Whether a passage with a query's id is that query, perhaps behind a title, as in ArguAna.

    It is no answer: BEIR leaves it out of what is found. Ids of one number alone say nothing.
    """
    key = text_key(query.text)
    return bool(key) and text_key(text).endswith(key)


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
        shown = found if isinstance(found, float) else json_type(found)
        problem = f"field '{name or 'id'}' is {shown}"
        raise line.error(f"{problem}, expected a text or a whole number")
    if not str(found).strip():
        raise line.error(f"field '{name or 'id'}' is blank, expected a text or a whole number")
    return str(found).strip()


def text_of(line: Line, record: dict[str, object], names: tuple[str, ...]) -> str:
    """The text of a record under the first of some names; a blank one where it is null."""
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
    """Query, passage and grade of a line of columns, with tabs between them or other space."""
    text = line.text().rstrip()
    fields = [field.strip() for field in text.split("\t")] if "\t" in text else COLUMN.findall(text)
    if len(fields) == 4:
        del fields[1]
    if len(fields) != 3 or not all(fields):
        blank = ", one of them blank" if len(fields) == 3 else ""
        raise line.error(f"expected query, passage and grade, found {len(fields)} columns{blank}")
    return fields


def record_columns(line: Line) -> list[str]:
    """Query, passage and grade of a line of JSON."""
    record = line.record()
    fields = []
    for names in (QUERY_IDS, PASSAGE_IDS, GRADES):
        name = next((name for name in names if name in record), None)
        value = None if name is None else record[name]
        if name is None or isinstance(value, bool) or not isinstance(value, str | int | float):
            found = "is missing" if name is None else f"is {json_type(value)}"
            raise line.error(f"field '{name or names[0]}' {found}, expected an id or a grade")
        fields.append(str(value).strip())
    return fields


def grade_of(line: Line, text: str) -> float:
    """A grade as a number."""
    try:
        grade = float(text)
    except ValueError:
        raise line.error(f"the grade {text!r} is no number") from None
    if not isfinite(grade):
        raise line.error(f"the grade {text!r} is no finite number")
    return grade


def read_grades(qrels: DataPath, counts: ReasonCounts) -> dict[str, dict[str, float]]:
    """The grades of every query's judged passages, by their ids."""
    grades: dict[str, dict[str, float]] = {}
    for judgement in read_qrels(qrels):
        of_query = grades.setdefault(judgement.query, {})
        grade = of_query.setdefault(judgement.passage, judgement.grade)
        if grade != judgement.grade:
            of_query[judgement.passage] = max(grade, judgement.grade)
            counts.add(REPEATED_GRADES, at(judgement.passage, judgement.line))
    return grades


def positives_by_query(data_path: DataPath, counts: ReasonCounts) -> dict[str, list[str]]:
    """For every query's id the ids of the passages that are judged relevant.

    Raises:
        InputError: there are none.
    """
    grades = read_grades(data_path, counts)
    found = {
        query: [passage for passage, grade in of_query.items() if grade > 0]
        for query, of_query in grades.items()
    }
    found = {query: passages for query, passages in found.items() if passages}
    if not found:
        raise InputError(f"{data_path}: no passage is judged relevant (a grade above 0)")
    return found


def judged_at(qrels: DataPath, query: str, passage: str) -> str:
    """A passage with file and line of its judgement, for messages."""
    # Read again: to keep the places of all judgements would take much memory.
    found = (of.line for of in read_qrels(qrels) if (of.query, of.passage) == (query, passage))
    line = next(found, None)
    return at(passage, line) if line else repr(passage)


def check_match(
    what: str, one: DataPath, ids: Iterable[str], other: DataPath, other_ids: Collection[str]
) -> None:
    """Check that two files have ids in common.

    Raises:
        InputError: they have none, so that they hardly belong together.
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
    """An error of two files without a common id, with an id of each."""
    there = "has none" if other_name is None else f"has {other_name!r}"
    return InputError(
        f"{one}: no {what} id of it is in {other}: it has {name!r}, the other {there}; do the "
        "files belong together?"
    )
