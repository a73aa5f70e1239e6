"""Where a run works and what it leaves: the trained folder appears whole or not at all."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_plugin.errors import OptionError
from rerank_plugin.jsonl import write_json
from rerank_plugin.settings import FILE

#: The file of a run that says what must outlive its process.
STATE = "state.json"


class RunFolder:
    """`<finetune_model_dir>.run/` while the run lasts, `<finetune_model_dir>` at its end.

    Args:
        target: The folder that is wanted.
        overwrite: Replace an earlier trained folder or an unfinished run.

    Raises:
        OptionError: the folder holds something that is not ours, or a result to be kept.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self.target = target
        self.work = target.with_name(target.name + ".run")
        check_target(target, overwrite=overwrite)
        if self.work.exists():
            if not (self.work / STATE).is_file():
                raise OptionError(
                    "finetune_model_dir", f"{self.work} is needed for the run and holds something"
                )
            if not overwrite:
                raise OptionError(
                    "finetune_model_dir",
                    f"{self.work} holds an unfinished run, its best model in {self.model}: "
                    "move it away, or start anew with --overwrite",
                )
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True)
        # By this file a later run knows the folder as one of ours.
        write_json(self.work / STATE, {"finetune_model_dir": str(target)})

    @property
    def model(self) -> Path:
        """The best model so far; becomes the trained folder."""
        return self.work / "model"

    @property
    def history(self) -> Path:
        """One line a log or evaluation step."""
        return self.work / "history.jsonl"

    @property
    def groups(self) -> Path:
        """The groups as Arrow files."""
        return self.work / "groups"

    @property
    def skipped_lines(self) -> Path:
        """The bad lines that were left out."""
        return self.work / "skipped_lines.jsonl"

    def publish(self) -> None:
        """Put the finished model in its place by a rename, and clear the work away."""
        for file in (self.history, self.skipped_lines):
            if file.exists():
                shutil.copy2(file, self.model / file.name)
        publish_folder(self.model, self.target)
        shutil.rmtree(self.work)

    def discard(self) -> None:
        """Clear away a run that ended before it had a model worth keeping."""
        shutil.rmtree(self.work, ignore_errors=True)


def check_target(target: Path, *, overwrite: bool, option: str = "finetune_model_dir") -> None:
    """Refuse a folder that holds something else, or a result that was not to be replaced."""
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OptionError(option, f"{parent} is a file")
    if not target.exists():
        return
    if not target.is_dir():
        raise OptionError(option, f"{target} is a file")
    if not any(target.iterdir()):
        return
    if not (target / FILE).is_file():
        raise OptionError(
            option, f"{target} exists and holds something else: choose another folder"
        )
    if not overwrite:
        raise OptionError(
            option, f"{target} holds a trained model: choose another folder, or --overwrite"
        )


def publish_folder(finished: Path, target: Path) -> None:
    """Rename a finished folder into its place, over an earlier one if there is any."""
    if not target.exists():
        finished.rename(target)
        return
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as replaced:
        earlier = target.rename(Path(replaced) / target.name)
        try:
            finished.rename(target)
        except OSError:
            earlier.rename(target)
            raise
