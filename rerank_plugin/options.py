"""Options as dataclass fields: defined once, for Python, YAML files and the command line."""

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from math import isfinite
from numbers import Integral, Real
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from rerank_plugin.arguments import LONG_DOCUMENTS, NORMALIZATIONS
from rerank_plugin.errors import OptionError, invalid_choice

if TYPE_CHECKING:
    from rerank_plugin.reranker import Reranker


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: Sequence[str] = (),
    words: Sequence[str] = (),
    aliases: Sequence[str] = (),
    minimum: float | None = None,
) -> Any:
    """Return a dataclass field that is an option, with its help beside it.

    Args:
        default: The default; without one the option is required.
        help: The help text.
        choices: All values that the option can have.
        words: The values besides numbers that a number's option can have.
        aliases: Other spellings on the command line and in YAML files.
        minimum: The smallest number that the option can be.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "words": tuple(words),
        "aliases": tuple(aliases),
        "minimum": minimum,
    }
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def option_name(option_field: Any) -> str:
    """Return the name of a field on the command line: `from_` is `--from`, a keyword of Python."""
    return str(option_field.name).rstrip("_")


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def check_options(options: Any) -> None:
    """Check the type of every field, its choices and its minimum; called by `__post_init__`.

    Paths become strings, and numbers of other libraries become Python's, so that they can be saved
    as JSON.

    Raises:
        OptionError: a value has another type than its field, is not one of its choices, or is less
            than its minimum.
    """
    hints = typing.get_type_hints(type(options))
    for option_field in fields(options):
        name, kinds = option_name(option_field), union_members(hints[option_field.name])
        words = option_field.metadata.get("words", ())
        value = typed_value(name, getattr(options, option_field.name), kinds, words)
        setattr(options, option_field.name, value)
        choices, minimum = (
            option_field.metadata.get("choices"),
            option_field.metadata.get("minimum"),
        )
        if choices and value is not None and value not in choices:
            raise OptionError(name, invalid_choice(value, choices))
        if minimum is not None and isinstance(value, int | float) and value < minimum:
            raise OptionError(name, f"must be at least {minimum}, not {value}")


def typed_value(option: str, value: Any, kinds: Sequence[Any], words: Sequence[str] = ()) -> Any:
    """Return a value as one of the types of a field.

    Raises:
        OptionError: it has none of them, or is a number that is not finite.
    """
    origins = [typing.get_origin(kind) or kind for kind in kinds]
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, str | PathLike) and str in kinds:
        text = str(fspath(value))
        if words and text not in words:
            raise OptionError(option, invalid_number(text, words))
        return text
    if isinstance(value, list | tuple) and list in origins:
        return [typed_value(option, element, (str,)) for element in value]
    if isinstance(value, dict) and dict in origins:
        return value
    return typed_number(option, value, [kind for kind in origins if kind is not type(None)])


def typed_number(option: str, value: Any, kinds: Sequence[type]) -> bool | int | float:
    """Return a number as one of the types of a field; raises as `typed_value`."""
    if isinstance(value, bool):
        # An int to Python, but not to a person.
        if bool in kinds:
            return value
    elif isinstance(value, Integral) and int in kinds:
        return int(value)
    elif isinstance(value, Real) and float in kinds:
        if not isfinite(value):
            raise OptionError(option, f"must be a finite number, not {value}")
        return float(value)
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise OptionError(option, f"invalid {expected} value: {value!r}")


def invalid_number(text: str, words: Sequence[str]) -> str:
    """Return the problem with a text that is neither a number nor one of some words."""
    problem = f"invalid value: {text!r} (a number, or choose from {', '.join(words)})"
    # A minus of typography, and the decimal comma of many languages.
    plain = re.sub("[\u2010-\u2015\u2212\ufe63\uff0d]", "-", text).replace(",", ".").strip()
    try:
        return f"{problem}: did you mean {float(plain):g}?"
    except ValueError:
        close = get_close_matches(text.lower(), words, n=1)
        return f"{problem}: did you mean {close[0]}?" if close else problem


#: The help of `--threads`.
THREADS_HELP = (
    "the number of threads on a CPU; default: torch's own, but no more than the CPUs that this "
    "process may use"
)


@dataclass(kw_only=True)
class DeviceOptions:
    """Options of where a model comes from and runs, also for commands that do not score."""

    device: str = option("auto", help="auto, cpu, cuda, cuda:1 or mps")
    dtype: str = option("auto", help="auto, float32, bfloat16, float16 or int8")
    revision: str | None = option(None, help="branch, tag or commit of a hub id")
    trust_remote_code: bool = option(False, help="run code that comes with the model")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(kw_only=True)
class ModelOptions(DeviceOptions):
    """Options of loading a model: all that its logits and the speed of scoring depend on."""

    max_length: int | None = option(
        None,
        aliases=("max_len",),
        minimum=1,
        help="the maximum length of a pair in tokens; default: that of training, else 512",
    )
    long_documents: str = option(
        "cut",
        choices=LONG_DOCUMENTS,
        help="cut the end of documents that do not fit, or score overlapping windows and take the "
        "best",
    )
    instruction: str | None = option(
        None,
        help="the instruction of queries without one, for models that take one; default: the one "
        "of training, else the model's own",
    )
    token_budget: int | None = option(
        None, minimum=1, help="the maximum cost of a batch in tokens; default: by the device"
    )
    threads: int | None = option(None, minimum=1, help=THREADS_HELP)

    @property
    def loading(self) -> dict[str, Any]:
        """Return the keyword arguments of `Reranker`."""
        return {name: getattr(self, name) for name in sorted(loading_names(type(self)))}

    def load_reranker(self, model: str) -> "Reranker":
        """Load a model by its hub id or folder; raises as `Reranker`."""
        from rerank_plugin.reranker import Reranker

        return Reranker(model, **self.loading)


@dataclass(kw_only=True)
class ScoreOptions(ModelOptions):
    """Options of loading a model and normalizing its scores, for commands that show scores."""

    normalize: str | None = option(
        None,
        choices=NORMALIZATIONS,
        help="sigmoid (scores from 0 to 1), none (raw logits) or calibrated (probabilities); "
        "default: that of the model folder, else sigmoid",
    )


def loading_names(options: type) -> set[str]:
    """Return the names of those options of a class that are keyword arguments of `Reranker`."""
    bases = [base for base in (ModelOptions, ScoreOptions) if issubclass(options, base)]
    return {option_field.name for base in bases for option_field in fields(base)}
