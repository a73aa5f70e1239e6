"""Make a model folder beside its target, and rename it to the target when it is complete."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rerank_plugin.errors import OptionError
from rerank_plugin.io.disk_errors import saving
from rerank_plugin.io.locks import locked
from rerank_plugin.io.publishing import EARLIER, publish_folder, restore_earlier, staging_folder

from .options import FolderOptions
from .target import MODEL_FILES, lock_of

Made = TypeVar("Made")


def make_folder(options: FolderOptions, make: Callable[[Path], Made]) -> Made:
    """Make a model folder in a locked folder beside the target, and rename it to the target.

    Args:
        options: The options with the target.
        make: Writes the model folder, which does not exist yet, and returns a result. What it
            writes beside the folder is removed.

    Returns:
        The result of `make`.

    Raises:
        OptionError: another command is writing the target, or it must not be replaced.
        SavingError: the disk is full or broken.
    """
    work = staging_folder(options.target, ".part", option="output_dir")
    lock = lock_of(work)
    try:
        with locked(lock):
            try:
                return make_in(work, options, make)
            finally:
                lock.unlink(missing_ok=True)
    except BlockingIOError as error:
        raise OptionError("output_dir", f"{options.output_dir}: {error.strerror}") from None


def make_in(work: Path, options: FolderOptions, make: Callable[[Path], Made]) -> Made:
    """Make a model folder in a folder that no other command uses, and publish it."""
    target, staged = options.target, work / "model"
    restore_earlier(work / EARLIER, target)
    options.check_target()
    # Files of an earlier attempt that was killed.
    shutil.rmtree(work, ignore_errors=True)
    with saving(work):
        try:
            made = make(staged)
            # Something may have appeared at the target that must not be replaced.
            options.check_target()
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        publish_folder(staged, target, last=MODEL_FILES)
    shutil.rmtree(work, ignore_errors=True)
    return made
