"""Where a run works and what it leaves: the trained folder appears whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank_plugin.errors import OptionError, SavingError
from rerank_plugin.io.atomic import (
    EARLIER,
    bring_back,
    publish_folder,
    real_target,
    staging_folder,
    write_json,
)
from rerank_plugin.io.locks import release_lock, take_lock

from ..export.target import MODEL_FILES, check_target, lock_of
from .checkpoint import RESUMES, latest_checkpoint
from .distributed import first_process_first, rank
from .model_selection import RECORD as KEPT
from .model_selection import recover

#: The file of a run that says what must outlive its process.
STATE = "state.json"

#: Where TensorBoard's logs are, by transformers.
LOGS = "runs"

#: What is beside a trained folder while it is made, and in it where that cannot be renamed.
WORK = ".run"


class RunFolder:
    """`<finetune_model_dir>.run/` while the run lasts, `<finetune_model_dir>` at its end.

    A folder that no rename can put there is filled in place, and the run works in its `.run/`.

    Args:
        target: The folder that is wanted.
        options: What the run is asked for; a run that was interrupted goes on if it was the same.
        overwrite: Replace an earlier trained folder or an unfinished run.

    Raises:
        OptionError: the folder holds something that is not ours, or a result to be kept, or it
            cannot be written.
    """

    def __init__(self, target: Path, options: Mapping[str, Any], *, overwrite: bool) -> None:
        self.target = target
        self._overwrite = overwrite
        #: Behind all links.
        self._place = real_target(target, option="finetune_model_dir")
        #: What outlives the process, in `state.json`; whether a folder was to be replaced, too: the
        #: same command then goes on with this run, and does not start it anew.
        self.state: dict[str, Any] = {"options": dict(options), "overwrite": overwrite}
        #: Where an interrupted run goes on.
        self.checkpoint: Path | None = None
        with first_process_first():
            if rank() == 0:
                check_target(target, overwrite=overwrite)
                self.work = staging_folder(self._place, WORK, option="finetune_model_dir")
                self._take(overwrite=overwrite)
            else:
                inside = self._place / WORK
                beside = self._place.with_name(self._place.name + WORK)
                self.work = inside if (inside / STATE).is_file() else beside
                self._find()

    def _take(self, *, overwrite: bool) -> None:
        """Make the folder, or take an interrupted run up again."""
        if not (self.work / STATE).is_file() and self.work.exists() and any(self.work.iterdir()):
            raise OptionError(
                "finetune_model_dir", f"{self.work} is needed for the run and holds something"
            )
        self._lock()
        try:
            self._start(overwrite=overwrite)
        except BaseException:
            self._unlock()
            raise

    def _start(self, *, overwrite: bool) -> None:
        """Make the folder or take a run up, in a folder of this process alone."""
        if (self.work / STATE).is_file() and (not overwrite or self._is_this_run()):
            self._find()
        bring_back(self.work / EARLIER, self._place)
        if self.checkpoint is None:
            remove(self.work)
            self.work.mkdir(parents=True)
            # By this file a later run knows the folder as one of ours.
            self.keep()

    def _is_this_run(self) -> bool:
        """Whether an interrupted run was asked for the same, to replace a folder included."""
        try:
            state = json.loads((self.work / STATE).read_text(encoding="utf-8"))
            return bool(state["overwrite"]) and state["options"] == self.state["options"]
        except (ValueError, KeyError, TypeError):
            return False

    def _find(self) -> None:
        """What an interrupted run has left, if it was asked for the same."""
        try:
            state = json.loads((self.work / STATE).read_text(encoding="utf-8"))
            changed = differences(state["options"], self.state["options"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OptionError(
                "finetune_model_dir",
                f"{self.work} holds an unfinished run that cannot be read: start anew with "
                "--overwrite",
            ) from None
        if changed:
            raise OptionError(
                "finetune_model_dir",
                f"{self.work} holds an unfinished run with other options ({changed}): start it "
                "with the same ones to go on, or anew with --overwrite",
            )
        recover(self.model)
        self.state, self.checkpoint = state, latest_checkpoint(self.work)

    def changed(self, option: str, what: str) -> OptionError:
        """An error of a resumed run whose data or model is another one."""
        problem = f"{what} not what the interrupted run had: put it back, or remove {self.work}"
        return OptionError(option, problem)

    def _lock(self) -> None:
        """Refuse a folder that another process is working for."""
        try:
            self._held = take_lock(lock_of(self.work))
        except BlockingIOError:
            problem = f"another run is working in {self.work}"
            raise OptionError("finetune_model_dir", problem) from None

    def _unlock(self) -> None:
        if rank() == 0:
            lock_of(self.work).unlink(missing_ok=True)
            release_lock(self._held)

    def keep(self, **values: Any) -> None:
        """Write down what a resumed run must not compute again."""
        self.state.update(values)
        if rank() == 0:
            write_json(self.work / STATE, self.state)

    @property
    def model(self) -> Path:
        """The model chosen so far; becomes the trained folder."""
        return self.work / "model"

    @property
    def copy(self) -> Path:
        """Where its copy stands, if what is published is not the model as it was trained."""
        return self.work / "finished"

    @property
    def history(self) -> Path:
        """One line a log or evaluation step."""
        return self.work / "history.jsonl"

    @property
    def skipped_lines(self) -> Path:
        """The bad lines that were left out."""
        return self.work / "skipped_lines.jsonl"

    def copy_model(self) -> Path:
        """A copy of the best model, to change it: a run that fails then needs it as it was."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.model, self.copy)
        return self.copy

    def publish(self, finished: Path) -> None:
        """Put the finished model in its place, and clear the work away.

        Raises:
            SavingError: something that is to be kept has come there meanwhile.
        """
        self._check_place()
        for file in (self.history, self.skipped_lines):
            if file.exists():
                shutil.copy2(file, finished / file.name)
        if (self.work / LOGS).is_dir():
            shutil.copytree(self.work / LOGS, finished / LOGS, dirs_exist_ok=True)
        (finished / KEPT).unlink(missing_ok=True)
        publish_folder(finished, self._place, last=MODEL_FILES)
        remove(self.work)
        self._unlock()

    def _check_place(self) -> None:
        """Check that what is in the place may still be replaced."""
        try:
            check_target(self.target, overwrite=self._overwrite)
        except OptionError:
            problem = f"{self.target} was made by something else while the run was working"
            raise SavingError(f"{problem}: move it away and {RESUMES}") from None

    def leave(self) -> None:
        """Let go of a run that ended early, and clear it away if it cannot be taken up again."""
        if rank() == 0:
            if latest_checkpoint(self.work) is None:
                remove(self.work)
            self._unlock()


def remove(work: Path) -> None:
    """Remove a run's folder; what a kill leaves of it is still known as ours, or empty."""
    if work.is_dir():
        for path in work.iterdir():
            if path.name != STATE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(work, ignore_errors=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which options are not what they were, in words."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}" for name in names)
