"""Check the queries, documents and pairs that a caller passes; errors name the argument."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from dataclasses import dataclass
from math import isfinite
from typing import Any, Generic, Self, TypeVar

from rerank_plugin.arguments import shown
from rerank_plugin.errors import InputError

#: A query, the text of a document and, for a model that takes one, an instruction.
Pair = tuple[str, str] | tuple[str, str, str]

#: A document: a text, or a mapping that has it under `text`.
Document = TypeVar("Document", bound="str | Mapping[str, object]")

#: The scores of a retriever, one for each document; None where a document has none.
RetrievalScores = Sequence[float | None]

#: A query with its documents and perhaps an instruction, for a model that takes one, and the scores
#: of the retriever that found the documents.
DocumentsRequest = (
    tuple[str, Iterable[Document]]
    | tuple[str, Iterable[Document], str | None]
    | tuple[str, Iterable[Document], str | None, RetrievalScores | None]
)


@dataclass(frozen=True)
class DocumentsToRank(Generic[Document]):
    """A query, its documents, and their texts."""

    query: str
    documents: list[Document]
    texts: list[str]
    #: The instruction of its pairs; "" for the default.
    instruction: str = ""
    #: The retriever's scores, None for those that are missing; None without a retriever.
    retrieval_scores: RetrievalScores | None = None

    @classmethod
    def from_request(cls, request: Any, where: str = "", *, instruction: str = "") -> Self:
        """Check a request, such as (query, documents) or (query, documents, instruction).

        Args:
            request: The request.
            where: Its place, for errors.
            instruction: The instruction of a request without one.

        Raises:
            InputError: not such a request; or as `checked_query` and `document_text`.
        """
        query, documents, own, scores = query_and_what(
            request, where or "request: ", "documents", most=4
        )
        documents = document_list(documents, where)
        query = checked_query(query, where)
        texts = [document_text(d, f"{where}documents[{i}]") for i, d in enumerate(documents)]
        if scores is not None:
            scores = checked_scores(scores, len(texts), where)
        return cls(query, documents, texts, instruction_text(own, where) or instruction, scores)

    @property
    def pairs(self) -> list[Pair]:
        """Return the pairs of the query and each text."""
        return make_pairs(self.query, self.texts, self.instruction)


def make_pair(query: str, document: str, instruction: str = "") -> Pair:
    """Return a pair, which is equal to another one if all its texts are."""
    return (query, document, instruction) if instruction else (query, document)


def make_pairs(query: str, documents: Iterable[str], instruction: str = "") -> list[Pair]:
    """Return the pairs of a query and each document."""
    return [make_pair(query, document, instruction) for document in documents]


def instruction_of(pair: Pair) -> str:
    """Return the instruction of a pair; "" if it has none."""
    return pair[2] if len(pair) == 3 else ""


def is_blank(text: str) -> bool:
    """Return whether a text has nothing to score."""
    return not text or text.isspace()


def document_list(documents: Any, where: str = "") -> list[Any]:
    """Return documents of any ordered iterable as a list.

    Raises:
        InputError: a single text, a mapping, a set, a table, or nothing that can be iterated.
    """
    if isinstance(documents, str | bytes):
        raise InputError(f"{where}documents: expected a list of texts, not a single text")
    if not is_ordered(documents) or getattr(documents, "ndim", 1) != 1:
        raise InputError(f"{where}documents: expected a list of texts, not {shown(documents)}")
    return list(documents)


def is_ordered(documents: object) -> bool:
    """Return whether documents can be numbered; those of a mapping are its values."""
    if isinstance(documents, Mapping):
        return False
    if isinstance(documents, Set) and not isinstance(documents, Sequence | MappingView):
        return False
    return isinstance(documents, Iterable)


def checked_pairs(
    pairs: Iterable[Any], check_query: Callable[[object, str], str], instruction: str = ""
) -> Iterator[Pair]:
    """Yield (query, document) and (query, document, instruction) pairs as texts.

    Args:
        pairs: The pairs.
        check_query: Returns the query of a pair, or raises.
        instruction: The instruction of pairs without one.

    Raises:
        InputError: naming the index of an item that is not a pair of texts.
    """
    if not isinstance(pairs, Iterable):
        raise InputError(f"pairs: expected a list of pairs, not {shown(pairs)}")
    for index, pair in enumerate(pairs):
        where = f"pairs[{index}]: "
        query, document, own, _ = query_and_what(pair, where, "document", most=3)
        yield make_pair(
            check_query(query, where),
            document_text(document, f"{where}document"),
            instruction_text(own, where) or instruction,
        )


def query_and_what(value: Any, where: str, what: str, *, most: int) -> tuple[Any, Any, Any, Any]:
    """Return a query, its document or documents, its instruction and its retrieval scores.

    The last two are None where there are none.

    Raises:
        InputError: fewer than two items, or more than `most`.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        items = list(value)
        if 2 <= len(items) <= most:
            query, documents, instruction, scores = (*items, None, None)[:4]
            return query, documents, instruction, scores
    raise InputError(f"{where}expected a (query, {what}) pair, not {shown(value)}")


def checked_scores(values: Any, count: int, where: str = "") -> list[float | None]:
    """Return the retrieval scores of documents; None for those that are missing or not finite.

    Raises:
        InputError: not a list with a number or None for each document.
    """
    if isinstance(values, str | bytes) or not is_ordered(values):
        raise InputError(f"{where}retrieval_scores: expected a list, not {shown(values)}")
    scores = [
        finite_score(score, f"{where}retrieval_scores[{i}]") for i, score in enumerate(values)
    ]
    if len(scores) != count:
        raise InputError(f"{where}retrieval_scores: {len(scores)} scores for {count} documents")
    return scores


def finite_score(value: Any, where: str) -> float | None:
    """Return a finite number, or None for None, a NaN and an infinity.

    Raises:
        InputError: neither a number nor None.
    """
    if value is None:
        return None
    try:
        score = float("a text") if isinstance(value, bool | str | bytes) else float(value)
    except OverflowError:
        return None
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{where}: expected a number or None, not {shown(value)}") from None
    return score if isfinite(score) else None


def instruction_text(instruction: object, where: str = "") -> str:
    """Return an instruction; "" for None and for a blank text, which stand for the default.

    Raises:
        InputError: not a string, or not valid Unicode.
    """
    if instruction is None:
        return ""
    if not isinstance(instruction, str):
        raise InputError(f"{where}instruction: expected a text, not {shown(instruction)}")
    text = unicode_text(instruction, f"{where}instruction")
    return "" if is_blank(text) else text


def checked_query(query: object, where: str = "") -> str:
    """Return a query that is not blank.

    Raises:
        InputError: blank, not a string, or not valid Unicode.
    """
    if isinstance(query, str) and is_blank(query):
        raise InputError(f"{where}query: expected a text that is not blank")
    return query_text(query, where)


def query_text(query: object, where: str = "") -> str:
    """Return a query that may be blank.

    Raises:
        InputError: not a string, or not valid Unicode.
    """
    if not isinstance(query, str):
        raise InputError(f"{where}query: expected a text, not {shown(query)}")
    return unicode_text(query, f"{where}query")


def document_text(document: object, where: str = "document") -> str:
    """Return the text of a document: a string, or a mapping that has it under `text`.

    Raises:
        InputError: naming the document, if it has no text or one that is not valid Unicode.
    """
    text = document.get("text") if isinstance(document, Mapping) else document
    if isinstance(text, str):
        return unicode_text(text, where)
    if not isinstance(document, Mapping):
        actual = shown(document)
    elif "text" in document:
        actual = f"a mapping whose 'text' is {shown(text)}"
    else:
        actual = "a mapping without one"
    raise InputError(f"{where}: expected a text or a mapping with a 'text', not {actual}")


def unicode_text(text: str, where: str) -> str:
    """Return a text as a plain `str`.

    Raises:
        InputError: it has an unpaired surrogate, which no tokenizer reads.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: not valid Unicode (an unpaired surrogate, {text[error.start]!a}, at "
            f"position {error.start})"
        ) from None
    return str.__str__(text)
