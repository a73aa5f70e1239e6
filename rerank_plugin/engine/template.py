"""The template of a pair: everything around a query and a document, as token ids."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from rerank_plugin.errors import InputError
from rerank_plugin.model.prompts import PromptTexts

Ids = npt.NDArray[np.int32]

NO_IDS: Ids = np.zeros(0, np.int32)

#: Queries and documents that a tokenizer might join with the text around them.
PROBES = ("a", "Is it?", " b ", "1.", "\n", "(c)", "\u00fc", "d\n\n", "'s")


@dataclass(frozen=True)
class EncodedPair:
    """The token ids and token types of one pair, both int32 `[length]`."""

    ids: Ids
    types: Ids
    #: The number of its first tokens that depend on the query alone, if a model can share them.
    shared: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> tuple[int, bytes, bytes]:
        """Return the sorting key of pairs: the longest first, then by their contents."""
        return -len(self.ids), self.ids.tobytes(), self.types.tobytes()


@dataclass(frozen=True)
class PairTemplate:
    """The tokens around a query and a document, and the token types of the two."""

    prefix: EncodedPair
    middle: EncodedPair
    suffix: EncodedPair
    query_type: int = 0
    document_type: int = 0
    #: The texts of a prompt that are tokenised together with a query and a document.
    prompt: PromptTexts | None = None
    #: Whether a tokenizer joins query and document, so that a pair is tokenised as one text.
    is_whole: bool = False
    #: The text after a document as ids, for documents that are cut.
    document_end: Ids = field(default_factory=lambda: NO_IDS)
    #: The number of tokens of a prompt.
    prompt_tokens: int = 0

    @property
    def special_tokens(self) -> int:
        """Return the number of tokens that are the same for every pair."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def texts(self, query: str, document: str) -> tuple[str, str]:
        """Return the texts of a pair as they are tokenised."""
        if self.prompt is None:
            return query, document
        if self.prompt.strips:
            query, document = query.strip(), document.strip()
        query = query.join(self.prompt.query)
        document = document.join(self.prompt.document)
        return ("", query + document) if self.is_whole else (query, document)

    def join(self, query: Ids, document: Ids, *, is_cut: bool = False) -> EncodedPair:
        """Return the pair of a query's and a document's ids; a cut one gets the prompt's end."""
        if is_cut:
            document = np.concatenate([document, self.document_end])
        query_types = np.full(len(query), self.query_type, np.int32)
        document_types = np.full(len(document), self.document_type, np.int32)
        segments = (
            self.prefix,
            EncodedPair(query, query_types),
            self.middle,
            EncodedPair(document, document_types),
            self.suffix,
        )
        return EncodedPair(
            np.concatenate([segment.ids for segment in segments]),
            np.concatenate([segment.types for segment in segments]),
            shared=sum(len(segment) for segment in segments[:3]) if self.prompt else 0,
        )


def read_template(tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
    """Return the template of an encoder's pairs, taken from a real call of the tokenizer."""
    encoding = tokenizer.backend_tokenizer.encode("a", "b", add_special_tokens=True)
    ids = np.array(encoding.ids, np.int32)
    # The types that transformers returns are those of training: some tokenizers number the second
    # sequence 1 although their model has only type 0.
    types = np.array(tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"], np.int32)
    sequences = np.array([-1 if s is None else s for s in encoding.sequence_ids])
    query, document = np.flatnonzero(sequences == 0), np.flatnonzero(sequences == 1)
    if len(query) == 0 or len(document) == 0 or query[-1] > document[0]:
        raise InputError(f"{tokenizer.name_or_path}: the tokenizer does not encode pairs in order")
    if query[-1] + 1 == document[0]:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer puts no token between a query and a document "
            "(its tokenizer.json has no template for pairs), so the model cannot tell them apart"
        )
    edges = [0, query[0], query[-1] + 1, document[0], document[-1] + 1, len(ids)]
    segments = [EncodedPair(ids[start:end], types[start:end]) for start, end in pairwise(edges)]
    return PairTemplate(
        prefix=segments[0],
        middle=segments[2],
        suffix=segments[4],
        query_type=int(types[query[0]]),
        document_type=int(types[document[0]]),
    )


def prompt_template(
    prompt: PromptTexts, tokenize: Callable[[Sequence[str]], list[Ids]]
) -> PairTemplate:
    """Return the template of a prompt.

    Args:
        prompt: The texts of the prompt.
        tokenize: Returns the ids of texts, without special tokens of the tokenizer's own.
    """
    prefix, middle, suffix = (
        without_types(tokenize(pieces)) for pieces in (prompt.prefix, prompt.middle, prompt.suffix)
    )
    empty_query, document_left, document_end = tokenize(
        ["".join(prompt.query), prompt.document[0], prompt.document[1]]
    )
    fixed = [prefix.ids, middle.ids, suffix.ids, empty_query, document_left, document_end]
    return PairTemplate(
        prefix,
        middle,
        suffix,
        prompt=prompt,
        is_whole=not middle.ids.size and joins_texts(prompt, tokenize),
        document_end=document_end,
        prompt_tokens=sum(map(len, fixed)),
    )


def without_types(pieces: Iterable[Ids]) -> EncodedPair:
    """Return pieces of ids side by side, all of token type 0."""
    ids = np.concatenate([NO_IDS, *pieces])
    return EncodedPair(ids, np.zeros(len(ids), np.int32))


def joins_texts(prompt: PromptTexts, tokenize: Callable[[Sequence[str]], list[Ids]]) -> bool:
    """Return whether tokens depend on both sides of the cut between query and document."""
    pairs = list(product(PROBES, PROBES))
    queries = [query.join(prompt.query) for query, _ in pairs]
    documents = [document.join(prompt.document) for _, document in pairs]
    whole = tokenize([query + document for query, document in zip(queries, documents, strict=True)])
    cut = zip(tokenize(queries), tokenize(documents), whole, strict=True)
    return any(not np.array_equal(np.concatenate([q, d]), both) for q, d, both in cut)
