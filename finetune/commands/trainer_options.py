"""The options of transformers.TrainingArguments on the command line, by their own names."""

from dataclasses import fields
from typing import Any, NoReturn

from rerank_plugin.cli.parser import Extras
from rerank_plugin.errors import InputError

from ..argument_names import TWINS


def names() -> list[str]:
    """Return the names of all training arguments."""
    # Imported late: `train --help` and wrong options do not wait for the trainer.
    from transformers import TrainingArguments

    return [argument.name for argument in fields(TrainingArguments) if argument.init]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Return the training arguments that a command line sets, without defaults."""
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]
    parser.error = refuse  # type: ignore[method-assign]
    # transformers' defaults are left out: a run has its own.
    for action in parser._actions:
        action.default = None
        action.required = False
    values = vars(parser.parse_args(arguments))
    names_on_line = {
        argument[2:].partition("=")[0] for argument in arguments if argument[:2] == "--"
    }
    return {name: values[name] for name in names() if name in names_on_line}


def refuse(message: str) -> NoReturn:
    """Raise one line instead of printing transformers' long usage."""
    raise InputError(message)


TRAINER_OPTIONS = Extras(names=names, parse=parse, twins=TWINS, target="trainer")
