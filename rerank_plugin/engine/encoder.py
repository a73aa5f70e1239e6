"""Encode (query, document) pairs as token ids, in training and in serving alike."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from rerank_plugin.arguments import LONG_DOCUMENTS
from rerank_plugin.errors import InputError, OptionError, invalid_choice
from rerank_plugin.inputs import Pair, instruction_of

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int32]

#: The tokens that a window of a long document shares with the one before, half of it at most.
WINDOW_OVERLAP = 80

#: Texts that are tokenised at once, so that a long list is not copied as a whole.
TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class EncodedPair:
    """The token ids and token types of one pair, both int32 `[length]`."""

    ids: Ids
    types: Ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> tuple[int, bytes, bytes]:
        """Return the sorting key of pairs: the longest first, then by their contents."""
        return -len(self.ids), self.ids.tobytes(), self.types.tobytes()


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens around a query and a document, and the token types of the two."""

    prefix: EncodedPair
    middle: EncodedPair
    suffix: EncodedPair
    query_type: int
    document_type: int

    @property
    def special_tokens(self) -> int:
        """Return the number of special tokens of a pair."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def join(self, query: Ids, document: Ids) -> EncodedPair:
        """Return the pair of a query's and a document's ids."""
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
        )


class PairEncoder:
    """Encodes pairs of at most `max_length` tokens; every text of a call is tokenised once.

    In a longer pair the document is cut or read in windows, and not the query; but a query longer
    than half of `max_length` is cut to that, with one warning.

    Args:
        tokenizer: A tokenizer of the `tokenizers` library. The truncation and padding that some
            models ship with are cleared.
        max_length: The longest pair in tokens, special tokens included.
        option: The name of the option for `max_length`.
        long_documents: `cut` or `windows`, for `windows`.
        instruction: The instruction of pairs without one.

    Raises:
        OptionError: an option cannot be used with the tokenizer.
        InputError: the tokenizer is not a fast one, or does not encode pairs.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        option: str = "max_length",
        long_documents: str = "cut",
        instruction: str | None = None,
    ) -> None:
        if long_documents not in LONG_DOCUMENTS:
            raise OptionError("long_documents", invalid_choice(long_documents, LONG_DOCUMENTS))
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{tokenizer.name_or_path}: {type(tokenizer).__name__} is not a fast tokenizer; "
                "save it with transformers as one (tokenizer.json) first"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.long_documents = long_documents
        clear_truncation_and_padding(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self.template = read_template(tokenizer)
        if max_length < 2 * (self.template.special_tokens + 1):
            raise OptionError(option, f"{max_length} is too small for a document")
        self._warned = False
        if instruction:
            raise self._no_instruction()

    @property
    def takes_instruction(self) -> bool:
        """Return whether the model takes an instruction; an encoder does not."""
        return False

    @property
    def query_limit(self) -> int:
        """Return the longest query in tokens, if a pair is too long."""
        return self.max_length // 2

    @property
    def pad_id(self) -> int:
        """Return the id that fills a padded batch."""
        return int(self.tokenizer.pad_token_id or 0)

    def encode(self, pairs: Sequence[Pair]) -> list[EncodedPair]:
        """Encode pairs, in their order, cut to `max_length`."""
        texts = self._tokenize(pairs)
        return [self._join(texts[pair[0]], texts[pair[1]]) for pair in pairs]

    def windows(self, pairs: Sequence[Pair]) -> list[list[EncodedPair]]:
        """Encode pairs, in their order, a long document in as many windows as it needs.

        Windows overlap and have full length; with `long_documents="cut"` there is one.
        """
        if self.long_documents == "cut":
            return [[pair] for pair in self.encode(pairs)]
        texts = self._tokenize(pairs)
        return [self._windows(texts[pair[0]], texts[pair[1]]) for pair in pairs]

    def lengths(self, pairs: Sequence[Pair]) -> Ids:
        """Return the lengths of pairs before anything is cut, int32 `[pairs]`."""
        texts = self._tokenize(pairs)
        special = self.template.special_tokens
        lengths = [len(texts[pair[0]]) + len(texts[pair[1]]) + special for pair in pairs]
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
        """Return the query, cut if necessary, and the number of tokens left for a document."""
        room = self.max_length - self.template.special_tokens
        if len(query) + len(document) > room and len(query) > self.query_limit:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "a query of %d tokens is cut to %d, half of max_length %d (warned once)",
                    len(query),
                    self.query_limit,
                    self.max_length,
                )
            query = query[: self.query_limit]
        return query, room - len(query)

    def _tokenize(self, pairs: Sequence[Pair]) -> dict[str, Ids]:
        """Return the ids of every query and every document, each text tokenised once."""
        if not self.takes_instruction and any(map(instruction_of, pairs)):
            raise self._no_instruction()
        distinct = list(dict.fromkeys(text for pair in pairs for text in pair[:2]))
        ids: dict[str, Ids] = {}
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            texts = distinct[start : start + TEXTS_AT_ONCE]
            try:
                encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
            except TypeError:
                raise InputError("a query or a document is not valid Unicode") from None
            for text, encoding in zip(texts, encodings, strict=True):
                ids[text] = np.array(encoding.ids, np.int32)
        return ids

    def _no_instruction(self) -> OptionError:
        name = self.tokenizer.name_or_path
        return OptionError("instruction", f"{name} is an encoder, which takes no instruction")


def clear_truncation_and_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Clear the truncation and padding of a `tokenizer.json` (MiniLM's cuts to 128 tokens)."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def read_template(tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
    """Return the template of a pair, taken from a real call of the tokenizer."""
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
