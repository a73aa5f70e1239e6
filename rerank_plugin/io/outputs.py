"""Check the files and folders that a command will write, before it works for hours."""

from collections.abc import Sequence
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import part_file
from rerank_plugin.io.jsonl import DataPath, is_input
from rerank_plugin.io.locks import locked
from rerank_plugin.io.paths import real_path
from rerank_plugin.io.probes import try_file, try_folder
from rerank_plugin.io.streams import is_stream


def check_output(
    file: Path, inputs: Sequence[DataPath | None], *, overwrite: bool, option: str = "output"
) -> None:
    """Check that an option's file can be written and replaces nothing that is needed.

    Its folder is created. Pipes, devices and open files such as `/dev/stdout` are written as they
    are.

    Raises:
        OptionError: the folder cannot be created or written, the file exists already or is
            an input, or another command is writing it.
    """
    try:
        if is_stream(file):
            return
        target = real_path(file)
        if target.is_dir():
            raise OptionError(option, f"{file} is a folder, expected a file")
        if any(path is not None and is_input(file, path) for path in inputs):
            raise OptionError(option, f"{file} is an input of the command: choose another file")
        if target.exists() and not overwrite:
            raise OptionError(
                option, f"{file} already exists: choose another file, or use --overwrite"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try_file(target)
        part = part_file(target)
        if part.exists():
            with locked(part):
                pass
    except OSError as error:
        raise OptionError(option, f"{file} cannot be written: {error.strerror}") from None


def check_output_folder(folder: Path, *, option: str) -> None:
    """Check that files can be written in a folder, which may not exist yet.

    Raises:
        OptionError: they cannot.
    """
    try:
        target = real_path(folder)
        existing = next(path for path in (target, *target.parents) if path.exists())
        if not existing.is_dir():
            raise OptionError(option, f"{existing} is a file, expected a folder")
        try_folder(existing / target.name)
    except OSError as error:
        raise OptionError(option, f"{folder} cannot be written: {error.strerror}") from None


def scratch_folder(output: Path) -> Path | None:
    """Return the folder for large temporary files: the output's, or None for the system's."""
    return None if is_stream(output) else real_path(output).parent
