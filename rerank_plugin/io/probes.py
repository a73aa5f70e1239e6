"""Try to write files and folders before hours of work depend on it."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from rerank_plugin.io.sync import sync_file


def try_file(file: Path) -> None:
    """Create, rename and remove a file beside one that will be written.

    Raises:
        OSError: one of these failed, or the file exists and is read-only.
    """
    probe = file.with_name(f"{file.name}.part.test")
    renamed = file.with_name(f"{file.name}.part.same")
    try:
        probe.write_text("a test of the disk", encoding="utf-8")
        sync_file(probe)
        probe.rename(renamed)
        renamed.unlink()
    finally:
        for path in (probe, renamed):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    if file.exists() and not os.access(file, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(file))


def try_folder(folder: Path, target: Path | None = None) -> None:
    """Create, rename and remove a folder beside one that will be made.

    Args:
        folder: The folder in which a result will be made.
        target: Its name when it is complete. An empty folder of that name is replaced by another
            empty one.

    Raises:
        OSError: one of these failed.
    """
    # The names are as long as the longest one that is needed.
    probe, renamed = (folder.with_name(folder.name + suffix) for suffix in (".test", ".same"))
    try:
        shutil.rmtree(probe, ignore_errors=True)
        probe.mkdir()
        try_file(probe / "file")
        probe.rename(renamed)
        if target is not None:
            try_rename(renamed, target)
    finally:
        for path in (probe, renamed):
            shutil.rmtree(path, ignore_errors=True)


def try_rename(folder: Path, target: Path) -> None:
    """Rename an empty folder to a target, which may be a folder that is not empty.

    Raises:
        OSError: it failed for another reason.
    """
    existed = target.exists()
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not existed:
            raise
    else:
        if not existed:
            target.rmdir()
