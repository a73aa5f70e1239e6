"""Outputs that are not regular files: pipes, devices, and open files such as `/dev/stdout`."""

import os
import re
from pathlib import Path
from typing import IO

#: The most links that are followed, as in Linux.
MAX_LINKS = 40


def descriptor(path: Path) -> int | None:
    """Return the descriptor of the open file that a path such as `/dev/stdout` names."""
    for _ in range(MAX_LINKS):
        folder = path.parent.resolve()
        if path.name.isdigit() and re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}/fd", str(folder)):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = folder / path.readlink()
    return None


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe, a device or an open file, which is written directly."""
    return descriptor(path) is not None or (
        path.exists() and not path.is_file() and not path.is_dir()
    )


def is_stdout(path: str | Path | None) -> bool:
    """Return whether a path names this process's stdout."""
    return path is not None and descriptor(Path(path)) == 1


def open_stream(path: Path) -> IO[str]:
    """Open a stream for writing text."""
    number = descriptor(path)
    # Opening the path again would write the file from its beginning.
    return open(path if number is None else os.dup(number), "w", encoding="utf-8")  # noqa: PTH123
