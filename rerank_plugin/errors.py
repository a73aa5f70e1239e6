"""Errors that end a command with one line and an exit code instead of a traceback."""

from collections.abc import Iterable
from typing import ClassVar, Self


class RerankError(Exception):
    """Base of the errors that a user sees as one line."""

    exit_code: ClassVar[int] = 1


class InputError(RerankError, ValueError):
    """An option, a file or a model cannot be used."""

    exit_code = 2


class OptionError(InputError):
    """An option has a value that cannot be used; the message starts with its name."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"--{option}: {problem}")
        self.option = option
        self.problem = problem

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        # An error of another process has the same class here.
        return type(self), (self.option, self.problem)


class SavingError(RerankError):
    """A result could not be written: the disk is full, broken, or not writable any more."""


class CheckFailedError(RerankError):
    """A check that the user asked for, such as `--fail_if_not_better`, did not hold."""

    exit_code = 3


def invalid_choice(value: object, choices: Iterable[str]) -> str:
    """Return the problem with a value that is not one of some choices, in argparse's words."""
    return f"invalid choice: {value!r} (choose from {', '.join(choices)})"
