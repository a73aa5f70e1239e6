"""Options as dataclass fields: one definition, one help text, for Python, YAML and command line."""

import argparse
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from math import isfinite
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.atomic import is_stream, part_of, real_path, try_file, try_folder
from rerank_plugin.io.jsonl import DataPath, is_input, json_type
from rerank_plugin.io.locks import locked

Options = TypeVar("Options")

#: What a command's help says at its end.
DEBUG_HELP = "--debug, alone, shows the traceback of an error."
EXTRAS_HELP = " Every option of transformers.TrainingArguments is accepted too."


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Any:
    """Return a dataclass field that is an option, with its help beside it.

    Args:
        default: The default; without one the option is required.
        help: The help text.
        choices: All values that the option can have.
        words: What a number's option takes besides numbers.
    """
    metadata = {"help": help, "choices": tuple(choices), "words": tuple(words)}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """Check the type of every field, and its choices; called by `__post_init__`.

    Paths become texts, and numbers of other libraries become Python's: what is written down is
    JSON.

    Raises:
        OptionError: a value has another type than its field, or is none of its choices.
    """
    hints = typing.get_type_hints(type(options))
    for item in fields(options):
        name, kinds = option_name(item), union_members(hints[item.name])
        words = item.metadata.get("words", ())
        value = typed_value(name, getattr(options, item.name), kinds, words)
        setattr(options, item.name, value)
        choices = item.metadata.get("choices")
        if choices and value is not None and value not in choices:
            known = ", ".join(choices)
            raise OptionError(name, f"invalid choice: {value!r} (choose from {known})")


def typed_value(option: str, value: Any, kinds: Sequence[Any], words: Sequence[str] = ()) -> Any:
    """Return a value as one of the types of a field.

    Raises:
        OptionError: it is of none of them, or a number that is not finite.
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
        return [typed_value(option, item, (str,)) for item in value]
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
            raise OptionError(option, f"{value} is not a finite number")
        return float(value)
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise OptionError(option, f"invalid {expected} value: {value!r}")


def invalid_number(text: str, words: Sequence[str]) -> str:
    """Return what is wrong with a text that is neither a number nor one of some words."""
    problem = f"invalid value: {text!r} (a number, or choose from {', '.join(words)})"
    # A minus of typography, and the decimal comma of many languages.
    plain = re.sub("[\u2010-\u2015\u2212\ufe63\uff0d]", "-", text).replace(",", ".").strip()
    try:
        return f"{problem}: did you mean {float(plain):g}?"
    except ValueError:
        close = get_close_matches(text.lower(), words, n=1)
        return f"{problem}: did you mean {close[0]}?" if close else problem


def check_output(
    file: Path, inputs: Sequence[DataPath | None], *, overwrite: bool, option: str = "output"
) -> None:
    """Check that an option's file can be written: in a folder, over nothing that is needed.

    Pipes, devices and open files such as `/dev/stdout` are written as they are.

    Raises:
        OptionError: there is no such folder, nothing can be written in it, the file exists already,
            it is an input, or another command is writing it.
    """
    try:
        if is_stream(file):
            return
        target = real_path(file)
        if not target.parent.is_dir():
            raise OptionError(option, f"no folder {target.parent}")
        if target.is_dir():
            raise OptionError(option, f"{file} is a folder, a file is needed")
        if any(path is not None and is_input(file, path) for path in inputs):
            raise OptionError(option, f"{file} is what the command reads: choose another")
        if target.exists() and not overwrite:
            raise OptionError(option, f"{file} exists: choose another, or --overwrite")
        try_file(target)
        part = part_of(target)
        if part.exists():
            with locked(part):
                pass
    except OSError as error:
        raise OptionError(option, f"{file} cannot be written: {error.strerror}") from None


def check_output_folder(folder: Path, *, option: str) -> None:
    """Check that files can be made in a folder that is there or can be made.

    Raises:
        OptionError: they cannot.
    """
    try:
        place = real_path(folder)
        there = next(path for path in (place, *place.parents) if path.exists())
        if not there.is_dir():
            raise OptionError(option, f"{there} is a file, a folder is needed")
        try_folder(there / place.name)
    except OSError as error:
        raise OptionError(option, f"{folder} cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Extras:
    """Options of another program that are passed on: their names, and how to read them."""

    names: Callable[[], Sequence[str]]
    parse: Callable[[list[str]], dict[str, Any]]
    #: Our options that the other program has under another name; given both is an error.
    twins: Mapping[str, str]
    #: The field that takes them, as a dictionary.
    target: str


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        raise InputError(message)


class OneOrMore(argparse.Action):
    """A list of values, or the value itself where there is one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store them."""
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def parse_options(
    options: type[Options], argv: Sequence[str], *, command: str, extras: Extras | None = None
) -> Options:
    """Build an options dataclass from a command line and the `--config` file that it names.

    Option names take `_` or `-`; the command line wins over the file.

    Raises:
        InputError: an unknown option, a missing one, or a value of the wrong type.
    """
    parser = OneLineParser(
        prog=f"rerank-plugin {command}",
        description=(options.__doc__ or "").splitlines()[0],
        epilog=DEBUG_HELP + (EXTRAS_HELP if extras else ""),
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file with options"
    )
    names = {option_name(item) for item in add_fields(parser, options)}
    arguments = with_underscores(argv)
    config = config_file(arguments)
    if config is not None:
        known = names | set(extras.names() if extras else ())
        arguments = read_config(config, known) + arguments
    arguments = rename_twins(arguments, extras.twins if extras else {})
    parsed, unknown = parser.parse_known_args(arguments)
    values = vars(parsed)
    values.pop("config", None)
    if unknown:
        check_unknown(unknown, names, extras)
    if unknown and extras:
        values[extras.target] = extras.parse(unknown)
    missing = [
        option_name(item)
        for item in fields(options)  # type: ignore[arg-type]
        if item.default is MISSING and item.default_factory is MISSING and item.name not in values
    ]
    if missing:
        raise InputError(f"missing option: {', '.join('--' + name for name in missing)}")
    return options(**values)


def add_fields(parser: argparse.ArgumentParser, options: Any) -> list[Any]:
    """Add the fields that are options to a parser; returns them."""
    hints = typing.get_type_hints(options)
    added = []
    for item in fields(options):
        if "help" not in item.metadata:
            continue
        # What is not given stays away: the dataclass knows its defaults.
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text(item)}
        kinds = [kind for kind in union_members(hints[item.name]) if kind is not type(None)]
        if any(typing.get_origin(kind) is list for kind in kinds):
            settings |= {"nargs": "+", "type": text, "action": OneOrMore}
        elif bool in kinds:
            settings |= {"nargs": "?", "const": True, "type": boolean, "metavar": "BOOL"}
        elif item.metadata["words"]:
            settings["type"] = partial(number_or_word, words=item.metadata["words"])
        else:
            kind = next(kind for kind in (int, float, str) if kind in kinds)
            settings["type"] = text if kind is str else kind
        if item.metadata["choices"]:
            settings["metavar"] = "{" + ",".join(item.metadata["choices"]) + "}"
        parser.add_argument(f"--{option_name(item)}", dest=item.name, **settings)
        added.append(item)
    return added


def option_name(item: Any) -> str:
    """What a field is called on the command line: `from_` is `--from`, a word of Python's own."""
    return str(item.name).rstrip("_")


def help_text(item: Any) -> str:
    """A field's help with its default."""
    text = str(item.metadata["help"]).replace("%", "%%")
    if item.default is MISSING:
        return f"{text} (required)"
    return text if item.default is None else f"{text} (default: {item.default})"


def union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def boolean(text: str) -> bool:
    """The truth value of an option's text."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def text(value: str) -> str:
    """An option's text; that of a variable of a shell that is not set is no text."""
    if not value:
        raise argparse.ArgumentTypeError("empty: leave the option out, or give a value")
    return value


def number_or_word(text: str, words: Sequence[str]) -> float | str:
    """Return an option's text as a number, or as one of some words."""
    if text in words:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(invalid_number(text, words)) from None


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Return the same arguments with `_` in option names, values untouched.

    A negative number is joined to its option: argparse takes `-1e-3` for an option.
    """
    arguments: list[str] = []
    for argument in argv:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument.partition("=")
            argument = "--" + name[2:].replace("-", "_") + equals + value
        elif is_negative_number(argument) and arguments and is_bare_option(arguments[-1]):
            argument = f"{arguments.pop()}={argument}"
        arguments.append(argument)
    return arguments


def is_negative_number(text: str) -> bool:
    """Return whether a text is a number below zero."""
    try:
        return text.startswith("-") and float(text) <= 0
    except ValueError:
        return False


def is_bare_option(argument: str) -> bool:
    """Return whether an argument is an option's name alone."""
    return argument.startswith("--") and "=" not in argument


def rename_twins(arguments: Sequence[str], twins: Mapping[str, str]) -> list[str]:
    """The same arguments with our spelling where an option has two."""
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    ours = {f"--{theirs}": f"--{name}" for name, theirs in twins.items()}
    for theirs, name in ours.items():
        if {theirs, name} <= given:
            raise InputError(f"{name} and {theirs} are the same option: give one of them")
    renamed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        renamed.append(ours.get(name, name) + equals + value)
    return renamed


def config_file(arguments: Sequence[str]) -> Path | None:
    """The file that `--config` names, if any."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    config: Path | None = parser.parse_known_args(arguments)[0].config
    return config


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a mapping that has a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} is given twice")
        return super().construct_mapping(node, deep)


def read_config(path: Path, known: set[str]) -> list[str]:
    """The options of a YAML file as command-line arguments."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), UniqueKeyLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: broken YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of options, found {json_type(values)}")
    arguments: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: unknown option {key!r}{suggestion(name, known)}")
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={config_value(name, value)}")
    return arguments


def config_value(name: str, value: object) -> str:
    """Return a YAML value as an option's text."""
    if name.endswith("_strategy") and value is False:
        return "no"  # which YAML takes for false
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def check_unknown(unknown: Sequence[str], names: set[str], extras: Extras | None) -> None:
    """Refuse what neither the command nor the program behind it knows."""
    known = names | set(extras.names() if extras else ())
    if not unknown[0].startswith("--"):
        raise InputError(f"unexpected argument {unknown[0]!r}: options start with --")
    for argument in unknown:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and name not in known:
            raise InputError(f"unknown option --{name}{suggestion(name, known)}")


def suggestion(name: str, known: set[str]) -> str:
    """`: did you mean …?`, where a known name is close."""
    close = get_close_matches(name, known, n=1)
    return f": did you mean --{close[0]}?" if close else ""
