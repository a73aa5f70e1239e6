"""What loading a model gives, and how what goes wrong with it is told."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rerank_plugin.errors import InputError

#: What transformers, peft and safetensors raise for a model that they cannot load.
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

#: What to do with weights that are pickles, which can run any code.
PICKLED = "pickled weights are not loaded: save them as safetensors"

#: What is said instead of an error of transformers, by a part of its text.
REMEDIES = {
    "trust_remote_code": "it comes with code of its own, which is run with trust_remote_code only "
    "(--trust_remote_code): read it first",
    "does not appear to have a file named model.safetensors": "it has no model.safetensors "
    f"({PICKLED}, or choose a --revision that has them)",
}


@dataclass(frozen=True)
class LoadedModel:
    """A cross-encoder in float32 on the CPU, its tokenizer, and which weights were not loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    #: Names of the weights that the checkpoint lacks and that were drawn at random.
    new_weights: tuple[str, ...]

    @property
    def has_new_head(self) -> bool:
        """Whether the head is random, so that scores mean nothing before training."""
        return bool(self.new_weights)


@contextmanager
def one_line_errors(source: str) -> Iterator[None]:
    """Turn what transformers raises while loading into one line that names the model."""
    try:
        yield
    except LOADING_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: the model cannot be loaded: {problem_of(error)}") from error


def problem_of(error: Exception) -> str:
    """Return an error of transformers in one line that says what to do."""
    text = str(error)
    for part, remedy in REMEDIES.items():
        if part in text:
            return remedy
    return in_one_line(error)


def in_one_line(error: Exception) -> str:
    """Return what an error of a library says first, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    problem = lines[0] if lines else type(error).__name__
    return f"{problem} {lines[1]}" if problem.endswith(":") and len(lines) > 1 else problem


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
