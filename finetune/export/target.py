"""The folder that a model is written to: what it must not hold, and its lock."""

from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import PUBLISHING, contents
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.settings import ADAPTER, FILE

#: What programs know a model folder by, ours first; `atomic.publish_folder` puts it there last.
MODEL_FILES = (FILE, ADAPTER, "config.json")


def lock_of(work: Path) -> Path:
    """Return the file that is locked while a command works in a folder."""
    return work.with_name(work.name + ".lock")


def check_target(target: Path, *, overwrite: bool, option: str = "finetune_model_dir") -> None:
    """Refuse a folder that holds something else, or a result that was not to be replaced."""
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OptionError(option, f"{parent} is a file")
    if not target.exists():
        return
    if not target.is_dir():
        raise OptionError(option, f"{target} is a file")
    if not contents(target) or (target / PUBLISHING).exists():
        return
    if not (target / FILE).is_file():
        raise OptionError(
            option, f"{target} exists and holds something else: choose another folder"
        )
    if not overwrite:
        raise OptionError(
            option, f"{target} holds a trained model: choose another folder, or --overwrite"
        )


def check_not_the_base(target: Path, base: str, option: str = "finetune_model_dir") -> None:
    """Refuse a folder that an adapter stands on: replaced, the adapter could not be loaded."""
    folder = expanded(base)
    if target.is_dir() and folder.is_dir() and target.samefile(folder):
        raise OptionError(option, f"{target} is what the adapter needs: choose another folder")
