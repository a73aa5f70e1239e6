"""Ctrl-C ends a run after the step it is in, with a checkpoint."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rerank_plugin.signals import ending_signals

from .distributed import gather

logger = logging.getLogger(__name__)


class Interruption(TrainerCallback):
    """Finishes the step, saves a checkpoint and stops, once a signal has arrived."""

    def __init__(self) -> None:
        #: Whether this process has received a signal.
        self.received = False
        #: Whether any process had, at the end of the latest step.
        self.stops = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP as a request to stop; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.getsignal(number) for number in ending_signals()}

        def receive(_number: int, _frame: FrameType | None) -> None:
            self.received = True
            for number, handler in earlier.items():
                signal.signal(number, handler)
            logger.warning("stopping after this step; a second signal stops at once")

        for number in earlier:
            signal.signal(number, receive)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop; after the last step of an epoch, `on_epoch_end` does so."""
        self.stops = any(gather(self.received))
        if self.stops and state.global_step < state.max_steps and not ends_epoch(state):
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop at the end of an epoch; inside one, skip what its end would do."""
        if not self.stops or state.global_step >= state.max_steps:
            return
        if ends_epoch(state):
            control.should_save = control.should_training_stop = True
        else:
            control.should_save = control.should_evaluate = False


def ends_epoch(state: TrainerState) -> bool:
    """Return whether the latest step was the last one of an epoch."""
    return state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-6
