"""Write files and folders through to the disk, where the file system can do so."""

import errno
import logging
import os
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

#: The errors of systems and file systems that cannot sync a file or a folder. Others lose data.
CANNOT_SYNC = {
    errno.EACCES,
    errno.EBADF,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EROFS,
}


def sync(path: Path) -> None:
    """Sync a file, or a folder with everything in it."""
    for inner in path.rglob("*"):
        sync_file(inner)
    sync_file(path)


def sync_file(path: Path) -> None:
    """Sync a file, or a folder's list of files; warn once if that is not supported.

    Raises:
        OSError: the disk is full or broken.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows cannot open folders
    try:
        # Windows syncs only files that are open for writing.
        number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
        warn_of_no_sync("folders" if is_folder else "files", os.strerror(error.errno))


@cache
def warn_of_no_sync(kind: str, reason: str) -> None:
    """Warn once that results may not survive a power cut."""
    logger.warning(
        "%s cannot be synced here (%s): a power cut may lose the latest results", kind, reason
    )
