"""The mean of the weights along the end of a run, instead of the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

#: Steps between two weights of a mean.
STEPS_BETWEEN = 5


class WeightMean(TrainerCallback):
    """Replace the last weights by the mean of those of the last steps.

    Args:
        share: The share of the steps that the mean is of.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.count = 0
        self.sums: dict[str, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Add the weights, if the step is one of the last."""
        left = state.max_steps - state.global_step
        if left > self.share * state.max_steps or left % STEPS_BETWEEN:
            return
        self.count += 1
        for name, weight in objects["model"].named_parameters():
            value = weight.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Write the mean into the model."""
        for name, weight in objects["model"].named_parameters():
            weight.data.copy_(self.sums[name] / self.count)


@contextmanager
def averaged(share: float) -> Iterator[None]:
    """Keep the mean of the weights of a share of the steps in runs of `finetune`; 0 is no mean."""
    from rerank_plugin.finetune.training import finetune

    add = finetune.add_callbacks

    def add_with_mean(trainer: Any, *arguments: Any) -> Any:
        trainer.add_callback(WeightMean(share))
        return add(trainer, *arguments)

    finetune.add_callbacks = add_with_mean if share else add
    try:
        yield
    finally:
        finetune.add_callbacks = add
