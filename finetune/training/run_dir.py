"""The working folder of a run: locked, resumable, and renamed to the trained folder at the end."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rerank_plugin.errors import OptionError, SavingError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.locks import release_lock, take_lock
from rerank_plugin.io.paths import expanded, real_target
from rerank_plugin.io.publishing import EARLIER, publish_folder, restore_earlier, staging_folder
from rerank_plugin.io.versions import SCHEMA_VERSION, with_versions

from ..argument_names import OURS
from ..config import FREE, FinetuneConfig
from ..export.target import MODEL_FILES, check_not_the_base, check_target, lock_of
from .checkpoint import RESUMES, latest_checkpoint
from .distributed import is_main_process, main_process_first, process_count
from .model_selection import KEPT_FILE, recover

#: The file of a run for what a resumed run must not compute again.
STATE = "state.json"

#: The folder of TensorBoard's logs, by transformers.
LOGS = "runs"

#: The suffix of the working folder beside the trained folder; its name inside a mount point.
WORK = ".run"

#: The entry of the state with the name of the folder in it that becomes the trained folder.
PUBLISHED = "published"

OPTION = "finetune_model_dir"


class RunDir:
    """`<finetune_model_dir>.run/` during the run, `<finetune_model_dir>` at its end.

    Where no rename can replace the trained folder, the run works in its `.run/`, and fills it.

    Args:
        target: The trained folder.
        options: The options of the run; an interrupted run resumes if it had the same.
        overwrite: Replace an earlier trained folder or an unfinished run.

    Raises:
        OptionError: the folder contains something else, or a result to be kept, or it cannot be
            written.
    """

    def __init__(self, target: Path, options: Mapping[str, Any], *, overwrite: bool) -> None:
        self.target = target
        self._overwrite = overwrite
        #: The target with all links resolved.
        self._real_target = real_target(target, option=OPTION)
        #: The contents of `state.json`. `overwrite` is among them: the same command then resumes
        #: this run instead of replacing it.
        self.state = with_versions({"options": dict(options), "overwrite": overwrite})
        #: The checkpoint of an interrupted run.
        self.checkpoint: Path | None = None
        with main_process_first():
            if is_main_process():
                check_target(target, overwrite=overwrite)
                self.work = staging_folder(self._real_target, WORK, option=OPTION)
                self._take(overwrite=overwrite)
            else:
                inside = self._real_target / WORK
                beside = self._real_target.with_name(self._real_target.name + WORK)
                self.work = inside if (inside / STATE).is_file() else beside
                self._resume()

    def _take(self, *, overwrite: bool) -> None:
        """Lock the folder, and create it or resume the interrupted run in it."""
        if not (self.work / STATE).is_file() and self.work.exists() and any(self.work.iterdir()):
            raise OptionError(
                OPTION, f"{self.work} is not empty, and the run needs it: move it away"
            )
        self._lock()
        try:
            self._start(overwrite=overwrite)
        except BaseException:  # Ctrl-C, too, unlocks the folder
            self._unlock()
            raise

    def _start(self, *, overwrite: bool) -> None:
        """Create the locked folder, or resume the interrupted run in it."""
        new_state = self.state
        if (self.work / STATE).is_file() and (not overwrite or self._is_this_run()):
            self._resume()
        restore_earlier(self.work / EARLIER, self._real_target)
        if self._is_finished():
            self.state, self.checkpoint = new_state, None
        if self.checkpoint is None:
            # Folders that these entries refer to are removed.
            for name in ("refit", PUBLISHED):
                self.state.pop(name, None)
            remove(self.work)
            self.work.mkdir(parents=True)
            # This file marks the folder as one of a run.
            self.keep()

    def _is_finished(self) -> bool:
        """Return whether the model of a killed run was renamed to the trained folder already."""
        name = self.state.get(PUBLISHED)
        return name is not None and not (self.work / name).is_dir()

    def _is_this_run(self) -> bool:
        """Return whether an interrupted run had the same options, `overwrite` included."""
        try:
            state = self._read_state()
            return bool(state["overwrite"]) and state["options"] == self.state["options"]
        except (ValueError, KeyError, TypeError):
            return False

    def _read_state(self) -> dict[str, Any]:
        """Return the state of an interrupted run.

        Raises:
            ValueError: it is broken, or another version of the package wrote it.
        """
        state: dict[str, Any] = json.loads((self.work / STATE).read_text(encoding="utf-8"))
        if state["schema_version"] != SCHEMA_VERSION:
            raise ValueError
        return state

    def _resume(self) -> None:
        """Load the state of an interrupted run that had the same options."""
        try:
            state = self._read_state()
            changed = differences(state["options"], self.state["options"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OptionError(
                OPTION,
                f"{self.work} contains an unfinished run that cannot be read: replace it with "
                "--overwrite",
            ) from None
        if changed:
            raise OptionError(
                OPTION,
                f"{self.work} contains an unfinished run with other options ({changed}): resume it "
                "with the same options, or replace it with --overwrite",
            )
        recover(self.model)
        self.state, self.checkpoint = state, latest_checkpoint(self.work)

    def changed(self, option: str, source: str) -> OptionError:
        """Return the error of a resumed run whose data or model has changed."""
        problem = f"{source} has changed since the run was interrupted"
        return OptionError(option, f"{problem}: restore it, or remove {self.work}")

    def _lock(self) -> None:
        """Refuse a folder in which another run works."""
        try:
            self._held = take_lock(lock_of(self.work))
        except BlockingIOError:
            raise OptionError(OPTION, f"another run is working in {self.work}") from None

    def _unlock(self) -> None:
        if is_main_process():
            lock_of(self.work).unlink(missing_ok=True)
            release_lock(self._held)

    def keep(self, **values: Any) -> None:
        """Add values that a resumed run must not compute again to `state.json`."""
        self.state.update(values)
        if is_main_process():
            write_json(self.work / STATE, self.state)

    @property
    def model(self) -> Path:
        """Return the folder of the best model so far; it becomes the trained folder."""
        return self.work / "model"

    @property
    def refitted(self) -> Path:
        """Return the folder of the model of `--refit`."""
        return self.work / "refitted"

    @property
    def trained(self) -> Path:
        """Return the folder with the weights to publish: those of `--refit`, or the best model."""
        return self.refitted if self.state.get("refit", {}).get("kept") else self.model

    @property
    def copy(self) -> Path:
        """Return the folder of its copy, if the published model is not the one that was trained."""
        return self.work / "finished"

    @property
    def history(self) -> Path:
        """Return the file with one line for every log entry and evaluation."""
        return self.work / "history.jsonl"

    @property
    def skipped_lines(self) -> Path:
        """Return the file of the invalid lines that were skipped."""
        return self.work / "skipped_lines.jsonl"

    def copy_model(self) -> Path:
        """Return a copy of the trained model to change; a run that fails needs it unchanged."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.trained, self.copy)
        return self.copy

    def publish(self, finished: Path) -> None:
        """Rename a finished folder to the trained folder, and remove the working folder.

        Raises:
            SavingError: something that is not to be replaced has appeared there meanwhile.
        """
        self._check_target_again()
        for file in (self.history, self.skipped_lines):
            if file.exists():
                shutil.copy2(file, finished / file.name)
        if (self.work / LOGS).is_dir():
            shutil.copytree(self.work / LOGS, finished / LOGS, dirs_exist_ok=True)
        (finished / KEPT_FILE).unlink(missing_ok=True)
        self.keep(**{PUBLISHED: finished.name})
        publish_folder(finished, self._real_target, last=MODEL_FILES)
        remove(self.work)
        self._unlock()

    def _check_target_again(self) -> None:
        """Check that the trained folder may still be replaced."""
        try:
            check_target(self.target, overwrite=self._overwrite)
        except OptionError:
            problem = f"{self.target} was created by something else during the run"
            raise SavingError(f"{problem}: move it away and {RESUMES}") from None

    def leave(self) -> None:
        """Unlock the folder of a run that ended early, and remove it if it cannot be resumed."""
        if is_main_process():
            if latest_checkpoint(self.work) is None:
                remove(self.work)
            self._unlock()


@contextmanager
def open_run_dir(config: FinetuneConfig) -> Iterator[RunDir]:
    """Create the working folder of a run, or take over that of an interrupted one."""
    target = expanded(config.finetune_model_dir)
    if config.lora and not config.merge:
        check_not_the_base(target, config.model_name_or_path)
    run_dir = RunDir(target, resumable_options(config), overwrite=config.overwrite)
    try:
        yield run_dir
    except BaseException:  # Ctrl-C, too, leaves a folder that can be resumed or is gone
        run_dir.leave()
        raise


def resumable_options(config: FinetuneConfig) -> dict[str, Any]:
    """Return the options that a resumed run must share with the interrupted one."""
    record = {name: value for name, value in config.to_dict().items() if name not in FREE}
    trainer = config.trainer.items()
    record["trainer"] = {name: value for name, value in trainer if name not in OURS}
    # As they are read from JSON.
    options: dict[str, Any] = json.loads(json.dumps({**record, "processes": process_count()}))
    return options


def remove(work: Path) -> None:
    """Remove a working folder, its state last: a kill leaves a folder that is known or empty."""
    if work.is_dir():
        for path in work.iterdir():
            if path.name != STATE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(work, ignore_errors=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the options whose values have changed, in words."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}" for name in names)
