"""Paths as users give them, and the absolute paths behind links."""

import errno
import os
from pathlib import Path

from rerank_plugin.errors import OptionError


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder for `~`, or unchanged if there is no such home.

    `Path.expanduser` raises there: in containers a user may have no home, and names can be wrong.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def real_path(path: Path) -> Path:
    """Return the absolute path with all links resolved: a result replaces the target of a link.

    Raises:
        OSError: the links form a loop.
    """
    try:
        return path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def real_target(target: Path, *, option: str) -> Path:
    """Return the absolute path of an option's target, with all links resolved.

    Raises:
        OptionError: the links form a loop, or a home directory does not exist.
    """
    if target.parts and target.parts[0].startswith("~"):
        raise OptionError(option, f"{target}: there is no home directory {target.parts[0]}")
    try:
        return real_path(target)
    except OSError as error:
        raise OptionError(option, f"{target}: {error.strerror}") from None
