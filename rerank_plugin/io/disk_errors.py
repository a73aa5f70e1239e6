"""Errors of the disk: name the file, and say what to do."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rerank_plugin.errors import SavingError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a file's name to errors of the system that have none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def saving(path: Path, *, again: str = "start the same command again") -> Iterator[None]:
    """Turn errors of the disk into one line, and remove the incomplete file or folder.

    Args:
        path: The folder that is written.
        again: What to do once the disk can be written again.

    Raises:
        SavingError: the folder could not be written.
    """
    try:
        yield
    except Exception as error:  # safetensors has a class of its own; others are raised again
        number = error_number(error)
        if number is None:
            raise
        shutil.rmtree(path, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        advice = f"{remedy(number)} and {again}"
        raise SavingError(f"{path} could not be written: {reason}; {advice}") from error


def error_number(error: Exception) -> int | None:
    """Return the errno of an error of the disk, 0 if it is unknown; None for other errors."""
    if isinstance(error, OSError):
        return error.errno or 0
    if type(error).__name__ == "SafetensorError":
        match = re.search(r"os error (\d+)", str(error))
        return int(match[1]) if match else 0
    return None


def remedy(number: int) -> str:
    """Return what to do about an errno."""
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    return "make sure that the disk works"
