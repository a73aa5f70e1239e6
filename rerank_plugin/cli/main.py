"""The command line: one table of commands, one place where errors become lines and exit codes."""

import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from rerank_plugin import __version__
from rerank_plugin.cli.console import Stderr, Stdout, abandon_stdout, prepare_streams, say
from rerank_plugin.cli.parser import DEBUG_HELP, parse_options
from rerank_plugin.errors import InputError, RerankError
from rerank_plugin.extras import MissingPackageError
from rerank_plugin.signals import ending_signals

SMALLER = "use a smaller --token_budget, --batch_size or --max_len, or fewer processes"


@dataclass(frozen=True)
class Command:
    """A command: its summary, and the module of its options dataclass and its function.

    Modules are named, not imported: a command imports only what it needs.
    """

    summary: str
    module: str
    options: str
    #: `module:name` of the options of another program that are accepted too.
    extras: str | None = None
    #: The options of arguments without a name, in their order.
    positional: tuple[str, ...] = ()
    #: Values of options that are not given, in place of the defaults of their fields.
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def named(self, name: str, argv: Sequence[str]) -> list[str]:
        """Return the arguments, each with the name of its option.

        Raises:
            InputError: some of the arguments without a name are given, and others are missing.
        """
        arguments = list(argv)
        given = 0
        for option in self.positional:
            if arguments and not arguments[0].startswith("-"):
                arguments = [*arguments[1:], f"--{option}", arguments[0]]
                given += 1
        if given not in {0, len(self.positional)}:
            wanted = " ".join(option.upper() for option in self.positional)
            raise InputError(
                f"expected {len(self.positional)} models: rerank-plugin {name} {wanted}"
            )
        return arguments

    def run(self, name: str, argv: Sequence[str]) -> int:
        """Parse the options and run; returns the exit code."""
        module = import_module(self.module)
        extras = None
        if self.extras:
            source, _, attribute = self.extras.partition(":")
            extras = getattr(import_module(source), attribute)
        options = parse_options(
            getattr(module, self.options),
            self.named(name, argv),
            command=name,
            extras=extras,
            defaults=self.defaults,
        )
        main: Callable[[Any], int] = module.main
        return main(options)


COMMANDS = {
    "train": Command(
        "fine-tune a reranker on jsonl groups",
        "rerank_plugin.finetune.commands.train",
        "FinetuneConfig",
        "rerank_plugin.finetune.commands.trainer_options:TRAINER_OPTIONS",
    ),
    "rerank": Command(
        "rank documents with a model", "rerank_plugin.offline.command", "RerankOptions"
    ),
    "serve": Command(
        "serve a model over HTTP, for tools that speak Jina's, Cohere's or TEI's format",
        "rerank_plugin.cli.serve",
        "ServeOptions",
    ),
    "info": Command(
        "describe a model without reading its weights",
        "rerank_plugin.cli.info",
        "InfoOptions",
        positional=("model_dir",),
    ),
    "evaluate": Command(
        "measure a model on groups, beside a baseline",
        "rerank_plugin.finetune.commands.evaluate",
        "EvaluateOptions",
    ),
    # Another spelling of evaluate --baseline A --model_dir B --report comparison.
    "compare": Command(
        "report on two models on the same groups: rerank-plugin compare BASELINE MODEL_DIR",
        "rerank_plugin.finetune.commands.evaluate",
        "EvaluateOptions",
        positional=("baseline", "model_dir"),
        defaults={"report": "comparison"},
    ),
    "mine": Command(
        "make groups out of a corpus, queries and judgements or answers",
        "rerank_plugin.finetune.commands.mine",
        "MineOptions",
    ),
    "score": Command(
        "write the scores of a teacher into groups",
        "rerank_plugin.finetune.commands.score",
        "ScoreGroupsOptions",
    ),
    "distill": Command(
        "fine-tune a reranker on the scores of a teacher",
        "rerank_plugin.finetune.commands.distill",
        "DistillConfig",
        "rerank_plugin.finetune.commands.trainer_options:TRAINER_OPTIONS",
    ),
    "convert": Command(
        "turn training data of other libraries into groups, or back",
        "rerank_plugin.finetune.commands.convert",
        "ConvertOptions",
    ),
    "merge": Command(
        "merge a LoRA adapter into its base",
        "rerank_plugin.finetune.commands.merge",
        "MergeOptions",
    ),
    "export": Command(
        "export a model for ONNX Runtime or OpenVINO",
        "rerank_plugin.finetune.commands.export",
        "ExportOptions",
        positional=("model_dir",),
    ),
    "quantize": Command(
        "measure a model with int8, and write a folder that scores with it",
        "rerank_plugin.finetune.commands.quantize",
        "QuantizeOptions",
        positional=("model_dir",),
    ),
    "fuse": Command(
        "fit how much a retriever counts beside a model",
        "rerank_plugin.finetune.commands.fuse",
        "FuseOptions",
        positional=("model_dir",),
    ),
    "check": Command(
        "report the problems of groups",
        "rerank_plugin.finetune.commands.check",
        "CheckOptions",
    ),
    "demo": Command(
        "fine-tune a small model on the sample data, and use it",
        "rerank_plugin.finetune.commands.demo",
        "DemoOptions",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; exit codes 0, 1 (failed), 2 (bad usage or input), 3 (a check did not hold)."""
    prepare_streams()
    show_logs()
    arguments, debug = without_debug(sys.argv[1:] if argv is None else argv)
    name = next((argument for argument in arguments if argument in COMMANDS), None)
    program = f"rerank-plugin {name}" if name else "rerank-plugin"
    try:
        with interrupted_by_signals():
            code = run(arguments)
            Stdout().flush()
        return code
    except KeyboardInterrupt:
        say(f"{program}: interrupted")
        return 1
    except BrokenPipeError:
        # The reader of stdout has ended.
        abandon_stdout()
        return 1
    except Exception as error:
        # No error of a command is a traceback, unless --debug asks for it.
        if debug:
            traceback.print_exc(file=Stderr())
        say(f"{program}: {described(error)}")
        if isinstance(error, OSError):
            abandon_stdout()
        return error.exit_code if isinstance(error, RerankError) else 1


def run(arguments: Sequence[str]) -> int:
    """Run the command that arguments begin with; returns the exit code."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        Stdout().write(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        Stdout().write(f"rerank-plugin {__version__}\n")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        meant = f": did you mean {close[0]}?" if close else ""
        raise InputError(f"unknown command {name!r} (choose from {', '.join(COMMANDS)}){meant}")
    if sys.flags.optimize > 1:
        raise InputError(
            "transformers needs docstrings: use python -O in place of -OO, or unset PYTHONOPTIMIZE"
        )
    return COMMANDS[name].run(name, rest)


def without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Return the arguments without a lone `--debug`, and whether there was one.

    With a value it is an option of transformers.
    """
    followed = zip(argv, [*argv, "--"][1:], strict=True)
    kept = [
        argument
        for argument, after in followed
        if argument != "--debug" or not (after.startswith("--") or after in COMMANDS)
    ]
    return kept, len(kept) < len(argv)


def described(error: Exception) -> str:
    """Return an error as one line with a remedy."""
    lines = str(error).splitlines()
    if isinstance(error, RerankError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'failed'}: {error.strerror or error}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return str(MissingPackageError(error.name.partition(".")[0]))
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return f"out of memory: {SMALLER} ({lines[0] if lines else 'MemoryError'})"
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"unexpected {what} (please report it, with the traceback that --debug shows)"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch found no memory, on a GPU or on the CPU; torch may not be loaded."""
    return type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C, so that unfinished work is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in ending_signals() if number != signal.SIGINT]
    earlier = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class ConsoleHandler(logging.Handler):
    """Shows the package's log as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        say(record.getMessage())


def show_logs() -> None:
    """Show the package's log, from information up.

    peft imports bitsandbytes where it is installed, which then warns of a kernel for 4 bits on CPUs
    that nothing here uses.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logger = logging.getLogger("rerank_plugin")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())


def overview() -> str:
    """Return the commands, a line each."""
    lines = ["usage: rerank-plugin COMMAND [--option value …]\n"]
    lines += [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    lines.append(f"\nrerank-plugin COMMAND --help lists a command's options. {DEBUG_HELP}")
    return "\n".join(lines) + "\n"
