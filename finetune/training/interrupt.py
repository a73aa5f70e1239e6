"""Ctrl-C ends a run after the step it is in, with everything saved."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.signals import ending_signals

from .distributed import gathered

logger = logging.getLogger(__name__)


class Interruption(TrainerCallback):
    """Finishes the step, saves a checkpoint and stops, once a signal has come."""

    def __init__(self) -> None:
        self.asked = False
        #: Whether any process was asked, as all of them know behind a step.
        self.stops = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP as a wish to stop; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.getsignal(number) for number in ending_signals()}

        def ask(_number: int, _frame: FrameType | None) -> None:
            self.asked = True
            for number, handler in earlier.items():
                signal.signal(number, handler)
            logger.warning("stopping after this step; once more stops at once")

        for number in earlier:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The step is done: save, and stop; behind the last one of an epoch, at its end."""
        self.stops = any(gathered(self.asked))
        if self.stops and state.global_step < state.max_steps and not ends_epoch(state):
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """What is due at an epoch's end is not when the run stops inside it."""
        if not self.stops or state.global_step >= state.max_steps:
            return
        if ends_epoch(state):
            control.should_save = control.should_training_stop = True
        else:
            control.should_save = control.should_evaluate = False


def ends_epoch(state: TrainerState) -> bool:
    """Whether the latest step was an epoch's last."""
    return state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-6
