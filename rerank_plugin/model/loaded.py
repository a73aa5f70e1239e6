"""A loaded model, and one-line errors for everything that can go wrong while it loads."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rerank_plugin.errors import InputError, RerankError
from rerank_plugin.model.head_modules import encoder_folder
from rerank_plugin.model.prompts import Prompt

#: The errors of transformers, peft and safetensors for a model that they cannot load.
LOADING_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)

#: The remedy for pickled weights, which can run any code.
PICKLED = "pickled weights are not loaded: save them as safetensors"

#: Messages that replace an error of transformers, by a part of its text.
REMEDIES = {
    "trust_remote_code": "the model comes with code; read it, and set trust_remote_code "
    "(--trust_remote_code) to run it",
    "couldn't connect to": "the hub cannot be reached, and the model is not in its cache: check "
    "the network, or give the folder of a model",
    "does not appear to have a file named model.safetensors": "model.safetensors not found "
    f"({PICKLED}, or use a --revision that has them)",
}


@dataclass(frozen=True)
class LoadedModel:
    """A cross-encoder in float32 on the CPU, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    #: Names of the weights that are not in the checkpoint, which are newly initialised.
    new_weights: tuple[str, ...]
    #: The prompt of a language model; None for an encoder.
    prompt: Prompt | None = None
    #: Names of the weights that were computed from others of the checkpoint.
    derived_weights: tuple[str, ...] = ()
    #: Whether it is a reranker: a language model may be no more than a base for one.
    is_reranker: bool = True

    def with_instruction(self, instruction: str | None) -> Self:
        """Return the model with another default instruction in its prompt, if it has one."""
        if not instruction or self.prompt is None:
            return self
        return replace(self, prompt=replace(self.prompt, instruction=instruction))

    @property
    def has_new_head(self) -> bool:
        """Return whether the head is newly initialised: scores are random before training."""
        return bool(self.new_weights)


@contextmanager
def one_line_errors(source: str) -> Iterator[None]:
    """Turn errors of transformers while loading into one line that names the model."""
    try:
        yield
    except LOADING_ERRORS as error:
        if isinstance(error, RerankError):
            raise
        raise InputError(f"{source}: the model cannot be loaded: {problem_of(error)}") from error


def read_pretrained(
    auto_class: Any, source: str, config: PreTrainedConfig, *, revision: str | None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model with its weights in float32, and transformers' report of its loading.

    Args:
        auto_class: The class that loads it.
        source: A hub id or a folder.
        config: Its config.
        revision: Branch, tag or commit of a hub id.
        **options: Other options of `from_pretrained`.
    """
    with one_line_errors(source), quiet_transformers():
        model, info = auto_class.from_pretrained(
            source,
            subfolder=encoder_folder(source, revision),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            # We raise that error: transformers' own refers to a report that is switched off.
            ignore_mismatched_sizes=True,
            revision=revision,
            **options,
        )
    return model, info


def problem_of(error: Exception) -> str:
    """Return an error of transformers in one line, with a remedy if one is known."""
    text = str(error)
    for excerpt, remedy in REMEDIES.items():
        if excerpt in text:
            return remedy
    return in_one_line(error)


def in_one_line(error: Exception) -> str:
    """Return the first sentence of a library's error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    problem = lines[0] if lines else type(error).__name__
    return f"{problem} {lines[1]}" if problem.endswith(":") and len(lines) > 1 else problem


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' load report and bars: newly initialised weights have our own message.

    The warnings of peft and transformers about each other are hidden, too.
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
