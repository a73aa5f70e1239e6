"""Results on disk, whole or not at all: staged, synced, and put in their place by a rename.

Where no rename can put a folder in its place (a mount point, a folder whose parent cannot be
written), it is filled in place: what makes other programs take it for a model comes last.
"""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from rerank_plugin.errors import OptionError, SavingError
from rerank_plugin.io.locks import locked

logger = logging.getLogger(__name__)

#: Errors of a system or a file system that cannot sync a file or a folder; others lose data.
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

#: Errors of a rename over something that may be written all the same.
CANNOT_RENAME = {errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS, errno.EXDEV}

#: In a folder that is being filled.
PUBLISHING = ".publishing"

#: The folder that it is filled from, until it is there.
EARLIER = "earlier"

#: What is no part of a result: work inside its folder, and what a file system puts there itself.
NO_CONTENTS = {".run", ".run.lock", ".part", ".part.lock", PUBLISHING, "lost+found"}


def real_path(path: Path) -> Path:
    """Return the absolute path behind all links: a result replaces what a link names.

    Raises:
        OSError: links that never end.
    """
    try:
        return path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def descriptor(path: Path) -> int | None:
    """Return the number of this process's open file that `/dev/stdout` and the like name."""
    links = 0
    while links < 40:
        folder = path.parent.resolve()
        if path.name.isdigit() and re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}/fd", str(folder)):
            return int(path.name)
        if not path.is_symlink():
            return None
        path, links = folder / path.readlink(), links + 1
    return None


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe, a device or an open file: written as it comes."""
    return descriptor(path) is not None or (
        path.exists() and not path.is_file() and not path.is_dir()
    )


def is_stdout(path: str | Path | None) -> bool:
    """Return whether a path names this process's stdout."""
    return path is not None and descriptor(Path(path)) == 1


def open_stream(path: Path) -> IO[str]:
    """Open a stream for writing text."""
    number = descriptor(path)
    # A file that is opened anew would be written from its beginning.
    return open(path if number is None else os.dup(number), "w", encoding="utf-8")  # noqa: PTH123


def scratch_place(output: Path) -> Path | None:
    """Return where large files of a command are put meanwhile: beside its output, if that is one.

    None is the system's folder for such files.
    """
    return None if is_stream(output) else real_path(output).parent


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the system that names no file the name of this one."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def writing(path: Path) -> Iterator[IO[str]]:
    """Open a file that is written beside its place and renamed: it is never seen half-written.

    Streams are written as they are.

    Raises:
        BlockingIOError: another process is writing it.
        FileExistsError: the file was made by something else meanwhile.
    """
    if is_stream(path):
        with naming(path), open_stream(path) as file:
            yield file
        return
    target = real_path(path)
    staged, replaces = part_of(target), target.exists()
    with naming(path), locked(staged):
        try:
            with staged.open("w", encoding="utf-8") as file:
                yield file
            move_file(staged, target, replaces=replaces)
        except FileExistsError:
            raise
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


def part_of(target: Path) -> Path:
    """Return where a file is made until it is whole."""
    return target.with_name(target.name + ".part")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with writing(path) as file:
        file.write(text)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def move_file(staged: Path, target: Path, *, replaces: bool) -> None:
    """Sync a file and put it in its place; into the one there if no rename can replace that.

    Args:
        staged: The file.
        target: Its place.
        replaces: Whether a file was there when the work began; if not, none is replaced.

    Raises:
        FileExistsError: a file has appeared there meanwhile; the new one stays where it is.
    """
    sync_file(staged)
    if target.exists() and not replaces:
        problem = f"appeared while it was being made; the results are in {staged}"
        raise FileExistsError(errno.EEXIST, problem, str(target))
    try:
        staged.replace(target)
    except OSError as error:
        if error.errno not in CANNOT_RENAME or not target.is_file():
            raise
        # A mount point, as containers make them of single files.
        shutil.copyfile(staged, target)
        sync_file(target)
        staged.unlink()


def sync(path: Path) -> None:
    """Bring a file, or a folder with all its files, to the disk."""
    for inner in path.rglob("*"):
        sync_file(inner)
    sync_file(path)


def sync_file(path: Path) -> None:
    """Bring a file, or the list of a folder's files, to the disk, where that can be done.

    Raises:
        OSError: the disk is full or broken.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # folders cannot be opened there
    try:
        # Windows syncs only what is open for writing.
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
def warn_of_no_sync(what: str, reason: str) -> None:
    """Say once that results may not survive a power cut."""
    logger.warning(
        "%s cannot be synced here (%s): after a power cut the latest may be missing", what, reason
    )


@contextmanager
def saving(path: Path, *, again: str = "start the same command again") -> Iterator[None]:
    """Turn what can go wrong with a disk into one line; what is half-written is removed.

    Args:
        path: What is written.
        again: What to do when the disk can be written again.

    Raises:
        SavingError: it could not be written.
    """
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number is None:
            raise
        shutil.rmtree(path, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        advice = f"{remedy(number)} and {again}"
        raise SavingError(f"{path} could not be written: {reason}; {advice}") from error


def error_number(error: Exception) -> int | None:
    """Return the system's number of an error, 0 if unknown; None if no file was at fault."""
    if isinstance(error, OSError):
        return error.errno or 0
    if type(error).__name__ == "SafetensorError":
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else 0
    return None


def remedy(number: int) -> str:
    """Return what to do about an error of the system."""
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    return "make sure that the disk works"


def try_file(file: Path) -> None:
    """Create, rename and remove a file where another will be.

    Raises:
        OSError: one of them cannot be done.
    """
    probe = file.with_name(f"{file.name}.part.test")
    moved = file.with_name(f"{file.name}.part.same")
    try:
        probe.write_text("a test of the disk", encoding="utf-8")
        sync_file(probe)
        probe.rename(moved)
        moved.unlink()
    finally:
        for path in (probe, moved):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    if file.exists() and not os.access(file, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(file))


def try_folder(folder: Path, target: Path | None = None) -> None:
    """Create a folder like another one, rename it and remove it.

    Args:
        folder: The other one, in which a result will be made.
        target: Where that will be renamed to; an empty folder there is replaced by an empty one.

    Raises:
        OSError: one of them cannot be done.
    """
    # As long as the longest name that is needed.
    probe, moved = (folder.with_name(folder.name + end) for end in (".test", ".same"))
    there = target is not None and target.exists()
    try:
        shutil.rmtree(probe, ignore_errors=True)
        probe.mkdir()
        try_file(probe / "file")
        probe.rename(moved)
        if target is None:
            return
        try:
            moved.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not there:
                raise
        else:
            if not there:
                target.rmdir()
    finally:
        for path in (probe, moved):
            shutil.rmtree(path, ignore_errors=True)


def staging_folder(target: Path, suffix: str, *, option: str) -> Path:
    """Return where a folder is made that will appear at `target`; what is needed is tried.

    That is beside the target, or inside it where no rename can put a folder in its place. A mount
    point may be all that outlives a container.

    Args:
        target: The place, without links.
        suffix: What the name beside it ends in, and the name inside it is.
        option: The option that names the target.

    Raises:
        OptionError: neither can be.
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


def real_target(target: Path, *, option: str) -> Path:
    """Return the absolute path of an option's target, behind all links.

    Raises:
        OptionError: links that never end, or the home of somebody who has none.
    """
    if target.parts and target.parts[0].startswith("~"):
        raise OptionError(option, f"{target}: there is no home directory {target.parts[0]}")
    try:
        return real_path(target)
    except OSError as error:
        raise OptionError(option, f"{target}: {error.strerror}") from None


def contents(folder: Path) -> list[Path]:
    """Return what is in a folder for results, but for unfinished work and `lost+found`."""
    return [path for path in folder.iterdir() if path.name not in NO_CONTENTS]


def publish_folder(finished: Path, target: Path, *, last: Sequence[str]) -> None:
    """Put a finished folder in its place, over an earlier one if there is any.

    Args:
        finished: The folder; in a folder for this work alone, as the earlier one is put beside it.
        target: Its place, without links.
        last: The files by which programs know such a folder. Where it is filled in place, they are
            the first to go and the last to come.
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
    fill(finished, target, last)


def rename_folder(finished: Path, target: Path) -> None:
    """Rename a folder into its place, over an earlier one if there is any."""
    earlier = finished.with_name(EARLIER)
    shutil.rmtree(earlier, ignore_errors=True)
    if target.exists():
        target.rename(earlier)
    try:
        finished.rename(target)
    except OSError:
        bring_back(earlier, target)
        raise
    sync_file(target.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def bring_back(earlier: Path, target: Path) -> None:
    """Put an earlier folder back whose replacement failed or was killed."""
    if earlier.is_dir() and not target.exists():
        earlier.rename(target)


def fill(finished: Path, target: Path, last: Sequence[str]) -> None:
    """Fill a folder with the files of a finished one, which stays: a kill leaves it as it was."""
    marker = target / PUBLISHING
    known = any((target / name).exists() for name in (PUBLISHING, *last))
    marker.touch()
    sync_file(target)

    def order(path: Path) -> int:
        return last.index(path.name) if path.name in last else -1

    # Before this command began, there was nothing in the folder, or an earlier result.
    for path in sorted(contents(target), key=order, reverse=True) if known else ():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    files = [path for path in finished.rglob("*") if path.is_file()]
    for path in sorted(files, key=order):
        put_file(path, target / path.relative_to(finished))
    for path in contents(target):
        sync(path)
    sync_file(target)
    marker.unlink()


def put_file(source: Path, target: Path) -> None:
    """Give a file a second place: by a link where that can be, else by a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def follow_umask(folder: Path) -> None:
    """Give files the rights of new ones: some libraries stage them readable by their owner only."""
    probe = folder / ".rights"
    probe.touch()
    rights = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with suppress(OSError):  # where there are no rights to change
                path.chmod(rights)
