"""Loading a cross-encoder from a hub id, a folder or a LoRA adapter folder."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.families import usable_positions
from rerank_plugin.head import head_names, run_head_in_float32

#: What transformers, peft and safetensors raise for a model that they cannot load.
LOADING_ERRORS = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)

ADAPTER_CONFIG = "adapter_config.json"

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


@dataclass(frozen=True)
class LoadedModel:
    """A cross-encoder in float32 on the CPU, its tokenizer, and which weights were not loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    #: Names of the weights that the checkpoint lacks and that were drawn at random.
    fresh_weights: tuple[str, ...]

    @property
    def has_fresh_head(self) -> bool:
        """Whether the head is random, so that scores mean nothing before training."""
        return bool(self.fresh_weights)


def load_model(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load a cross-encoder with one score a pair; an adapter folder is merged into its base.

    A plain encoder gets a fresh head of one label, drawn from torch's current seed.

    Raises:
        InputError: no model there, no safetensors weights, no tokenizer, more than two labels, or
            an adapter without its head.
    """
    folder = Path(name).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return load_adapter(folder, trust_remote_code=trust_remote_code)
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
    return LoadedModel(model.eval(), tokenizer, tuple(sorted(info["missing_keys"])))


def load_config(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a hub id or a folder, or of an adapter folder's base."""
    folder = Path(name).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return load_config(adapter_base(folder), trust_remote_code=trust_remote_code)
    with one_line_errors(str(name)), quiet_transformers():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(name), trust_remote_code=trust_remote_code
        )
    return config


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id, a folder or an adapter folder."""
    source = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else str(name)
    with one_line_errors(source), quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code
        )
    return tokenizer


def load_adapter(folder: Path, *, trust_remote_code: bool = False) -> LoadedModel:
    """Load a LoRA adapter's base, put the adapter on it and merge the two."""
    from peft import PeftModel
    from safetensors import safe_open

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise InputError(f"{folder}: the adapter has no adapter_model.safetensors")
    base = adapter_base(folder)
    # The fresh head that a plain encoder gets is replaced by the adapter's: where the adapter
    # has none, scores would be random.
    loaded = load_model(base, trust_remote_code=trust_remote_code)
    with one_line_errors(str(folder)), safe_open(weights, framework="pt") as file:
        saved = set(file.keys())
    for name in loaded.fresh_weights:
        if not any(key.endswith(f".{name}") for key in saved):
            raise InputError(f"{folder}: neither the adapter nor its base {base} has {name}")
    with one_line_errors(str(folder)), quiet_transformers():
        merged = PeftModel.from_pretrained(loaded.model, str(folder)).merge_and_unload()
        # PEFT freezes what it wraps; a merged model can be trained like any other.
        merged.requires_grad_(True)
        own = folder if (folder / "tokenizer_config.json").is_file() else base
    tokenizer = load_tokenizer(own, trust_remote_code=trust_remote_code)
    return LoadedModel(merged.eval(), tokenizer, ())


def adapter_base(folder: Path) -> str:
    """The base model that an adapter folder names."""
    with one_line_errors(str(folder)):
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder}/{ADAPTER_CONFIG}: names no base_model_name_or_path")
    return str(base)


def check_folder(name: str | Path) -> None:
    """Say what a model folder lacks, before transformers guesses."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        looks_like_a_path = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
        if folder.exists() or looks_like_a_path:
            raise InputError(f"{name}: no model folder there")
        return
    if (folder / ADAPTER_CONFIG).is_file():
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


@contextmanager
def one_line_errors(source: str) -> Iterator[None]:
    """Turn what transformers raises while loading into one line that names the model."""
    try:
        yield
    except LOADING_ERRORS as error:
        if isinstance(error, InputError):
            raise
        lines = str(error).strip().splitlines()
        problem = lines[0] if lines else type(error).__name__
        raise InputError(f"{source}: the model cannot be loaded: {problem}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' load report and bars off the terminal: fresh weights are told by us.

    So are the warnings that peft and transformers have for each other.
    """
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
