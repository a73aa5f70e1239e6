"""Encode (query, document) pairs as token ids, in training and in serving alike."""

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rerank_plugin.arguments import LONG_DOCUMENTS
from rerank_plugin.engine.template import (
    EncodedPair,
    Ids,
    PairTemplate,
    prompt_template,
    read_template,
)
from rerank_plugin.errors import InputError, OptionError, invalid_choice
from rerank_plugin.inputs import Pair, instruction_of
from rerank_plugin.model.prompts import Prompt

logger = logging.getLogger(__name__)

#: The tokens that a window of a long document shares with the one before, half of it at most.
WINDOW_OVERLAP = 80

#: Templates that are kept, one for each instruction.
TEMPLATES = 1000

#: Texts that are tokenised at once, so that a long list is not copied as a whole.
TEXTS_AT_ONCE = 4096


class PairEncoder:
    """Encodes pairs of at most `max_length` tokens; every text of a call is tokenised once.

    In a longer pair the document is cut or read in windows, and not the query or the prompt; but a
    query longer than half of what the prompt leaves is cut to that, with one warning.

    Args:
        tokenizer: A tokenizer of the `tokenizers` library. The truncation and padding that some
            models ship with are cleared.
        max_length: The maximum length of a pair in tokens, special tokens and prompt included.
        option: The name of the option for `max_length`.
        long_documents: `cut` or `windows`, for `windows`.
        prompt: The prompt of a language model; None for an encoder.
        instruction: The instruction of pairs without one; default the prompt's own.

    Raises:
        OptionError: an option cannot be used with the tokenizer or the prompt.
        InputError: the tokenizer is not a fast one, or does not encode pairs.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        option: str = "max_length",
        long_documents: str = "cut",
        prompt: Prompt | None = None,
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
        self.prompt = prompt
        self.instruction = instruction or ""
        self._option = option
        clear_truncation_and_padding(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        #: The templates by instruction.
        self._templates: dict[str, PairTemplate] = {}
        self._warned = False
        # A template that cannot be used is an error before the first pair.
        self.template("")

    @property
    def takes_instruction(self) -> bool:
        """Return whether the model takes an instruction; an encoder does not."""
        return self.prompt is not None and self.prompt.takes_instruction(self.tokenizer)

    def template(self, instruction: str = "") -> PairTemplate:
        """Return the template of pairs with an instruction; without one the encoder's own.

        Raises:
            OptionError: the model takes no instruction, or there is no room for a document.
        """
        instruction = instruction or self.instruction
        template = self._templates.get(instruction)
        if template is None:
            template = self._read_template(instruction)
            # Other threads may clear and fill it at the same time.
            if len(self._templates) >= TEMPLATES:
                self._templates.clear()
            self._templates[instruction] = template
        return template

    def check_instruction(self, instruction: str, where: str = "") -> None:
        """Check that pairs can have an instruction.

        Args:
            instruction: The instruction; "" for the default.
            where: The file and the line that have it; without them it is an option.

        Raises:
            InputError: the model takes no instruction, or there is no room for a document.
        """
        try:
            self.template(instruction)
        except OptionError as error:
            if where and error.option == "instruction":
                raise InputError(f"{where}: field 'instruction': {error.problem}") from None
            raise

    def _read_template(self, instruction: str) -> PairTemplate:
        name = self.tokenizer.name_or_path
        if self.prompt is None:
            if instruction:
                raise OptionError(
                    "instruction", f"{name} is an encoder, which takes no instruction"
                )
            template = read_template(self.tokenizer)
            needed = 2 * (template.special_tokens + 1)
        else:
            texts = self.prompt.texts(self.tokenizer, instruction)
            template = prompt_template(texts, self._ids)
            needed = template.prompt_tokens + 2
            if template.is_whole and self.long_documents == "windows":
                problem = f"windows are not supported with the tokenizer of {name}"
                raise OptionError("long_documents", problem)
        if self.max_length < needed:
            problem = f"{self.max_length} leaves no room for a document"
            if self.prompt:
                problem += f" beside the prompt of {template.prompt_tokens} tokens"
            raise OptionError(self._option, problem)
        return template

    @property
    def query_limit(self) -> int:
        """Return the longest query in tokens, if a pair is too long."""
        return (self.max_length - self.template().prompt_tokens) // 2

    @property
    def pad_id(self) -> int:
        """Return the id that fills a padded batch."""
        return int(self.tokenizer.pad_token_id or 0)

    def encode(self, pairs: Sequence[Pair]) -> list[EncodedPair]:
        """Encode pairs, in their order, cut to `max_length`."""
        return [windows[0] for windows in self._encode(pairs, first_only=True)]

    def windows(self, pairs: Sequence[Pair]) -> list[list[EncodedPair]]:
        """Encode pairs, in their order, a long document in as many windows as it needs.

        Windows overlap and have full length; with `long_documents="cut"` there is one.
        """
        return self._encode(pairs, first_only=self.long_documents == "cut")

    def first_tokens(self, text: str, count: int) -> str:
        """Return a text up to the end of its first tokens."""
        tokens = self._backend.encode(text, add_special_tokens=False)
        return text if len(tokens) <= count else text[: tokens.offsets[count - 1][1]]

    def lengths(self, pairs: Sequence[Pair]) -> Ids:
        """Return the lengths of pairs before anything is cut, int32 `[pairs]`."""
        texts, ids = self._tokenize(pairs)
        prompts = [self.template(instruction_of(pair)).special_tokens for pair in pairs]
        lengths = [
            len(ids[query]) + len(ids[document]) + prompt
            for (query, document), prompt in zip(texts, prompts, strict=True)
        ]
        return np.array(lengths, np.int32)

    def _encode(self, pairs: Sequence[Pair], *, first_only: bool) -> list[list[EncodedPair]]:
        texts, ids = self._tokenize(pairs)
        encoded = []
        for pair, (query, document) in zip(pairs, texts, strict=True):
            template = self.template(instruction_of(pair))
            room = self.max_length - template.special_tokens - len(ids[query])
            if len(ids[document]) <= room:
                encoded.append([template.join(ids[query], ids[document])])
            else:
                encoded.append(self._cut(pair, template, ids[query], ids[document], first_only))
        return encoded

    def _cut(
        self, pair: Pair, template: PairTemplate, query: Ids, document: Ids, first_only: bool
    ) -> list[EncodedPair]:
        """Return the windows of a pair that is too long, all or the first only."""
        query, document = self._with_short_query(pair, template, query, document)
        room = self.max_length - template.special_tokens - len(query) - len(template.document_end)
        if first_only:
            return [template.join(query, document[:room], is_cut=True)]
        if template.prompt is not None:
            (document,) = self._ids([template.prompt.document[0] + pair[1]])
        last = max(0, len(document) - room)
        step = room - min(WINDOW_OVERLAP, room // 2)
        starts = [*range(0, last, step), last]
        windows = (document[start : start + room] for start in starts)
        return [template.join(query, window, is_cut=True) for window in windows]

    def _with_short_query(
        self, pair: Pair, template: PairTemplate, query: Ids, document: Ids
    ) -> tuple[Ids, Ids]:
        """Return the ids of a pair, those of a long query cut to half of the room."""
        limit = (self.max_length - template.prompt_tokens) // 2
        if template.prompt is None:
            self._warn_of_long_query(len(query), limit)
            return query[:limit], document
        # The text is cut, as its last token may be part of the prompt's next one.
        text = self.first_tokens(pair[0], limit)
        if text == pair[0]:
            return query, document
        self._warn_of_long_query(len(self._ids([pair[0]])[0]), limit)
        query, document = self._ids(template.texts(text, pair[1]))
        return query, document

    def _warn_of_long_query(self, tokens: int, limit: int) -> None:
        if tokens > limit and not self._warned:
            self._warned = True
            logger.warning(
                "a query of %d tokens is cut to %d, half of the room that max_length %d leaves "
                "(warned once)",
                tokens,
                limit,
                self.max_length,
            )

    def _tokenize(self, pairs: Sequence[Pair]) -> tuple[list[tuple[str, str]], dict[str, Ids]]:
        """Return the texts of each pair in its template, and the ids of every distinct text."""
        texts = [self.template(instruction_of(pair)).texts(pair[0], pair[1]) for pair in pairs]
        distinct = list(dict.fromkeys(text for pair in texts for text in pair))
        ids: dict[str, Ids] = {}
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            batch = distinct[start : start + TEXTS_AT_ONCE]
            ids.update(zip(batch, self._ids(batch), strict=True))
        return texts, ids

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of texts, without special tokens of the tokenizer's own."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            raise InputError("a query or a document is not valid Unicode") from None
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def clear_truncation_and_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Clear the truncation and padding of a `tokenizer.json` (MiniLM's cuts to 128 tokens)."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
