"""Write files atomically: into a temporary file beside the target, synced, and renamed to it."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rerank_plugin.io.disk_errors import naming
from rerank_plugin.io.locks import locked
from rerank_plugin.io.paths import real_path
from rerank_plugin.io.streams import is_stream, open_stream
from rerank_plugin.io.sync import sync_file

#: The errors of a rename to a target that may be writable all the same, such as a mount point.
CANNOT_RENAME = {errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS, errno.EXDEV}


@contextmanager
def writing(path: Path) -> Iterator[IO[str]]:
    """Open a file for writing text that appears under its name when it is complete.

    Streams are written directly.

    Raises:
        BlockingIOError: another process is writing the file.
        FileExistsError: something else created the file meanwhile.
    """
    if is_stream(path):
        with naming(path), open_stream(path) as file:
            yield file
        return
    target = real_path(path)
    staged, replaces = part_file(target), target.exists()
    with naming(path), locked(staged):
        try:
            with staged.open("w", encoding="utf-8") as file:
                yield file
            move_file(staged, target, replaces=replaces)
        except FileExistsError:
            raise
        except BaseException:  # Ctrl-C too must not leave an incomplete file
            staged.unlink(missing_ok=True)
            raise


def part_file(target: Path) -> Path:
    """Return the temporary file that is renamed to the target."""
    return target.with_name(target.name + ".part")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with writing(path) as file:
        file.write(text)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def move_file(staged: Path, target: Path, *, replaces: bool) -> None:
    """Sync a file and rename it to its target; copy it if the target cannot be renamed to.

    Args:
        staged: The file.
        target: Its new path.
        replaces: Whether the target existed when the work began; if not, none is replaced.

    Raises:
        FileExistsError: something else created the target meanwhile; the file is kept.
    """
    sync_file(staged)
    if target.exists() and not replaces:
        problem = f"was created by something else meanwhile; the results are in {staged}"
        raise FileExistsError(errno.EEXIST, problem, str(target))
    try:
        staged.replace(target)
    except OSError as error:
        if error.errno not in CANNOT_RENAME or not target.is_file():
            raise
        # Containers mount single files.
        shutil.copyfile(staged, target)
        sync_file(target)
        staged.unlink()
