"""Rerankers that are language models: their prompt, their scoring tokens, and their head.

The score is the logit of one token at the end of the prompt, mostly minus that of another one. Both
are rows of the language model's output layer, so that the difference of the two rows is the head of
a sequence classifier with one label.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.model.files import model_file, model_json, model_object
from rerank_plugin.model.formats import INSTEAD, ModelFormat, architectures, logit_score
from rerank_plugin.model.head_modules import CROSS_ENCODER_FILE, TRANSFORMER_FILE, read_modules
from rerank_plugin.model.loaded import one_line_errors
from rerank_plugin.model.prompts import MAKERS, Prompt, chat_template, maker_of, rendered

#: The output layer of language models, and the head of sequence classifiers made of them.
OUTPUT, HEAD = "lm_head.weight", "score.weight"

#: The scoring tokens of a language model that becomes a reranker.
SCORING_TOKENS = ("yes", "no")

#: The task of a language model that becomes a reranker, and a default instruction.
TASK = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    "provided. Note that the answer can only be "
)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PAIR = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"

#: Options of a chat template that have no part in its text.
SIZE_OPTIONS = {"padding", "truncation", "max_length", "return_tensors", "restore_suffix"}


@dataclass(frozen=True)
class ScoringTokens:
    """The ids of the tokens whose logits make the score."""

    true: int
    #: The token whose logit is subtracted; none if the logit of the first is the score.
    false: int | None

    @classmethod
    def from_texts(cls, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str | None]) -> Self:
        """Return the ids of tokens by their texts.

        Raises:
            OptionError: a text is not one token.
        """
        true, false = (None if text is None else token_id(tokenizer, text) for text in texts)
        assert true is not None
        return cls(true, false)


def token_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the id of a text that is one token.

    Raises:
        OptionError: it is not.
    """
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise OptionError(
            "scoring_tokens",
            f"{text!r} is not one token of {tokenizer.name_or_path} but {len(ids)}",
        )
    return int(ids[0])


@dataclass(frozen=True)
class LanguageReranker:
    """A language model as a reranker: its prompt, and the tokens if it has no head of its own."""

    prompt: Prompt
    tokens: ScoringTokens | None
    #: Whether it was trained as one.
    is_trained: bool = True


def scores_without_training(
    source: str, config: PreTrainedConfig, revision: str | None = None
) -> bool:
    """Return whether a causal language model is a reranker: by its files, or by its name."""
    return (
        logit_score(source, revision) is not None or maker_of(source, config.model_type) is not None
    )


def language_reranker(
    source: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_format: ModelFormat,
    *,
    revision: str | None = None,
    scoring_tokens: tuple[str, str | None] | None = None,
    is_base: bool = False,
) -> LanguageReranker | None:
    """Return the prompt and the scoring tokens of a language model; None for an encoder.

    Args:
        source: A hub id or a folder.
        config: Its config.
        tokenizer: Its tokenizer.
        model_format: Its format.
        revision: Branch, tag or commit of a hub id.
        scoring_tokens: The tokens of a base model that is not a reranker.
        is_base: Whether it is trained, or gets an adapter: any language model will do.

    Raises:
        InputError: the prompt or the tokens are not known.
        OptionError: `scoring_tokens` are not tokens, or the model has its own or needs none.
    """
    if not model_format.is_causal:
        if scoring_tokens is not None:
            raise OptionError("scoring_tokens", f"{source} is an encoder, which has none")
        return None
    maker = maker_of(source, config.model_type)
    prompt = saved_prompt(source, tokenizer, revision)
    if prompt is None and maker is not None:
        prompt = maker.prompt
    if model_format == ModelFormat.CAUSAL_CLASSIFIER:
        if prompt is None:
            raise unknown_prompt(source, config)
        return LanguageReranker(prompt, None)
    score = logit_score(source, revision)
    if score is not None:
        if scoring_tokens is not None:
            raise OptionError("scoring_tokens", f"{source} has its own (modules.json)")
        if prompt is None:
            raise unknown_prompt(source, config)
        return LanguageReranker(prompt, checked_tokens(source, score, tokenizer))
    if maker is None and not is_base:
        raise unknown_prompt(source, config)
    names = scoring_tokens or (maker.tokens if maker else SCORING_TOKENS)
    tokens = ScoringTokens.from_texts(tokenizer, names)
    return LanguageReranker(
        prompt or new_prompt(tokenizer, names), tokens, is_trained=maker is not None
    )


def unknown_prompt(source: str, config: PreTrainedConfig) -> InputError:
    """Return the error for a language model whose prompt is not known."""
    names = ", ".join(architectures(config) or [config.model_type])
    return InputError(
        f"{source}: a language model ({names}) whose prompt for queries and documents is not known "
        "(its chat template has no roles 'query' and 'document', and its name none of "
        f"{', '.join(MAKERS)}): fine-tune it first (rerank-plugin train), or {INSTEAD}"
    )


def saved_prompt(
    source: str, tokenizer: PreTrainedTokenizerBase, revision: str | None = None
) -> Prompt | None:
    """Return the prompt in a model's chat template, if it has one for queries and documents."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or not template:
        return None
    transformer = model_object(source, TRANSFORMER_FILE, revision)
    options = (transformer.get("processing_kwargs") or {}).get("chat_template") or {}
    saved = model_object(source, CROSS_ENCODER_FILE, revision)
    instruction = (saved.get("prompts") or {}).get(saved.get("default_prompt_name"))
    prompt = Prompt(
        template,
        instruction=instruction or None,
        options={name: value for name, value in options.items() if name not in SIZE_OPTIONS},
    )
    if not prompt.has_roles(tokenizer):
        return None
    # ChatML renders any role: only a list of modules says that it is meant for pairs.
    is_meant = bool(read_modules(source, revision)) or not prompt.is_generic(tokenizer)
    return prompt if is_meant else None


def checked_tokens(
    source: str, score: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> ScoringTokens:
    """Return the scoring tokens of a `LogitScore` module.

    Raises:
        InputError: they are no ids of the tokenizer.
    """
    true: Any = score.get("true_token_id")
    false: Any = score.get("false_token_id")
    tokens = range(len(tokenizer))
    if true not in tokens or not (false is None or false in tokens):
        raise InputError(
            f"{source}: LogitScore has the tokens {true!r} and {false!r}, expected numbers below "
            f"{len(tokenizer)}"
        )
    return ScoringTokens(true, false)


def new_prompt(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, str | None]) -> Prompt:
    """Return the prompt of a language model that becomes a reranker.

    It is the model's own chat template, of the roles `system` and `user`, around a task and a pair;
    or the two alone for a model without a chat template.
    """
    answers = " or ".join(f'"{token}"' for token in tokens if token is not None)
    task = f"{TASK}{answers}."
    if not tokenizer.chat_template:
        start = tokenizer.bos_token or ""
        return Prompt(chat_template(f"{start}{task}\n{PAIR}\nAnswer: ", INSTRUCTION))
    messages = [{"role": "system", "content": task}, {"role": "user", "content": PAIR}]
    options = {"add_generation_prompt": True, "enable_thinking": False}
    try:
        text = rendered(tokenizer, messages, None, options)
    except InputError:
        # Some templates, such as Gemma's, have no system message.
        messages = [{"role": "user", "content": f"{task}\n{PAIR}"}]
        text = rendered(tokenizer, messages, None, options)
    if PAIR not in text:
        raise InputError(f"{tokenizer.name_or_path}: the chat template leaves the user's text out")
    return Prompt(chat_template(text, INSTRUCTION))


def set_head(
    model: PreTrainedModel, tokens: ScoringTokens, source: str, revision: str | None = None
) -> None:
    """Set the head of a model that was loaded from a language model, in place.

    Raises:
        InputError: the checkpoint has no output layer.
    """
    head: Any = model.get_submodule("score")
    if head.weight.is_meta:
        return  # there are no weights
    ids = [tokens.true] if tokens.false is None else [tokens.true, tokens.false]
    rows = output_rows(model, ids, source, revision).float()
    row = rows[:1] if tokens.false is None else rows[:1] - rows[1:]
    with torch.no_grad():
        head.weight.copy_(row)


def output_rows(
    model: PreTrainedModel, ids: list[int], source: str, revision: str | None
) -> Tensor:
    """Return rows of the output layer, `[ids, hidden]`."""
    if getattr(model.config, "final_logit_softcapping", None):
        raise InputError(
            f"{source}: its logits are capped (final_logit_softcapping), which is not supported"
        )
    file = checkpoint_file(source, OUTPUT, revision)
    if file is not None:
        from safetensors import safe_open

        with one_line_errors(source), safe_open(file, framework="pt") as tensors:
            if OUTPUT in tensors.keys():  # noqa: SIM118  (not a dictionary)
                stored = tensors.get_slice(OUTPUT)
                return torch.cat([stored[i : i + 1] for i in ids])
    if not model.config.tie_word_embeddings:
        raise InputError(f"{source}: {OUTPUT} not found in the checkpoint")
    embeddings: Any = model.get_input_embeddings()
    weight: Tensor = embeddings.weight.detach()
    return weight[ids]


def checkpoint_file(source: str, name: str, revision: str | None) -> Path | None:
    """Return the file of a checkpoint that would have a weight."""
    index, file = model_json(source, SAFE_WEIGHTS_INDEX_NAME, revision), SAFE_WEIGHTS_NAME
    if isinstance(index, dict):
        file = index.get("weight_map", {}).get(name)
        if file is None:
            return None
    return model_file(source, file, revision)
