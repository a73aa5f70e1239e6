"""The ranking policy: from scores to an order, with `top_n`, `score_threshold` and blank documents.

`Reranker`, the `rerank` command and the adapters rank by it. Documents are ordered by falling
logit; ties keep their input order. Blank documents are not scored: their logit is -inf, so they
are last, have the lowest score, and reach no threshold but one that is as low.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank_plugin.arguments import score_threshold, shown, whole_number
from rerank_plugin.engine.scores import threshold_logit
from rerank_plugin.errors import InputError
from rerank_plugin.model.settings import RerankSettings

if TYPE_CHECKING:
    from rerank_plugin.engine.encoder import Pair
    from rerank_plugin.engine.scorer import Logits


@dataclass(frozen=True)
class Selection:
    """Which documents a ranking keeps.

    Args:
        top_n: How many at most; None for all.
        score_threshold: The score from which on they are kept, before `top_n` counts: a number,
            or a name that the model has a calibrated one for, such as `precision@0.9`.

    Raises:
        InputError: an argument has another type, or a value that cannot be used.
    """

    top_n: int | None = None
    score_threshold: float | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_n", whole_number("top_n", self.top_n))
        object.__setattr__(self, "score_threshold", score_threshold(self.score_threshold))

    def lowest_logit(self, settings: RerankSettings) -> float:
        """Return the logit from which on a threshold's name keeps documents.

        Raises:
            InputError: the model carries no threshold of that name.
        """
        if isinstance(self.score_threshold, str):
            return threshold_logit(self.score_threshold, settings)
        return -inf

    def rank(
        self, logits: "Logits", scores: "Logits", lowest_logit: float = -inf
    ) -> list[tuple[int, float]]:
        """Return the indices of the documents that are kept, the best first, with their scores."""
        lowest_score = self.score_threshold if isinstance(self.score_threshold, float) else -inf
        # As float64: a number is not rounded to the precision of the scores.
        kept = (logits.astype(np.float64) >= lowest_logit) & (
            scores.astype(np.float64) >= lowest_score
        )
        return [(index, float(scores[index])) for index in order(logits) if kept[index]][
            : self.top_n
        ]


def order(logits: "Logits") -> list[int]:
    """Return indices by falling logit; ties keep their input order.

    Not by falling score: the sigmoids of two high logits are the same number.
    """
    return [int(index) for index in np.argsort(-logits, kind="stable")]


def is_blank(text: str) -> bool:
    """Return whether there is nothing to score in a text."""
    return not text or text.isspace()


def scored_pairs(pairs: "Iterable[Pair]", blank: deque[bool]) -> "Iterator[Pair]":
    """Yield the pairs whose document is not blank; `blank` gets a flag for each of all pairs."""
    for query, text in pairs:
        blank.append(is_blank(text))
        if not blank[-1]:
            yield query, text


def with_blank(logits: "Logits", blank: deque[bool]) -> "Logits":
    """Return the logits of all pairs up to the last scored one; takes their flags away."""
    filled = []
    for logit in logits:
        while blank.popleft():
            filled.append(-inf)
        filled.append(float(logit))
    return np.array(filled, np.float32)


def rest_blank(blank: deque[bool]) -> "Logits":
    """Return the logits of the blank pairs after the last scored one."""
    return np.full(len(blank), -inf, np.float32)


def checked_request(request: Any, where: str = "") -> tuple[str, list[Any], list[str]]:
    """Return a request's query, its documents in a list, and their texts.

    Raises:
        InputError: not a (query, documents) pair; or as `checked_query` and `document_text`.
    """
    query, documents = two(request, where or "request: ", "(query, documents)")
    listed = document_list(documents, where)
    query = checked_query(query, where)
    return query, listed, [document_text(d, f"{where}documents[{i}]") for i, d in enumerate(listed)]


def document_list(documents: Any, where: str = "") -> list[Any]:
    """Return documents of any iterable with an order, in a list.

    Raises:
        InputError: one text, a mapping, a set, a table, or nothing that can be iterated.
    """
    if isinstance(documents, str | bytes):
        raise InputError(f"{where}documents: a list of texts is needed, not one text")
    if not has_order(documents) or getattr(documents, "ndim", 1) != 1:
        raise InputError(f"{where}documents: a list of texts is needed, not {shown(documents)}")
    return list(documents)


def has_order(documents: object) -> bool:
    """Return whether documents can be numbered; those of a mapping are its values."""
    if isinstance(documents, Mapping):
        return False
    if isinstance(documents, Set) and not isinstance(documents, Sequence | MappingView):
        return False
    return isinstance(documents, Iterable)


def checked_pairs(pairs: Iterable[Any], query: Callable[[object, str], str]) -> "Iterator[Pair]":
    """Yield (query, document) pairs as texts; `query` checks their queries.

    Raises:
        InputError: naming the index of what is not a pair of texts.
    """
    if not isinstance(pairs, Iterable):
        raise InputError(f"pairs: a list of pairs is needed, not {shown(pairs)}")
    for index, pair in enumerate(pairs):
        asked, document = two(pair, f"pairs[{index}]: ", "(query, document)")
        yield (
            query(asked, f"pairs[{index}]: "),
            document_text(document, f"pairs[{index}]: document"),
        )


def two(value: Any, where: str, what: str) -> tuple[Any, Any]:
    """Return the two items of a pair.

    Raises:
        InputError: not a pair.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        items = list(value)
        if len(items) == 2:
            return items[0], items[1]
    raise InputError(f"{where}a {what} pair is needed, not {shown(value)}")


def checked_query(query: object, where: str = "") -> str:
    """Return a query that is not blank.

    Raises:
        InputError: blank, not a string, or not valid Unicode.
    """
    if isinstance(query, str) and is_blank(query):
        raise InputError(f"{where}query: a text that is not blank is needed")
    return query_text(query, where)


def query_text(query: object, where: str = "") -> str:
    """Return a query that may be blank.

    Raises:
        InputError: not a string, or not valid Unicode.
    """
    if not isinstance(query, str):
        raise InputError(f"{where}query: a text is needed, not {shown(query)}")
    return unicode_text(query, f"{where}query")


def document_text(document: object, where: str = "document") -> str:
    """Return the text of a document, which is a string or a mapping that has it under `text`.

    Raises:
        InputError: naming the document, if it has no text or one that is not valid Unicode.
    """
    text = document.get("text") if isinstance(document, Mapping) else document
    if not isinstance(text, str):
        if isinstance(document, Mapping) and "text" in document:
            found = f"a mapping whose 'text' is {shown(text)}"
        else:
            found = "a mapping without 'text'" if isinstance(document, Mapping) else shown(document)
        raise InputError(f"{where}: a text, or a mapping with one under 'text', not {found}")
    return unicode_text(text, where)


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
