"""Loading a cross-encoder from a hub id, a folder or a LoRA adapter folder."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from rerank_plugin.adapters import base_of, merge
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.families import usable_positions
from rerank_plugin.head import head_names, run_head_in_float32
from rerank_plugin.loaded import LoadedModel, one_line_errors, quiet_transformers
from rerank_plugin.paths import expanded
from rerank_plugin.settings import is_adapter

#: The longest pair in tokens, where neither the user nor the model folder says.
DEFAULT_MAX_LENGTH = 512

#: Any of them is a tokenizer that transformers can make a fast one of.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


def load_model(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a cross-encoder with one score a pair; an adapter is merged into its base.

    A plain encoder gets a fresh head of one label, drawn from torch's current seed.

    Args:
        name: A hub id, a folder, or an adapter folder, which names its base.
        adapter: An adapter folder for the model.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model.

    Raises:
        InputError: no model there, no safetensors weights, no tokenizer, more than two labels, or
            an adapter for another base or without its head.
    """
    folder = expanded(name)
    if is_adapter(folder):
        if adapter is not None:
            raise InputError(f"{name}: an adapter itself, which cannot carry another: merge it")
        base = base_of(folder)
        try:
            check_folder(base)
        except InputError as error:
            raise InputError(f"{folder}: the base of the adapter: {error}") from None
        return load_model(base, adapter=folder, trust_remote_code=trust_remote_code)
    source = str(folder) if folder.is_dir() else str(name)
    check_folder(name)
    with one_line_errors(source), quiet_transformers():
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(source, **options)
        config.num_labels = count_labels(source, config)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    heads = tuple(f"{head}." for head in head_names(model))
    lost = sorted(key for key in info["missing_keys"] if not key.startswith(heads))
    if lost:
        raise InputError(
            f"{source}: {len(lost)} weights are missing behind the head, such as {lost[0]}: "
            f"no checkpoint of a {config.model_type} model"
        )
    run_head_in_float32(model)
    loaded = LoadedModel(model.eval(), tokenizer, tuple(sorted(info["missing_keys"])))
    if adapter is None:
        return loaded
    own = expanded(adapter)
    merged = merge(loaded, own, name)
    if not (own / "tokenizer_config.json").is_file():
        return merged
    return replace(merged, tokenizer=load_tokenizer(own, trust_remote_code=trust_remote_code))


def load_config(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a hub id or a folder, or of an adapter folder's base."""
    folder = expanded(name)
    if is_adapter(folder):
        return load_config(base_of(folder), trust_remote_code=trust_remote_code)
    with one_line_errors(str(name)), quiet_transformers():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(name), trust_remote_code=trust_remote_code
        )
    return config


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id, a folder or an adapter folder."""
    source = str(expanded(name)) if expanded(name).is_dir() else str(name)
    with one_line_errors(source), quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code
        )
    return tokenizer


def check_folder(name: str | Path) -> None:
    """Say what a model folder lacks, before transformers guesses."""
    folder = expanded(name)
    if not folder.is_dir():
        looks_like_a_path = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
        if folder.exists() or looks_like_a_path:
            raise InputError(f"{name}: no model folder there")
        return
    if is_adapter(folder):
        return
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json, so no Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        how = " (pickled weights are not loaded: save them as safetensors)" if pickled else ""
        raise InputError(f"{folder}: no model weights, expected model.safetensors{how}")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(f"{folder}: no tokenizer, expected tokenizer.json beside the weights")


def count_labels(source: str, config: PreTrainedConfig) -> int:
    """How many labels to load: the checkpoint's own, one for an encoder without a head."""
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        return 1
    labels = int(config.num_labels or 1)
    if labels > 2:
        raise InputError(f"{source}: a classifier with {labels} labels, a reranker has one or two")
    return labels


def resolve_max_length(
    max_length: int | None, *, default: int, config: PreTrainedConfig, option: str
) -> int:
    """The longest pair in tokens; the default is lowered to what the model can read.

    Raises:
        OptionError: more than the model has positions.
    """
    positions = usable_positions(config) or sys.maxsize
    if max_length is None:
        return min(default, positions)
    if max_length > positions:
        raise OptionError(option, f"{max_length} is more than the model's {positions} positions")
    return max_length
