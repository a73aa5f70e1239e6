"""Locks between processes: one command at a time writes a result."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: Windows has no such locks; nothing is locked there.
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None

#: The errors for a lock that another process holds; others mean that there are no locks.
TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


def take_lock(path: Path) -> int | None:
    """Lock a file against other processes; it is created if it is missing.

    Returns:
        An open descriptor, which holds the lock until it is closed; None if there are no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        return None
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(number)
            if error.errno in TAKEN:
                raise taken(path) from None
            warn_of_no_locks(path.parent, error.strerror)
            return None
        # Its last holder may have renamed or removed the file: a lock on nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), path.stat()):
                return number
        os.close(number)


def taken(path: Path) -> BlockingIOError:
    """Return the error of a file that another process has locked."""
    problem = "another command is writing it: wait until it ends, or choose another file"
    return BlockingIOError(errno.EAGAIN, problem, str(path))


def release_lock(number: int | None) -> None:
    """Release a lock that `take_lock` returned."""
    if number is not None:
        os.close(number)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file."""
    number = take_lock(path)
    try:
        yield
    finally:
        release_lock(number)


@cache
def warn_of_no_locks(folder: Path, reason: str) -> None:
    """Warn once for a folder that two commands may write one result."""
    logger.warning(
        "this file system has no locks (%s): do not start a second command that writes in %s",
        reason,
        folder,
    )
