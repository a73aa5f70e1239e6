"""Checkpoints: Trainer's own files, and a record written last that makes them complete.

Trainer writes a checkpoint in place. A kill in the middle leaves a folder without its record, which
is ignored, and replaced when the run reaches that step again.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rerank_plugin.io.atomic import write_text
from rerank_plugin.io.sync import sync, sync_file
from rerank_plugin.io.versions import with_versions

RUN_FILE = "run.json"

#: A disk with fewer free bytes is full.
FULL_DISK = 2**20

#: What to do when a disk that could not be written can be.
RESUMES = "start the same command again: it resumes from the last checkpoint"


class Stateful(Protocol):
    """An object whose state a resumed run takes over from the interrupted one."""

    def state_dict(self) -> Any:
        """Return the state as JSON values."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Take over a state that `state_dict` returned."""
        ...


def checkpoint_dir(work: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return work / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def latest_checkpoint(work: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, if there is any."""
    steps = {
        int(record.parent.name.rpartition("-")[2]): record.parent
        for record in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{RUN_FILE}")
    }
    return steps[max(steps)] if steps else None


@contextmanager
def torch_writes(folder: Path) -> Iterator[None]:
    """Raise torch's error about a file as the system's, which torch.save drops.

    Raises:
        OSError: a file could not be written.
    """
    try:
        yield
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's file writer
            raise
        is_full = shutil.disk_usage(folder).free < FULL_DISK
        number = errno.ENOSPC if is_full else errno.EIO
        raise OSError(number, os.strerror(number), str(folder)) from error


def complete_checkpoint(folder: Path, record: Mapping[str, Any]) -> None:
    """Sync the files of a checkpoint, write its record, and remove the other checkpoints."""
    sync(folder)
    write_text(folder / RUN_FILE, json.dumps(with_versions(record)))
    # Renames reach the disk before the checkpoint that this one replaces is removed.
    sync_file(folder)
    sync_file(folder.parent)
    for path in folder.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path != folder:
            shutil.rmtree(path)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a checkpoint."""
    record: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    return record
