"""Build an options dataclass from a command line and a YAML file."""

import argparse
import json
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from rerank_plugin.errors import InputError
from rerank_plugin.io.jsonl import json_type
from rerank_plugin.options import invalid_number, loading_names, option_name, union_members

Options = TypeVar("Options")

#: A dataclass field that is an option, and its types.
OptionField = tuple[Any, list[Any]]

#: The end of every command's help.
DEBUG_HELP = "--debug, alone, shows the traceback of an error."
EXTRAS_HELP = " Every option of transformers.TrainingArguments is accepted too."


@dataclass(frozen=True)
class Extras:
    """Options of another library that are passed on: their names, and how to parse them."""

    names: Callable[[], Sequence[str]]
    parse: Callable[[list[str]], dict[str, Any]]
    #: Our options that the library has under another name.
    twins: Mapping[str, str]
    #: The field that takes them, as a dictionary.
    target: str


@dataclass(frozen=True)
class KnownNames:
    """The names of a command's options, and of those that another library takes."""

    own: set[str]
    extras: Extras | None

    def __contains__(self, name: str) -> bool:
        # The other library is imported only if a name is not one of the command's.
        return name in self.own or name in self.all()

    def all(self) -> set[str]:
        """Return all names."""
        return self.own | set(self.extras.names() if self.extras else ())

    def suggestion(self, name: str) -> str:
        """Return `: did you mean …?` if a known name is close, or begins with an unknown one."""
        close = get_close_matches(name, self.all(), n=1)
        close = close or sorted(known for known in self.own if known.startswith(f"{name}_"))
        return f": did you mean --{close[0]}?" if close else ""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        raise InputError(message)


class OneOrMore(argparse.Action):
    """A list of values, or the value itself if it is one; a repeated option adds to the list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store them."""
        earlier = getattr(namespace, self.dest, [])
        values = [*(earlier if isinstance(earlier, list) else [earlier]), *values]
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def parse_options(
    options: type[Options],
    argv: Sequence[str],
    *,
    command: str,
    extras: Extras | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Options:
    """Build an options dataclass from a command line and the `--config` file that it names.

    Option names take `_` or `-`; the command line overrides the file, and the file `defaults`.

    Raises:
        InputError: an unknown option, a missing one, or a value of the wrong type.
    """
    option_list = list(option_fields(options))
    parser = build_parser(options, option_list, command, has_extras=extras is not None)
    aliases = spellings(option_list, extras)
    known = KnownNames({option_name(field) for field, _ in option_list} | set(aliases), extras)
    arguments = rename_aliases(with_underscores(argv), aliases)
    values: dict[str, Any] = dict(defaults or {})
    unknown: list[str] = []
    config = config_file(arguments)
    sources = [rename_aliases(read_config(config, known), aliases)] if config else []
    for source in [*sources, arguments]:
        parsed, not_parsed = parser.parse_known_args(source)
        values |= vars(parsed)
        unknown += not_parsed
    values.pop("config", None)
    if unknown:
        check_unknown(unknown, known)
    if unknown and extras:
        values[extras.target] = extras.parse(unknown)
    check_required(options, values)
    return options(**values)


def build_parser(
    options: type[Any], option_list: Sequence[OptionField], command: str, *, has_extras: bool
) -> OneLineParser:
    """Return the parser of a command with an option for each field."""
    parser = OneLineParser(
        prog=f"rerank-plugin {command}",
        description=(options.__doc__ or "").splitlines()[0],
        epilog=DEBUG_HELP + (EXTRAS_HELP if has_extras else ""),
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file with options"
    )
    for field, kinds in option_list:
        names = [option_name(field), *field.metadata["aliases"]]
        settings = argument_settings(field, kinds)
        parser.add_argument(*(f"--{name}" for name in names), dest=field.name, **settings)
    return parser


def option_fields(options: Any) -> Iterator[OptionField]:
    """Yield the fields that are options with their types, those of loading a model last."""
    hints, loading = typing.get_type_hints(options), loading_names(options)
    option_list = [field for field in fields(options) if "help" in field.metadata]
    for field in sorted(option_list, key=lambda field: field.name in loading):
        kinds = [kind for kind in union_members(hints[field.name]) if kind is not type(None)]
        yield field, kinds


def argument_settings(field: Any, kinds: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field."""
    # An option that is not given is left out: the dataclass knows its defaults.
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text(field)}
    if any(typing.get_origin(kind) is list for kind in kinds):
        # Where a value may be alone, a list of one is that value.
        action = OneOrMore if str in kinds else "extend"
        settings |= {"nargs": "+", "type": text, "action": action}
    elif bool in kinds:
        settings |= {"nargs": "?", "const": True, "type": boolean, "metavar": "BOOL"}
    elif field.metadata["words"]:
        settings["type"] = partial(number_or_word, words=field.metadata["words"])
    elif float in kinds and str in kinds:
        settings["type"] = number_or_text
    else:
        kind = next(kind for kind in (int, float, str) if kind in kinds)
        settings["type"] = text if kind is str else kind
    if field.metadata["choices"]:
        settings["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
    return settings


def help_text(field: Any) -> str:
    """Return a field's help with its default."""
    text = str(field.metadata["help"]).replace("%", "%%")
    if field.default is MISSING:
        return f"{text} (required)"
    return text if field.default is None else f"{text} (default: {field.default})"


def check_required(options: Any, values: Mapping[str, Any]) -> None:
    """Check that every option without a default has a value.

    Raises:
        InputError: naming those that have none.
    """
    missing = [
        option_name(field)
        for field in fields(options)
        if field.default is MISSING
        and field.default_factory is MISSING
        and field.name not in values
    ]
    if missing:
        names = ", ".join(f"--{name}" for name in missing)
        raise InputError(f"the following options are required: {names}")


def boolean(text: str) -> bool:
    """Return the truth value of an option's text."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"invalid bool value: {text!r} (choose from true, false)")
    return values[text.lower()]


def text(value: str) -> str:
    """Return an option's text; an empty one comes from a shell variable that is not set."""
    if not value:
        raise argparse.ArgumentTypeError(
            "the value is empty: leave the option out, or give a value"
        )
    return value


def number_or_text(value: str) -> float | str:
    """Return an option's text, as a number if it is one."""
    try:
        return float(value)
    except ValueError:
        return text(value)


def number_or_word(text: str, words: Sequence[str]) -> float | str:
    """Return an option's text as a number, or as one of some words."""
    if text in words:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(invalid_number(text, words)) from None


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Return the arguments with `_` in option names, values untouched.

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


def spellings(option_list: Sequence[OptionField], extras: Extras | None) -> dict[str, str]:
    """Return the name of the option that each alias stands for."""
    twins = extras.twins if extras else {}
    aliases = {theirs: name for name, theirs in twins.items()}
    return aliases | {
        alias: option_name(field) for field, _ in option_list for alias in field.metadata["aliases"]
    }


def rename_aliases(arguments: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Return the arguments with the names of options in place of their aliases.

    Raises:
        InputError: an option is given under two names.
    """
    spelled: dict[str, str] = {}
    renamed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        option = name
        if name.startswith("--"):
            option = "--" + aliases.get(name[2:], name[2:])
            first = spelled.setdefault(option, name)
            if first != name:
                raise InputError(f"{first} and {name} are the same option: use one of them")
        renamed.append(option + equals + value)
    return renamed


def config_file(arguments: Sequence[str]) -> Path | None:
    """Return the file that `--config` names, if any."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    config: Path | None = parser.parse_known_args(arguments)[0].config
    return config


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a mapping with a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if repeated is not None:
            raise yaml.YAMLError(f"duplicate key {repeated!r}")
        return super().construct_mapping(node, deep)


def read_config(path: Path, known: KnownNames) -> list[str]:
    """Return the options of a YAML file as command-line arguments."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), UniqueKeyLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of options, found {json_type(values)}")
    arguments: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: unknown option {key!r}{known.suggestion(name)}")
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


def check_unknown(unknown: Sequence[str], known: KnownNames) -> None:
    """Refuse arguments that neither the command nor the library behind it knows."""
    if not unknown[0].startswith("--"):
        raise InputError(f"unexpected argument {unknown[0]!r}: options start with --")
    for argument in unknown:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and name not in known:
            raise InputError(f"unknown option --{name}{known.suggestion(name)}")
