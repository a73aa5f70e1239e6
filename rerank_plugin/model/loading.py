"""Load a cross-encoder from a hub id, a folder or a LoRA adapter folder."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.adapters import (
    base_of,
    check_adapter_folder,
    check_has_weights,
    merge_into_base,
)
from rerank_plugin.model.causal import pool_last_token
from rerank_plugin.model.checks import (
    check_folder,
    check_head,
    check_stored,
    check_vocabulary,
    check_weights,
    lacks_head,
    no_head,
)
from rerank_plugin.model.families import family_of, usable_positions
from rerank_plugin.model.files import model_file
from rerank_plugin.model.formats import ModelFormat, check_tokenizer, find_format
from rerank_plugin.model.head import run_head_in_float32
from rerank_plugin.model.head_modules import encoder_folder
from rerank_plugin.model.language_models import (
    HEAD,
    LanguageReranker,
    language_reranker,
    saved_prompt,
    set_head,
)
from rerank_plugin.model.loaded import (
    LoadedModel,
    one_line_errors,
    quiet_transformers,
    read_pretrained,
)
from rerank_plugin.model.modular import load_modular, modular_structure
from rerank_plugin.model.prompts import Prompt
from rerank_plugin.model.settings import is_adapter

#: The maximum length of a pair in tokens, if neither the user nor the model folder sets it.
DEFAULT_MAX_LENGTH = 512

#: The same with a prompt, which may have a hundred tokens.
DEFAULT_PROMPT_MAX_LENGTH = 1024


def load_model(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    new_head: bool = False,
    scoring_tokens: tuple[str, str | None] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    structure_only: bool = False,
) -> LoadedModel:
    """Load a cross-encoder with one score a pair; an adapter is merged into its base.

    Args:
        name: A hub id, a folder, or an adapter folder, which names its base.
        adapter: An adapter folder for the model.
        new_head: Give an encoder without a scoring head a newly initialised one of one label, drawn
            from torch's current seed: to be trained, or replaced by an adapter's. Any language
            model will do then.
        scoring_tokens: The tokens whose logits make the score of a language model that is not a
            reranker; the second may be None; default `SCORING_TOKENS`.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model.
        structure_only: Describe the model, which cannot score then: its weights are on torch's meta
            device, and an adapter is not merged. Weights are compared with those in the folder or
            the hub's cache, and never downloaded.

    Raises:
        InputError: no such model, a format that is not supported, no safetensors weights, weights
            that are missing or not used, no scoring head, a tokenizer of another model, more than
            two labels, or an adapter for another base or without its head.
    """
    folder = expanded(name)
    if is_adapter(folder):
        if adapter is not None:
            raise InputError(
                f"{name}: an adapter, which cannot have another adapter; merge it first"
            )
        with base_errors(folder):
            base = base_of(folder)
            check_folder(base)
        return load_model(
            base,
            adapter=folder,
            trust_remote_code=trust_remote_code,
            structure_only=structure_only,
        )
    source = str(folder) if folder.is_dir() else str(name)
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    model_format = find_format(source, config, revision)
    is_base = new_head or adapter is not None
    if not is_base:
        check_head(source, model_format)
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    check_tokenizer(source, tokenizer, model_format)
    reranker = language_reranker(
        source,
        config,
        tokenizer,
        model_format,
        revision=revision,
        scoring_tokens=scoring_tokens,
        is_base=is_base,
    )
    read = partial(
        read_structure if structure_only else read_weights,
        source,
        config,
        model_format,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    loaded = checked_model(source, config, tokenizer, model_format, read)
    if reranker is not None:
        loaded = as_language_reranker(loaded, reranker, source, revision)
    if adapter is not None:
        add = with_adapter_files if structure_only else with_adapter
        return add(loaded, expanded(adapter), name, trust_remote_code=trust_remote_code)
    if loaded.has_new_head and not new_head:
        raise no_head(source, loaded.new_weights)
    return loaded


def checked_model(
    source: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_format: ModelFormat,
    read: Callable[[], tuple[PreTrainedModel, dict[str, Any]]],
) -> LoadedModel:
    """Return a model with a head of float32, checked against its checkpoint and its tokenizer.

    Args:
        source: A hub id or a folder.
        config: Its config; a head that the checkpoint lacks gets one label.
        tokenizer: Its tokenizer.
        model_format: Its format.
        read: Returns the model and transformers' report of its loading, by the config.
    """
    if model_format in (ModelFormat.ENCODER, ModelFormat.LANGUAGE_MODEL):
        config.num_labels = 1
    model, info = read()
    if not config.architectures and lacks_head(model, info) and config.num_labels != 1:
        config.num_labels = 1
        model, info = read()
    check_weights(source, model, info)
    check_vocabulary(source, model, tokenizer)
    run_head_in_float32(model)
    return LoadedModel(model.eval(), tokenizer, tuple(sorted(info["missing_keys"])))


def with_adapter(
    loaded: LoadedModel, folder: Path, name: str | Path, *, trust_remote_code: bool
) -> LoadedModel:
    """Return a base, loaded by its name, with an adapter merged, and the adapter's tokenizer."""
    merged = merge_into_base(loaded, folder, name, load_base)
    return with_tokenizer(merged, folder, trust_remote_code=trust_remote_code)


def with_adapter_files(
    loaded: LoadedModel, folder: Path, name: str | Path, *, trust_remote_code: bool
) -> LoadedModel:
    """Return a base, loaded by its name, with the tokenizer of an adapter that is not merged."""
    check_adapter_folder(folder)
    check_has_weights(folder, loaded.new_weights, str(name))
    return with_tokenizer(loaded, folder, trust_remote_code=trust_remote_code)


def with_tokenizer(loaded: LoadedModel, folder: Path, *, trust_remote_code: bool) -> LoadedModel:
    """Return a model with the tokenizer and the prompt in an adapter's folder, if there are any."""
    if not (folder / "tokenizer_config.json").is_file():
        return loaded
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    check_vocabulary(str(folder), loaded.model, tokenizer)
    prompt = saved_prompt(str(folder), tokenizer) if loaded.prompt else None
    return replace(loaded, tokenizer=tokenizer, prompt=prompt or loaded.prompt)


def with_prompt_of(loaded: LoadedModel, adapters: Sequence[Path]) -> LoadedModel:
    """Return a base with the prompt that its adapters were trained with.

    Raises:
        InputError: they were trained with different ones.
    """
    if loaded.prompt is None:
        return loaded
    prompts = {}
    for folder in adapters:
        if (folder / "tokenizer_config.json").is_file():
            prompt = saved_prompt(str(folder), load_tokenizer(folder))
            if prompt is not None:
                prompts[prompt.chat_template] = prompt
    if len(prompts) > 1:
        raise InputError("adapters: they were trained with different prompts; load them apart")
    return replace(loaded, prompt=next(iter(prompts.values()), loaded.prompt))


def as_language_reranker(
    loaded: LoadedModel, reranker: LanguageReranker, source: str, revision: str | None
) -> LoadedModel:
    """Return a language model, loaded as a sequence classifier, that scores its last tokens."""
    pool_last_token(loaded.model)
    loaded = replace(loaded, prompt=reranker.prompt, is_reranker=reranker.is_trained)
    if reranker.tokens is None:
        return loaded
    set_head(loaded.model, reranker.tokens, source, revision)
    new = tuple(name for name in loaded.new_weights if name != HEAD)
    return replace(loaded, new_weights=new, derived_weights=(HEAD,))


def load_base(folder: Path) -> LoadedModel:
    """Load the base of an adapter; a scoring head that it lacks is newly initialised."""
    return load_model(folder, new_head=True)


def check_model(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> None:
    """Check a model that will score as far as possible without loading its weights.

    Raises:
        InputError: no such model, or one without a scoring head.
    """
    folder = expanded(name)
    config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
    if not is_adapter(folder):
        source = str(folder) if folder.is_dir() else str(name)
        model_format = find_format(source, config, revision)
        check_head(source, model_format)
        if model_format.is_causal:
            tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
            language_reranker(source, config, tokenizer, model_format, revision=revision)


def load_config(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Return the config of a hub id or a folder, or of an adapter folder's base.

    Raises:
        InputError: no such model, or one in a format that is not supported.
    """
    folder = expanded(name)
    if is_adapter(folder):
        with base_errors(folder):
            return load_config(base_of(folder), trust_remote_code=trust_remote_code)
    check_folder(name)
    source = str(folder) if folder.is_dir() else str(name)
    with one_line_errors(source), quiet_transformers():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source,
            subfolder=encoder_folder(source, revision),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        find_format(source, config, revision)
    for option, value in family_of(config).config.items():
        setattr(config, option, value)
    return config


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a hub id, a folder or an adapter folder."""
    folder = expanded(name)
    source = str(folder) if folder.is_dir() else str(name)
    if folder.is_dir():
        check_stored(folder)
    with one_line_errors(source), quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source,
            subfolder=encoder_folder(source, revision),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    return tokenizer


def read_weights(
    source: str,
    config: PreTrainedConfig,
    model_format: ModelFormat,
    *,
    revision: str | None,
    **options: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model with its weights in float32, and transformers' report of its loading.

    Args:
        source: A hub id or a folder.
        config: Its config.
        model_format: Its format.
        revision: Branch, tag or commit of a hub id.
        **options: Other options of `from_pretrained`.
    """
    if model_format == ModelFormat.MODULAR_ENCODER:
        return load_modular(source, config, revision=revision, **options)
    check_labels(source, config)
    return read_pretrained(
        AutoModelForSequenceClassification, source, config, revision=revision, **options
    )


def read_structure(
    source: str,
    config: PreTrainedConfig,
    model_format: ModelFormat,
    *,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model on the meta device, and the report of its loading; nothing is downloaded.

    The weights are read, if only for their names and shapes, where accelerate is not installed.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if has_weights(source, revision):
        unread = {"device_map": "meta"} if find_spec("accelerate") else {}
        return read_weights(source, config, model_format, **options, **unread)
    check_labels(source, config)
    with torch.device("meta"), one_line_errors(source), quiet_transformers():
        if model_format == ModelFormat.MODULAR_ENCODER:
            model: PreTrainedModel = modular_structure(source, config, **options)
        else:
            model = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=trust_remote_code
            )
    return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}


def has_weights(source: str, revision: str | None) -> bool:
    """Return whether the weights of a model are in its folder, or in the hub's cache."""
    folder = encoder_folder(source, revision)
    files = [str(PurePosixPath(folder, n)) for n in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
    return any(model_file(source, file, revision, local_files_only=True) for file in files)


def check_labels(source: str, config: PreTrainedConfig) -> None:
    """Check that a classifier has one or two labels.

    Raises:
        InputError: it has more.
    """
    labels = int(config.num_labels or 1)
    if labels > 2:
        raise InputError(f"{source}: a classifier with {labels} labels; a reranker has one or two")


@contextmanager
def base_errors(folder: Path) -> Iterator[None]:
    """Let an error say that it is about the base of an adapter."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{folder}: the base of the adapter: {error}") from None


def resolve_max_length(
    max_length: int | None,
    *,
    saved: int | None = None,
    prompt: Prompt | None,
    config: PreTrainedConfig,
    option: str,
) -> int:
    """Return the maximum length of a pair; the default is lowered to the model's positions.

    Args:
        max_length: The length that the user sets, if any.
        saved: The length in the settings of the model folder, if any.
        prompt: The model's prompt, if it has one.
        config: The model's config.
        option: The name of the option that sets the length.

    Raises:
        OptionError: the model has fewer positions.
    """
    positions = usable_positions(config) or sys.maxsize
    if max_length is None:
        default = DEFAULT_MAX_LENGTH if prompt is None else DEFAULT_PROMPT_MAX_LENGTH
        return min(saved or default, positions)
    if max_length > positions:
        raise OptionError(option, f"{max_length} is more than the model's {positions} positions")
    return max_length
