"""A cache of indices of files of groups, so that a file is read by the first run only.

An entry is a folder `<size>-<hash of the contents>`. Its `seen.json` has the paths and modification
times of files with these contents. A file with a known path, size and modification time is not
read; one that was moved, copied or touched is hashed; any other is indexed.
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

#: To be raised when the rows of an index change, or the rules for usable lines or equal queries.
FORMAT = 5

#: Entries that were not used for so long are removed.
KEEP_SECONDS = 30 * 24 * 3600
#: Beyond this size the least recently used ones are removed; unpacked files make most of it.
KEEP_BYTES = 32 * 1024**3
#: Entries that were used or written since are kept in any case.
FRESH_SECONDS = 24 * 3600

#: The modification time of a file that was changed less than this ago is not relied on: the file
#: can change again in the same tick of the file system's clock.
TICK_SECONDS = 2

SEEN = "seen.json"

#: The environment variable of another folder than the default one.
CACHE_VARIABLE = "RERANK_PLUGIN_CACHE"


def cache_folder() -> Path:
    """Return the folder of indices: under `$RERANK_PLUGIN_CACHE`, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return expanded(chosen) / f"groups-{FORMAT}"
    caches = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if caches.parts[0] != "~":
        return caches / "rerank-plugin" / f"groups-{FORMAT}"
    warn_of_no_cache("no home directory")
    return temporary_folder()


@cache
def temporary_folder() -> Path:
    """Return a folder for indices that is removed when this process ends."""
    folder = TemporaryDirectory(prefix="rerank-plugin-", ignore_cleanup_errors=True)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a forked process
            folder.cleanup()

    atexit.register(remove)
    return Path(folder.name)


@cache
def warn_of_no_cache(problem: str) -> None:
    """Warn once that indices cannot be kept, so that every run reads the data again."""
    logger.warning(
        "%s: indices of data files cannot be kept, so every run reads the files again; set %s to a "
        "writable folder",
        problem,
        CACHE_VARIABLE,
    )


class IndexCache:
    """A folder of indices, from which old ones are removed when it is opened.

    Where it cannot be written, new indices are kept in a temporary folder of this process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_old(folder)
        except OSError as error:
            self._give_up(error)

    def open(self, path: Path, *, stop_at_bad: bool, progress: bool = False) -> GroupFile:
        """Return a file with its index, which is made by reading the file where it is not cached.

        Args:
            path: The file, plain or gzipped.
            stop_at_bad: End at the first bad line. A cached index may have some.
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
        with suppress(OSError):  # an entry may be read-only, or owned by another user
            # The modification time of an entry is its last use.
            os.utime(entry)
            if looked - stamp[1] / 1e9 > TICK_SECONDS:
                remember(entry, path, stamp)
        return GroupFile(path, stamp, entry)

    def _make(self, path: Path, stamp: Stamp, *, stop_at_bad: bool, progress: bool = False) -> Path:
        """Index a file, in a temporary folder if the cache cannot be written."""
        try:
            return self._add(path, stamp, stop_at_bad=stop_at_bad, progress=progress)
        except OSError as error:
            if self.folder == temporary_folder():
                where, reason = self.folder, error.strerror
                problem = f"{where}: the index of {path} cannot be written: {reason}"
                raise InputError(f"{problem}; set {CACHE_VARIABLE} to a folder with room") from None
            self._give_up(error)
        return self._make(path, stamp, stop_at_bad=stop_at_bad, progress=progress)

    def _give_up(self, error: OSError) -> None:
        """Continue in a temporary folder."""
        warn_of_no_cache(f"{self.folder}: {error.strerror}")
        self.folder = temporary_folder()

    def _find(self, path: Path, stamp: Stamp) -> Path | None:
        """Return the entry of a file, if it has one; the file is read only if its size is known."""
        entries = list(self.folder.glob(f"{stamp[0]}-*"))
        for entry in entries:
            if seen(entry).get(str(path.absolute())) == stamp[1]:
                return entry
        if not entries:
            return None
        entry = self.folder / entry_name(stamp, hash_file(path))
        return entry if entry.exists() else None

    def _add(self, path: Path, stamp: Stamp, *, stop_at_bad: bool, progress: bool = False) -> Path:
        """Index a file, and return its entry, which appears complete or not at all."""
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
                # Another run has indexed the same file meanwhile.
                if not entry.exists():
                    raise
        return entry


def entry_name(stamp: Stamp, digest: str) -> str:
    """Return the name of an entry's folder."""
    return f"{stamp[0]}-{digest}"


def hash_file(path: Path) -> str:
    """Return the hash of a file's contents, unpacked."""
    digest = hashlib.sha256()
    with reading(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def seen(entry: Path) -> dict[str, int]:
    """Return the paths with an entry's contents, and their modification times."""
    try:
        paths: dict[str, int] = json.loads((entry / SEEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return paths


def remember(entry: Path, path: Path, stamp: Stamp) -> None:
    """Add a path to those with an entry's contents."""
    paths = seen(entry)
    if paths.get(str(path.absolute())) != stamp[1]:
        write_json(entry / SEEN, {**paths, str(path.absolute()): stamp[1]})


def clear_old(folder: Path) -> None:
    """Remove entries that were not used for long, and remains of interrupted runs."""
    now = time.time()
    entries = sorted(folder.iterdir(), key=last_use)
    size = sum(map(folder_size, entries))
    for entry in entries:
        unused = now - last_use(entry)
        is_partial = entry.name.startswith(".")
        if unused < FRESH_SECONDS or not (is_partial or unused > KEEP_SECONDS or size > KEEP_BYTES):
            continue
        size -= folder_size(entry)
        shutil.rmtree(entry, ignore_errors=True)


def last_use(entry: Path) -> float:
    """Return when an entry was last used, in seconds; 0 if another run has removed it."""
    with suppress(FileNotFoundError):
        return entry.stat().st_mtime
    return 0.0


def folder_size(entry: Path) -> int:
    """Return the size of an entry's files, without those that another run has removed."""
    size = 0
    for file in entry.glob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
