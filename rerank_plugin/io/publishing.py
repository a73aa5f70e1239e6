"""Publish result folders: made in a folder beside the target, synced, and renamed to it.

Where a rename cannot replace the target (a mount point, a folder in a read-only one), the target is
filled file by file. The files by which other programs recognise a model are written last.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import CANNOT_RENAME
from rerank_plugin.io.probes import try_folder
from rerank_plugin.io.sync import sync, sync_file

#: The file that marks a folder which is being filled.
PUBLISHING = ".publishing"

#: The earlier result, until the new one has replaced it.
EARLIER = "earlier"

#: Entries of a folder that are not part of a result: working files, and what file systems create.
NO_CONTENTS = {".run", ".run.lock", ".part", ".part.lock", PUBLISHING, "lost+found"}


def staging_folder(target: Path, suffix: str, *, option: str) -> Path:
    """Return the folder in which a result for `target` is made, after trying to write there.

    It is beside the target, or inside it where a rename cannot replace the target. A mount point
    may be the only folder that outlives a container.

    Args:
        target: The folder for the result, without links.
        suffix: Added to the target's name for the folder beside it; the name of the one inside it.
        option: The option that names the target.

    Raises:
        OptionError: neither folder can be written.
    """
    beside, inside = target.with_name(target.name + suffix), target / suffix
    problem: OSError | None = None
    if not inside.exists() and target != Path.cwd():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try_folder(beside, target)
        except OSError as error:
            problem = error
        else:
            return beside
    try:
        if target.is_dir():
            try_folder(inside)
            return inside
    except OSError as error:
        problem = error
    reason = problem.strerror if problem else "not a folder"
    raise OptionError(option, f"{target} cannot be written: {reason}") from problem


def contents(folder: Path) -> list[Path]:
    """Return the entries of a result folder, without unfinished work and `lost+found`."""
    return [path for path in folder.iterdir() if path.name not in NO_CONTENTS]


def publish_folder(finished: Path, target: Path, *, last: Sequence[str]) -> None:
    """Rename a finished folder to its target, or fill the target; an earlier result is replaced.

    Args:
        finished: The folder. An earlier result is moved beside it, so its parent must be a folder
            for this work alone.
        target: Its new path, without links.
        last: The files by which programs recognise such a folder. If the target is filled, they
            are removed first and written last.
    """
    follow_umask(finished)
    sync(finished)
    if target not in finished.parents:
        try:
            rename_folder(finished, target)
        except OSError as error:
            if error.errno not in CANNOT_RENAME or not target.is_dir():
                raise
        else:
            return
    fill_folder(finished, target, last)


def rename_folder(finished: Path, target: Path) -> None:
    """Rename a folder to its target, and remove the earlier result."""
    earlier = finished.with_name(EARLIER)
    shutil.rmtree(earlier, ignore_errors=True)
    if target.exists():
        target.rename(earlier)
    try:
        finished.rename(target)
    except OSError:
        restore_earlier(earlier, target)
        raise
    sync_file(target.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def restore_earlier(earlier: Path, target: Path) -> None:
    """Move an earlier result back whose replacement failed or was killed."""
    if earlier.is_dir() and not target.exists():
        earlier.rename(target)


def fill_folder(finished: Path, target: Path, last: Sequence[str]) -> None:
    """Replace the files of a folder by those of a finished one, which is kept for another try."""
    marker = target / PUBLISHING
    has_earlier = any((target / name).exists() for name in (PUBLISHING, *last))
    marker.touch()
    sync_file(target)

    def order(path: Path) -> int:
        return last.index(path.name) if path.name in last else -1

    # Without an earlier result the folder was empty before this command began.
    for path in sorted(contents(target), key=order, reverse=True) if has_earlier else ():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    files = [path for path in finished.rglob("*") if path.is_file()]
    for path in sorted(files, key=order):
        link_or_copy(path, target / path.relative_to(finished))
    for path in contents(target):
        sync(path)
    sync_file(target)
    marker.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy where links are not supported."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def follow_umask(folder: Path) -> None:
    """Give all files the permissions of new ones: some libraries write them for the owner only."""
    probe = folder / ".permissions"
    probe.touch()
    permissions = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with suppress(OSError):  # some file systems have no permissions
                path.chmod(permissions)
