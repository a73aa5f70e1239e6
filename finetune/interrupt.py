"""Ctrl-C ends a run after the step it is in, with everything saved."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(TrainerCallback):
    """Finishes the step, saves a checkpoint and stops, once a signal has come."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as a wish to stop; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.getsignal(number) for number in SIGNALS}

        def ask(_number: int, _frame: FrameType | None) -> None:
            self.asked = True
            for number, handler in earlier.items():
                signal.signal(number, handler)
            logger.warning("stopping after this step; once more stops at once")

        for number in SIGNALS:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The step is done: save, and stop."""
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
