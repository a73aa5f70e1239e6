"""TensorBoard and other reporters of transformers: what they lose is not the run."""

import logging
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

logger = logging.getLogger(__name__)


class SparedReporter(TrainerCallback):
    """Passes events on to a reporter until one fails: that is one line, and the last one.

    Args:
        reporter: A callback that shows the run elsewhere.
        is_wanted: Whether the user asked for it: it must then be able to begin.
    """

    def __init__(self, reporter: TrainerCallback, *, is_wanted: bool) -> None:
        self.reporter = reporter
        self.is_wanted = is_wanted
        self.failed = False

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def event(*arguments: Any, **options: Any) -> Any:
            if self.failed:
                return None
            try:
                return getattr(self.reporter, name)(*arguments, **options)
            except Exception as error:
                if self.is_wanted and name in ("on_init_end", "on_train_begin"):
                    raise
                self.failed = True
                logger.warning("%s: no more logs: %s", type(self.reporter).__name__, error)
                return None

        return event


def spare_reporters(trainer: Trainer, *, is_wanted: bool) -> None:
    """Let no reporter of a trainer end its run."""
    kinds: tuple[type[TrainerCallback], ...] = tuple(INTEGRATION_TO_CALLBACK.values())
    handler = trainer.callback_handler
    handler.callbacks = [
        SparedReporter(callback, is_wanted=is_wanted) if isinstance(callback, kinds) else callback
        for callback in handler.callbacks
    ]
