"""The command line: one table of commands, one place where errors become lines and exit codes."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rerank_plugin import __version__
from rerank_plugin.errors import RerankError
from rerank_plugin.options import parse_options, say


@dataclass(frozen=True)
class Command:
    """A command: what it does, and where its options dataclass and its function stand.

    Modules are named, not imported: a command loads what it needs itself.
    """

    summary: str
    module: str
    options: str
    #: `module:name` of the options of another program that are accepted too.
    extras: str | None = None
    #: Options that the first arguments are, where they have no name.
    positional: tuple[str, ...] = ()

    def named(self, argv: Sequence[str]) -> list[str]:
        """The same arguments, each with the name of its option."""
        arguments = list(argv)
        for option in self.positional:
            if arguments and not arguments[0].startswith("-"):
                arguments = [*arguments[1:], f"--{option}", arguments[0]]
        return arguments

    def run(self, name: str, argv: Sequence[str]) -> int:
        """Parse the options and run; returns the exit code."""
        module = import_module(self.module)
        extras = None
        if self.extras:
            place, _, attribute = self.extras.partition(":")
            extras = getattr(import_module(place), attribute)
        options = parse_options(
            getattr(module, self.options), self.named(argv), command=name, extras=extras
        )
        main: Callable[[Any], int] = module.main
        return main(options)


COMMANDS = {
    "train": Command(
        "fine-tune a reranker on jsonl groups",
        "rerank_plugin.finetune.train",
        "FinetuneConfig",
        "rerank_plugin.finetune.trainer_options:EXTRAS",
    ),
    "rerank": Command("rank documents with a model", "rerank_plugin.rerank", "RerankOptions"),
    "evaluate": Command(
        "measure a model on groups, beside a baseline",
        "rerank_plugin.finetune.evaluate",
        "EvaluateOptions",
    ),
    "compare": Command(
        "report on two models, A and B, on the same groups",
        "rerank_plugin.finetune.compare",
        "CompareOptions",
        positional=("baseline", "model_dir"),
    ),
    "mine": Command(
        "make groups out of a corpus, queries and judgements or answers",
        "rerank_plugin.finetune.mine",
        "MineOptions",
    ),
    "convert": Command(
        "turn training data of other libraries into groups, or back",
        "rerank_plugin.finetune.convert.command",
        "ConvertOptions",
    ),
    "merge": Command(
        "merge a LoRA adapter into its base", "rerank_plugin.finetune.merge", "MergeOptions"
    ),
    "check": Command(
        "report everything that is wrong with groups",
        "rerank_plugin.finetune.check",
        "CheckOptions",
    ),
    "demo": Command(
        "fine-tune a small model on the sample data, and use it",
        "rerank_plugin.finetune.demo",
        "DemoOptions",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; exit codes 0, 1 (failed), 2 (bad usage or input), 3 (a check did not hold)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    tell_logs()
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stdout.write(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"rerank-plugin {__version__}\n")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        say(f"rerank-plugin: unknown command {name!r}, one of {', '.join(COMMANDS)}")
        return 2
    try:
        with interrupted_by_sigterm():
            return COMMANDS[name].run(name, rest)
    except RerankError as error:
        say(f"rerank-plugin {name}: {error}")
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more at its exit.
        sys.stderr.close()
        return 1
    except OSError as error:
        say(f"rerank-plugin {name}: {error.filename or 'failed'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        say(f"rerank-plugin {name}: interrupted")
        return 1


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """A polite kill is Ctrl-C: what is half-done is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


class TellUser(logging.Handler):
    """Shows our own log as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        say(record.getMessage())


def tell_logs() -> None:
    """Show what the package logs, from information up."""
    logger = logging.getLogger("rerank_plugin")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, TellUser) for handler in logger.handlers):
        logger.addHandler(TellUser())


def overview() -> str:
    """The commands, a line each."""
    lines = ["usage: rerank-plugin COMMAND [--option value …]\n"]
    lines += [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    lines.append("\nrerank-plugin COMMAND --help lists a command's options.")
    return "\n".join(lines) + "\n"
