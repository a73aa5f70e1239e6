"""The terminal: results on stdout in UTF-8, lines and bars on stderr that cannot stop the work."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

from rerank_plugin.io.streams import is_stdout

Returned = TypeVar("Returned")

#: The errors of a stream that cannot be written: closed, without a reader or a full disk.
GONE = (AttributeError, OSError, ValueError)


class Stdout:
    """stdout for results: its errors name it."""

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            OSError: it cannot be written.
        """
        named(sys.stdout.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written; raises as `write`."""
        named(sys.stdout.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def named(call: Callable[..., Returned], *arguments: Any) -> Returned:
    """Call a method of stdout, and name it in its errors."""
    try:
        return call(*arguments)
    except OSError as error:
        # Python chooses the class by the errno: without a reader it is a BrokenPipeError.
        raise OSError(error.errno, error.strerror, "stdout") from error


class Stderr:
    """stderr for lines and bars: what cannot be written is dropped.

    An error inside tqdm would leave its lock taken, and every other bar would wait for it.
    """

    def write(self, text: str) -> int:
        """Write a text if possible."""
        with suppress(*GONE):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        with suppress(*GONE):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def summary_stream(output: Path) -> Stdout | Stderr:
    """Return the stream for the summary of a file: stdout, unless the file is stdout."""
    return Stderr() if is_stdout(output) else Stdout()


def say(text: str = "") -> None:
    """Show a line to the user on stderr, so that stdout has only results."""
    stream = Stderr()
    stream.write(f"{text}\n")
    stream.flush()


def bar(
    title: str,
    unit: str,
    total: int | None = None,
    *,
    shown: bool = True,
    initial: int = 0,
    delay: float = 0,
    unit_scale: bool = False,
) -> "tqdm[Any]":
    """Return a progress bar on stderr.

    Args:
        title: Its title.
        unit: The unit of what it counts.
        total: How many units there are, where that is known.
        shown: Whether it is shown. Functions take this as `progress`, False by default; commands
            pass True.
        initial: How many units are done already.
        delay: Seconds until it is shown.
        unit_scale: Whether large counts are shown with a prefix, as in 3.2M.
    """
    return tqdm(
        disable=not shown,
        total=total,
        desc=title,
        unit=unit,
        initial=initial,
        delay=delay,
        unit_scale=unit_scale,
        file=Stderr(),
        dynamic_ncols=True,
    )


def prepare_streams() -> None:
    """Make both streams write UTF-8 in any locale, and give closed ones a descriptor.

    The next file that is opened would get a closed descriptor, and then the output of stdout.
    """
    # Lines and bars may be dropped, results may not: a write to this stdout fails.
    sys.stdout = sys.stdout or null_stream(os.O_RDONLY)
    sys.stderr = sys.stderr or null_stream(os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        # The streams of a notebook have no encoding to change.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def null_stream(flags: int) -> IO[str]:
    """Return a stream on the null device, opened with some flags."""
    return open(os.open(os.devnull, flags), "w", encoding="utf-8")  # noqa: PTH123


def abandon_stdout() -> None:
    """Drop the buffer of stdout, so that Python does not fail to flush it at its end."""
    with suppress(*GONE):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
