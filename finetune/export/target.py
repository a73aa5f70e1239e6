"""The folder that a model is written to: when it may be replaced, and its lock."""

from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.paths import expanded
from rerank_plugin.io.publishing import PUBLISHING, contents
from rerank_plugin.model.settings import ADAPTER, FILE

#: The files by which programs recognise a model folder, ours first; `publish_folder` writes them
#: last.
MODEL_FILES = (FILE, ADAPTER, "config.json")


def lock_of(work: Path) -> Path:
    """Return the file that is locked while a command works in a folder."""
    return work.with_name(work.name + ".lock")


def check_target(target: Path, *, overwrite: bool, option: str = "finetune_model_dir") -> None:
    """Check that a folder is new, empty, or an earlier trained folder that may be replaced.

    Raises:
        OptionError: it is a file, or contains something else.
    """
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OptionError(option, f"not a folder: {parent}")
    if not target.exists():
        return
    if not target.is_dir():
        raise OptionError(option, f"not a folder: {target}")
    if not contents(target) or (target / PUBLISHING).exists():
        return
    if not (target / FILE).is_file():
        problem = f"{target} is not empty and contains no trained model"
        raise OptionError(option, f"{problem}: choose another folder")
    if not overwrite:
        problem = f"{target} contains a trained model"
        raise OptionError(option, f"{problem}: choose another folder, or use --overwrite")


def check_not_the_base(
    target: Path,
    base: str,
    option: str = "finetune_model_dir",
    what: str = "the base of the adapter",
) -> None:
    """Check that a folder is not one that is still needed, such as an adapter's base.

    Raises:
        OptionError: it is.
    """
    folder = expanded(base)
    if target.is_dir() and folder.is_dir() and target.samefile(folder):
        raise OptionError(option, f"{target} is {what}: choose another folder")
