"""Prompts of rerankers that are language models: the texts around a query and a document.

A prompt is a chat template with the roles `query` and `document`, as sentence-transformers saves
it, and `system` for an instruction. It is rendered once around two markers, and cut there. Models
whose repository has no such template are in the table `MAKERS`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rerank_plugin.errors import InputError, OptionError

#: Texts that a template is rendered with, to find where it puts what it is given.
QUERY, DOCUMENT, INSTRUCTION = "markedquery", "markeddocument", "markedinstruction"

#: Reads the message of a role in a template.
READ_ROLE = (
    '{{%- set {name} = messages | selectattr("role", "equalto", "{role}") '
    '| map(attribute="content") | first | default({default}, true) -%}}'
)

#: Adds a message to a template, before the others, if there is no system message. Templates are
#: rendered without the line feed after a block.
ADD_MESSAGE = (
    '{{%- if messages[0]["role"] != "system" -%}}{{%- set messages = [{message}] + messages -%}}'
    "{{%- endif %}}\n"
)


class NoRolesError(InputError):
    """A chat template leaves a query or a document out."""


@dataclass(frozen=True)
class PromptTexts:
    """The texts of a prompt, in the pieces that a tokenizer gets."""

    #: Tokenised one by one, before the query.
    prefix: tuple[str, ...]
    #: Before and after the query, tokenised together with it.
    query: tuple[str, str]
    #: Tokenised one by one, between query and document.
    middle: tuple[str, ...]
    #: Before and after the document, tokenised together with it.
    document: tuple[str, str]
    #: Tokenised one by one, after the document.
    suffix: tuple[str, ...]
    #: Whether white space around query and document is left out.
    strips: bool = False


@dataclass(frozen=True)
class Prompt:
    """A prompt, with its texts for each instruction."""

    #: Jinja: renders messages of the roles `query`, `document` and `system` (the instruction).
    chat_template: str
    #: The instruction if none is given; None if the template has one of its own, or needs none.
    instruction: str | None = None
    #: Values that the template is rendered with.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Where its maker tokenises in pieces, these are they, with `{query}`, `{document}` and
    #: `{instruction}` in them. What we save is tokenised as a whole, as other libraries do.
    pieces: tuple[str, ...] | None = None

    @property
    def as_saved(self) -> "Prompt":
        """Return the same prompt as other libraries read it from a saved folder."""
        return replace(self, pieces=None)

    def texts(
        self, tokenizer: PreTrainedTokenizerBase, instruction: str | None = None
    ) -> PromptTexts:
        """Return the texts of the prompt.

        Args:
            tokenizer: The model's tokenizer.
            instruction: Default: the prompt's own.

        Raises:
            OptionError: the prompt has no room for an instruction.
        """
        instruction = instruction or self.instruction
        if instruction and not self.takes_instruction(tokenizer):
            raise OptionError("instruction", "the model's prompt has no room for one")
        if self.pieces is not None:
            return from_pieces(self.pieces, instruction)
        return from_rendering(*self._rendered(tokenizer, instruction), tokenizer)

    def with_built_in_instruction(
        self, instruction: str, tokenizer: PreTrainedTokenizerBase
    ) -> "Prompt":
        """Return the prompt with an instruction in its template, for pairs without another one.

        Raises:
            OptionError: the prompt has no room for an instruction.
        """
        self.texts(tokenizer, instruction)
        is_flat = self.message_format(tokenizer) == "flat"
        content = instruction if is_flat else [{"type": "text", "text": instruction}]
        message = json.dumps({"role": "system", "content": content}, ensure_ascii=False)
        template = ADD_MESSAGE.format(message=message) + self.chat_template
        return replace(self, chat_template=template, instruction=None, pieces=None)

    def has_roles(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether the template has both a query and a document in what it renders."""
        try:
            self._rendered(tokenizer, None)
        except NoRolesError:
            return False
        return True

    def is_generic(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether the template renders any role, so that it was not made for pairs."""
        messages = [{"role": "other", "content": QUERY}, {"role": "another", "content": DOCUMENT}]
        try:
            text = rendered(tokenizer, messages, self.chat_template, self.options)
        except NoRolesError:
            return False
        return QUERY in text and DOCUMENT in text

    def takes_instruction(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether an instruction is part of what is rendered."""
        before, between, after, _ = self._rendered(tokenizer, INSTRUCTION)
        return INSTRUCTION in before + between + after

    def message_format(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return how the template reads messages: as texts (`flat`), or lists (`structured`).

        Raises:
            NoRolesError: in neither way it has a query and a document once each.
        """
        for name in ("flat", "structured"):
            text = self._render(tokenizer, None, (QUERY, DOCUMENT), name)
            if text.count(QUERY) == text.count(DOCUMENT) == 1:
                return name
        raise NoRolesError(
            f"{tokenizer.name_or_path}: the chat template does not have a query and a document "
            "once each: it needs messages of the roles 'query' and 'document'"
        )

    def _rendered(
        self, tokenizer: PreTrainedTokenizerBase, instruction: str | None
    ) -> tuple[str, str, str, bool]:
        """Return the texts before, between and after query and document, and whether it strips."""
        name = self.message_format(tokenizer)
        plain = self._render(tokenizer, instruction, (QUERY, DOCUMENT), name)
        if plain.index(QUERY) > plain.index(DOCUMENT):
            raise InputError(
                f"{tokenizer.name_or_path}: the chat template has the document before the query, "
                "which is not supported"
            )
        before, between, after = re.split(f"{QUERY}|{DOCUMENT}", plain)
        # White space around the markers shows whether the template keeps it.
        spaced = self._render(tokenizer, instruction, (f" {QUERY} ", f" {DOCUMENT} "), name)
        strips = spaced == plain
        if not strips and spaced != f"{before} {QUERY} {between} {DOCUMENT} {after}":
            raise InputError(
                f"{tokenizer.name_or_path}: the chat template changes the query or the document, "
                "which is not supported"
            )
        return before, between, after, strips

    def _render(
        self,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str | None,
        pair: tuple[str, str],
        message_format: str,
    ) -> str:
        """Return a pair as the template renders it."""
        texts, structured = [("query", pair[0]), ("document", pair[1])], message_format != "flat"
        if instruction:
            texts.insert(0, ("system", instruction))
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
            for role, text in texts
        ]
        return rendered(tokenizer, messages, self.chat_template, self.options)


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    chat_template: str | None,
    options: Mapping[str, Any],
) -> str:
    """Return messages as the text of a chat template.

    Raises:
        InputError: the template does not take them.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=chat_template, **options
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise NoRolesError(
            f"{tokenizer.name_or_path}: the chat template cannot be used: {error}"
        ) from None


def from_rendering(
    before: str, between: str, after: str, strips: bool, tokenizer: PreTrainedTokenizerBase
) -> PromptTexts:
    """Return the texts of a rendered prompt, cut where a tokenizer cuts too.

    Special tokens are tokenised on their own, so a text may be cut beside them. Else the text
    between query and document is cut before its last white space, which tokenizers keep with what
    comes after it.
    """
    special = special_tokens(tokenizer)
    prefix, query_left = cut_after_last(special, before)
    document_right, suffix = cut_before_first(special, after)
    query_right, rest = cut_before_first(special, between)
    if rest:
        middle, document_left = cut_after_last(special, rest)
    else:
        middle, query_right = "", between.rstrip()
        document_left = between[len(query_right) :]
    return PromptTexts(
        prefix=tuple(filter(None, [prefix])),
        query=(query_left, query_right),
        middle=tuple(filter(None, [middle])),
        document=(document_left, document_right),
        suffix=tuple(filter(None, [suffix])),
        strips=strips,
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern of the tokens that are never part of another one."""
    added = tokenizer.added_tokens_decoder.values()
    names = sorted({str(token.content) for token in added}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def cut_after_last(special: re.Pattern[str], text: str) -> tuple[str, str]:
    """Return a text in two parts, cut after its last special token."""
    ends = [match.end() for match in special.finditer(text)]
    end = ends[-1] if ends else 0
    return text[:end], text[end:]


def cut_before_first(special: re.Pattern[str], text: str) -> tuple[str, str]:
    """Return a text in two parts, cut before its first special token."""
    match = special.search(text)
    start = match.start() if match else len(text)
    return text[:start], text[start:]


def from_pieces(pieces: tuple[str, ...], instruction: str | None) -> PromptTexts:
    """Return the texts of a prompt that is tokenised in pieces."""
    at_query = next(i for i, piece in enumerate(pieces) if "{query}" in piece)
    at_document = next(i for i, piece in enumerate(pieces) if "{document}" in piece)
    query_left, query_right = pieces[at_query].split("{query}")
    document_left, document_right = pieces[at_document].split("{document}")
    return PromptTexts(
        prefix=pieces[:at_query],
        query=(fill_in_instruction(query_left, instruction), query_right),
        middle=pieces[at_query + 1 : at_document],
        document=(document_left, document_right),
        suffix=pieces[at_document + 1 :],
    )


#: A part of a piece that is left out without an instruction, in square brackets.
OPTIONAL = re.compile(r"\[([^\[\]]*\{instruction\}[^\[\]]*)\]")


def fill_in_instruction(text: str, instruction: str | None) -> str:
    """Return a piece with its instruction."""
    text = OPTIONAL.sub(r"\1" if instruction else "", text)
    return text.replace("{instruction}", instruction or "")


@dataclass(frozen=True)
class Maker:
    """A family of rerankers by its maker: what their repositories do not say."""

    #: Parts of the names of its models, in small letters.
    names: tuple[str, ...]
    #: The `model_type` of their config.
    model_type: str
    #: The tokens whose logits are compared; the second may be None.
    tokens: tuple[str, str | None]
    #: The prompt; a part in square brackets is left out without an instruction.
    pieces: tuple[str, ...]
    instruction: str | None = None
    #: Whether the pieces are tokenised one by one.
    apart: bool = False

    @property
    def prompt(self) -> Prompt:
        """Return the prompt of these models."""
        template = chat_template("".join(self.pieces), self.instruction)
        return Prompt(template, pieces=self.pieces if self.apart else None)


def chat_template(text: str, instruction: str | None = None) -> str:
    """Return the chat template of a prompt: a text with `{query}`, `{document}`, `{instruction}`.

    A part in square brackets around an instruction is left out without one.

    Args:
        text: The text.
        instruction: The instruction where there is no system message.
    """
    roles = (("instruction", "system"), ("query", "query"), ("document", "document"))
    defaults = {"instruction": instruction or ""}
    reads = [
        READ_ROLE.format(name=name, role=role, default=json.dumps(defaults.get(name, "")))
        for name, role in roles
    ]
    parts = []
    for number, part in enumerate(OPTIONAL.split(text)):
        expression = " ~ ".join(
            piece[1:-1]
            if piece in ("{query}", "{document}", "{instruction}")
            else json.dumps(piece)
            for piece in re.split(r"(\{(?:query|document|instruction)\})", part)
            if piece
        )
        if expression:
            parts.append(f'(({expression}) if instruction else "")' if number % 2 else expression)
    return "".join(reads) + "{{- " + " ~ ".join(parts) + " -}}"


#: Prompts are parts of the models: every character counts.
MAKERS = {
    "qwen3-reranker": Maker(
        names=("qwen3-reranker",),
        model_type="qwen3",
        tokens=("yes", "no"),
        pieces=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
            "Query and the Instruct provided. Note that the answer can only be "
            '"yes" or "no".<|im_end|>\n<|im_start|>user\n',
            "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
    "bge-reranker-v2-gemma": Maker(
        names=("bge-reranker-v2-gemma",),
        model_type="gemma",
        tokens=("Yes", None),
        pieces=(
            "<bos>",
            "A: {query}",
            "\n",
            "B: {document}",
            "\n",
            "Given a query A and a passage B, determine whether the passage contains an answer to "
            "the query by providing a prediction of either 'Yes' or 'No'.",
        ),
        apart=True,
    ),
    "mxbai-rerank-v2": Maker(
        names=("mxbai-rerank-base-v2", "mxbai-rerank-large-v2"),
        model_type="qwen2",
        tokens=("1", "0"),
        pieces=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\n",
            "[instruction: {instruction}\n]query: {query}",
            "\n",
            "document: {document}",
            "\n",
            "You are a search relevance expert who evaluates how well documents match search "
            "queries. For each query-document pair, carefully analyze the semantic relationship "
            "between them, then provide your binary relevance judgment (0 for not relevant, 1 for "
            "relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        apart=True,
    ),
}


def maker_of(source: str, model_type: str) -> Maker | None:
    """Return the maker of a model by its type and the last part of its name."""
    name = source.rstrip("/").rpartition("/")[2].lower()
    for maker in MAKERS.values():
        if maker.model_type == model_type and any(part in name for part in maker.names):
            return maker
    return None
