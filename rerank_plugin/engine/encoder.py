"""From (query, document) pairs to token ids: the one encoder of training and of serving."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from rerank_plugin.arguments import LONG_DOCUMENTS
from rerank_plugin.errors import InputError, OptionError, invalid_choice

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int32]
Pair = tuple[str, str]

#: Tokens that a window of a long document shares with the one before, where they are few of it.
WINDOW_OVERLAP = 80

#: Texts handed to the tokenizer at once, so that a long list needs no second copy of itself.
TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class EncodedPair:
    """One pair as the model reads it: token ids and token types, both int32 of shape `[length]`."""

    ids: Ids
    types: Ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> tuple[int, bytes, bytes]:
        """What pairs are sorted by: the longest first, then their contents."""
        return -len(self.ids), self.ids.tobytes(), self.types.tobytes()


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens around a query and a document, with the type ids of all five parts."""

    prefix: EncodedPair
    middle: EncodedPair
    suffix: EncodedPair
    query_type: int
    document_type: int

    @property
    def special_tokens(self) -> int:
        """How many tokens of a pair are neither query nor document."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def join(self, query: Ids, document: Ids) -> EncodedPair:
        """One pair out of a query's and a document's ids."""
        query_types = np.full(len(query), self.query_type, np.int32)
        document_types = np.full(len(document), self.document_type, np.int32)
        parts = (
            self.prefix,
            EncodedPair(query, query_types),
            self.middle,
            EncodedPair(document, document_types),
            self.suffix,
        )
        return EncodedPair(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.types for part in parts]),
        )


class PairEncoder:
    """Encodes pairs of at most `max_length` tokens; every text of a call is tokenised once.

    Of a pair that is longer, the document is cut and not the query, or is read in windows; but a
    query longer than half of `max_length` is cut to that, with one warning.

    Args:
        tokenizer: A tokenizer of the `tokenizers` library. Its own truncation and padding, which
            some models ship with, are cleared.
        max_length: The longest pair in tokens, special tokens included.
        option: The name under which the user knows `max_length`.
        long_documents: What `windows` does with documents that do not fit: `cut` or `windows`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        option: str = "max_length",
        long_documents: str = "cut",
    ) -> None:
        if long_documents not in LONG_DOCUMENTS:
            raise OptionError("long_documents", invalid_choice(long_documents, LONG_DOCUMENTS))
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{type(tokenizer).__name__} of {tokenizer.name_or_path} has no tokenizer.json: "
                "save it with transformers as a fast tokenizer first"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.long_documents = long_documents
        clear_truncation_and_padding(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self.template = read_template(tokenizer)
        if max_length < 2 * (self.template.special_tokens + 1):
            raise OptionError(option, f"{max_length} leaves no room for a document")
        self._warned = False

    @property
    def query_limit(self) -> int:
        """The longest query in tokens, where a pair is too long."""
        return self.max_length // 2

    @property
    def pad_id(self) -> int:
        """The id that fills a padded batch."""
        return int(self.tokenizer.pad_token_id or 0)

    def encode(self, pairs: Sequence[Pair]) -> list[EncodedPair]:
        """Encode pairs, in their order, cut to `max_length`."""
        texts = self._tokenize(pairs)
        return [self._join(texts[query], texts[document]) for query, document in pairs]

    def windows(self, pairs: Sequence[Pair]) -> list[list[EncodedPair]]:
        """Encode pairs, in their order, a long document in as many windows as it needs.

        Windows overlap and are all of full length; with `long_documents="cut"` there is one.
        """
        if self.long_documents == "cut":
            return [[pair] for pair in self.encode(pairs)]
        texts = self._tokenize(pairs)
        return [self._windows(texts[query], texts[document]) for query, document in pairs]

    def lengths(self, pairs: Sequence[Pair]) -> Ids:
        """The lengths that pairs have before anything is cut, int32 `[pairs]`."""
        texts = self._tokenize(pairs)
        special = self.template.special_tokens
        lengths = [len(texts[query]) + len(texts[document]) + special for query, document in pairs]
        return np.array(lengths, np.int32)

    def _join(self, query: Ids, document: Ids) -> EncodedPair:
        query, room = self._room(query, document)
        return self.template.join(query, document[:room])

    def _windows(self, query: Ids, document: Ids) -> list[EncodedPair]:
        query, room = self._room(query, document)
        last = max(0, len(document) - room)
        step = room - min(WINDOW_OVERLAP, room // 2)
        starts = [*range(0, last, step), last]
        return [self.template.join(query, document[start : start + room]) for start in starts]

    def _room(self, query: Ids, document: Ids) -> tuple[Ids, int]:
        """The query as it is read, and the tokens that are left for a document beside it."""
        room = self.max_length - self.template.special_tokens
        if len(query) + len(document) > room and len(query) > self.query_limit:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "a query of %d tokens is cut to %d, half of max_length %d (said once)",
                    len(query),
                    self.query_limit,
                    self.max_length,
                )
            query = query[: self.query_limit]
        return query, room - len(query)

    def _tokenize(self, pairs: Sequence[Pair]) -> dict[str, Ids]:
        """The ids of every query and every document, each text tokenised once."""
        distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids: dict[str, Ids] = {}
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            part = distinct[start : start + TEXTS_AT_ONCE]
            try:
                encodings = self._backend.encode_batch_fast(part, add_special_tokens=False)
            except TypeError:
                raise InputError("a query or a document is no text of valid Unicode") from None
            for text, encoding in zip(part, encodings, strict=True):
                ids[text] = np.array(encoding.ids, np.int32)
        return ids


def clear_truncation_and_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Clear what a `tokenizer.json` cuts and pads to (MiniLM's cuts to 128 tokens)."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def read_template(tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
    """The template of a pair, read off a real call of the tokenizer."""
    encoding = tokenizer.backend_tokenizer.encode("a", "b", add_special_tokens=True)
    ids = np.array(encoding.ids, np.int32)
    # The types that transformers gives are the ones that the model was trained with: some
    # tokenizers number the second sequence 1 although their model knows only type 0.
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
    parts = [EncodedPair(ids[start:end], types[start:end]) for start, end in pairwise(edges)]
    return PairTemplate(
        prefix=parts[0],
        middle=parts[2],
        suffix=parts[4],
        query_type=int(types[query[0]]),
        document_type=int(types[document[0]]),
    )
