"""Where indices of files of groups outlive a run, so that the next one need not read them again.

An entry is a folder `<size>-<hash of the contents>`, with `seen.json`: under which paths, and with
which times of change, files of these contents were seen. A file that is where it was, with the size
and the time that it had, is not read; one that was moved, copied or touched is hashed; any other is
indexed.
"""

import atexit
import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_plugin.errors import InputError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.jsonl import reading
from rerank_plugin.io.paths import expanded

from .group_file import BLOCK, GroupFile, Stamp, changed, index_file, stamp_of

logger = logging.getLogger(__name__)

#: To be raised when an index holds something else, or when what makes a line usable or two queries
#: the same changes.
FORMAT = 3

#: Entries that were not used for so long are removed,
KEEP_SECONDS = 30 * 24 * 3600
#: and beyond so many bytes those that were not used for longest; unpacked files are what counts.
KEEP_BYTES = 32 * 1024**3
#: But none that was used, or is being written, since.
FRESH_SECONDS = 24 * 3600

#: A file that was changed less than this before it was looked at can change again in the same tick
#: of its clock: its time says nothing yet.
TICK_SECONDS = 2

SEEN = "seen.json"

#: The environment variable that names another folder than the usual one.
CACHE_VARIABLE = "RERANK_PLUGIN_CACHE"


def cache_folder() -> Path:
    """The user's folder for indices, under `$RERANK_PLUGIN_CACHE` or where caches belong."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return expanded(own) / f"groups-{FORMAT}"
    caches = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if caches.parts[0] != "~":
        return caches / "rerank-plugin" / f"groups-{FORMAT}"
    warn_of_no_cache("no home directory: nothing")
    return passing_folder()


@cache
def passing_folder() -> Path:
    """A folder for indices that is removed when this process ends."""
    folder = TemporaryDirectory(prefix="rerank-plugin-", ignore_cleanup_errors=True)
    maker = os.getpid()

    def remove() -> None:
        if os.getpid() == maker:  # not a process that was forked from it
            folder.cleanup()

    atexit.register(remove)
    return Path(folder.name)


@cache
def warn_of_no_cache(problem: str) -> None:
    """Say once what it costs that indices cannot be kept."""
    logger.warning(
        "%s can be kept of data files, which every run reads anew; set %s to a folder that can be "
        "written",
        problem,
        CACHE_VARIABLE,
    )


class IndexCache:
    """A folder of indices; making it removes what nobody has used for long.

    Where nothing can be written in it, new indices go into a folder of this process alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_old(folder)
        except OSError as error:
            self._give_up(error)

    def open(self, path: Path, *, stop_at_bad: bool, progress: bool = False) -> GroupFile:
        """A file with its index: one that is here, or one that is made by reading it once.

        Args:
            path: The file, plain or gzipped.
            stop_at_bad: End at the first bad line. An index that is here may have some.
            progress: Show a progress bar while the file is read.

        Raises:
            InputError: the file cannot be read, or a line is bad.
        """
        try:
            stamp = stamp_of(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        looked = time.time()
        entry = self._find(path, stamp) or self._make(
            path, stamp, stop_at_bad=stop_at_bad, progress=progress
        )
        with suppress(OSError):  # others may own an entry, and it may be readable alone
            # Its time says when it was used last.
            os.utime(entry)
            if looked - stamp[1] / 1e9 > TICK_SECONDS:
                remember(entry, path, stamp)
        return GroupFile(path, stamp, entry)

    def _make(self, path: Path, stamp: Stamp, *, stop_at_bad: bool, progress: bool = False) -> Path:
        """Index a file, in a passing folder if nothing can be written in the usual one."""
        try:
            return self._add(path, stamp, stop_at_bad=stop_at_bad, progress=progress)
        except OSError as error:
            if self.folder == passing_folder():
                where, reason = self.folder, error.strerror
                problem = f"{where}: the index of {path} cannot be written there: {reason}"
                raise InputError(f"{problem}; set {CACHE_VARIABLE} to a folder with room") from None
            self._give_up(error)
        return self._make(path, stamp, stop_at_bad=stop_at_bad, progress=progress)

    def _give_up(self, error: OSError) -> None:
        """Go on in a passing folder."""
        warn_of_no_cache(f"{self.folder}: {error.strerror}: nothing")
        self.folder = passing_folder()

    def _find(self, path: Path, stamp: Stamp) -> Path | None:
        """The entry of a file, if it has one; the file is read only if its size is known."""
        entries = list(self.folder.glob(f"{stamp[0]}-*"))
        for entry in entries:
            if seen(entry).get(str(path.absolute())) == stamp[1]:
                return entry
        if not entries:
            return None
        entry = self.folder / entry_name(stamp, hash_file(path))
        return entry if entry.exists() else None

    def _add(self, path: Path, stamp: Stamp, *, stop_at_bad: bool, progress: bool = False) -> Path:
        """Index a file; the entry appears whole or not at all."""
        with TemporaryDirectory(prefix=".part-", dir=self.folder) as folder:
            work = Path(folder) / "entry"
            work.mkdir()
            digest = index_file(path, work, stop_at_bad=stop_at_bad, progress=progress)
            if stamp_of(path) != stamp:
                raise changed(path)
            entry = self.folder / entry_name(stamp, digest)
            try:
                work.rename(entry)
            except OSError:
                # Another run was quicker with the same file.
                if not entry.exists():
                    raise
        return entry


def entry_name(stamp: Stamp, digest: str) -> str:
    """The name of an entry's folder."""
    return f"{stamp[0]}-{digest}"


def hash_file(path: Path) -> str:
    """The hash of a file's contents, unpacked."""
    digest = hashlib.sha256()
    with reading(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def seen(entry: Path) -> dict[str, int]:
    """Under which paths an entry's contents were seen, and the times of their last change."""
    try:
        paths: dict[str, int] = json.loads((entry / SEEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return paths


def remember(entry: Path, path: Path, stamp: Stamp) -> None:
    """Write down where an entry's contents were seen."""
    paths = seen(entry)
    if paths.get(str(path.absolute())) != stamp[1]:
        write_json(entry / SEEN, {**paths, str(path.absolute()): stamp[1]})


def clear_old(folder: Path) -> None:
    """Remove what nobody has used for long, and what interrupted runs left."""
    now = time.time()
    entries = sorted(folder.iterdir(), key=last_use)
    size = sum(map(folder_size, entries))
    for entry in entries:
        unused = now - last_use(entry)
        left_over = entry.name.startswith(".")
        if unused < FRESH_SECONDS or not (left_over or unused > KEEP_SECONDS or size > KEEP_BYTES):
            continue
        size -= folder_size(entry)
        shutil.rmtree(entry, ignore_errors=True)


def last_use(entry: Path) -> float:
    """When an entry was used last, in seconds; never, if another run has removed it meanwhile."""
    with suppress(FileNotFoundError):
        return entry.stat().st_mtime
    return 0.0


def folder_size(entry: Path) -> int:
    """The bytes of an entry's files; of those that another run has not removed meanwhile."""
    size = 0
    for file in entry.glob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
