"""Check the queries, documents and pairs that a caller passes; errors name the argument."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from rerank_plugin.arguments import shown
from rerank_plugin.errors import InputError

#: A query and the text of a document.
Pair = tuple[str, str]

#: A document: a text, or a mapping that has it under `text`.
Document = TypeVar("Document", bound="str | Mapping[str, object]")


@dataclass(frozen=True)
class DocumentsToRank(Generic[Document]):
    """A query, its documents, and their texts."""

    query: str
    documents: list[Document]
    texts: list[str]

    @classmethod
    def from_request(cls, request: Any, where: str = "") -> Self:
        """Check a (query, documents) pair.

        Raises:
            InputError: not such a pair; or as `checked_query` and `document_text`.
        """
        query, documents = two_items(request, where or "request: ", "(query, documents)")
        documents = document_list(documents, where)
        query = checked_query(query, where)
        texts = [document_text(d, f"{where}documents[{i}]") for i, d in enumerate(documents)]
        return cls(query, documents, texts)

    @property
    def pairs(self) -> Iterator[Pair]:
        """Yield the (query, text) pairs."""
        return ((self.query, text) for text in self.texts)


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
    pairs: Iterable[Any], check_query: Callable[[object, str], str]
) -> Iterator[Pair]:
    """Yield (query, document) pairs as texts.

    Raises:
        InputError: naming the index of an item that is not a pair of texts.
    """
    if not isinstance(pairs, Iterable):
        raise InputError(f"pairs: expected a list of pairs, not {shown(pairs)}")
    for index, pair in enumerate(pairs):
        query, document = two_items(pair, f"pairs[{index}]: ", "(query, document)")
        yield (
            check_query(query, f"pairs[{index}]: "),
            document_text(document, f"pairs[{index}]: document"),
        )


def two_items(value: Any, where: str, what: str) -> tuple[Any, Any]:
    """Return the two items of a pair.

    Raises:
        InputError: not a pair.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        items = list(value)
        if len(items) == 2:
            return items[0], items[1]
    raise InputError(f"{where}expected a {what} pair, not {shown(value)}")


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
        given = shown(document)
    elif "text" in document:
        given = f"a mapping whose 'text' is {shown(text)}"
    else:
        given = "a mapping without one"
    raise InputError(f"{where}: expected a text or a mapping with a 'text', not {given}")


def unicode_text(text: str, where: str) -> str:
    """Return a text as a plain `str`.

    Raises:
        InputError: it has half a surrogate pair, which no tokenizer reads.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: not valid Unicode (half a surrogate pair, {text[error.start]!a}, at "
            f"position {error.start})"
        ) from None
    return str.__str__(text)
