"""Stops a run that diverges or collapses; its best model so far is kept.

It uses the raw loss of every step: transformers logs averages, and hides NaN by default.
"""

from collections import deque
from dataclasses import astuple, dataclass
from math import isfinite
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

#: Steps over which losses and spreads are averaged.
WINDOW = 20

#: A loss above this share of the loss of equal scores is at chance; both are counted from the
#: lowest possible loss.
AT_CHANCE = 0.98

#: A run whose loss was below this share and returns to chance has collapsed.
HAD_LEARNED = 0.85

#: So has a run at chance whose spread of scores has shrunk to this share.
LOST_SPREAD = 0.02

#: Steps, and share of the run, after which a run that was always at chance is stopped.
PATIENT_STEPS, PATIENT_SHARE = 200, 0.5

#: A gradient norm so many times the median, for so many steps in a row, is exploding.
EXPLODING, EXPLODING_STEPS = 100.0, 5


class TrainingStoppedError(Exception):
    """Training diverged or collapsed; the message has the reason and the remedy."""


@dataclass(frozen=True)
class StepRecord:
    """The figures of one optimizer step."""

    #: The mean loss of its groups, and the loss of equal scores.
    loss: float
    chance: float
    #: The mean standard deviation of the logits of a group.
    spread: float
    #: The lowest possible mean loss.
    lowest: float = 0.0


class CollapseGuard(TrainerCallback):
    """Watches loss, spread of scores and gradients, and stops the run when they diverge."""

    def __init__(self) -> None:
        self.latest: StepRecord | None = None
        self.gradient_norm: float | None = None
        self._steps: deque[StepRecord] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=100)
        self._exploding = 0
        self._widest = 0.0
        self._lowest = float("inf")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check loss and gradient before they change the weights.

        Raises:
            TrainingStoppedError: the loss or the gradient is not finite, or gradients explode.
        """
        step = state.global_step + 1
        assert self.latest is not None
        if not isfinite(self.latest.loss):
            raise TrainingStoppedError(
                f"the loss of step {step} is {self.latest.loss}: try a lower --lr, or "
                "--dtype float32"
            )
        norm = self.gradient_norm
        # In float16 an overflow is normal: the gradient scaler skips the step.
        if norm is None or args.fp16:
            return
        if not isfinite(norm):
            raise TrainingStoppedError(
                f"the gradient of step {step} is {norm}: try a lower --lr, or --dtype float32"
            )
        usual = median(self._norms) if len(self._norms) >= WINDOW else float("inf")
        self._exploding = self._exploding + 1 if norm > EXPLODING * usual else 0
        if self._exploding >= EXPLODING_STEPS:
            raise TrainingStoppedError(
                f"gradients explode from step {step - EXPLODING_STEPS + 1} (norm {norm:.3g}, "
                f"median {usual:.3g}): try a lower --lr or a longer warm-up (--warmup_steps 0.2)"
            )
        self._norms.append(norm)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check that the model still separates passages.

        Raises:
            TrainingStoppedError: it has collapsed, or never started to learn.
        """
        assert self.latest is not None
        self._steps.append(self.latest)
        if len(self._steps) < WINDOW:
            return
        chance = fmean(record.chance for record in self._steps)
        lowest_loss = fmean(record.lowest for record in self._steps)
        above = fmean(record.loss for record in self._steps) - lowest_loss
        share = above / (chance - lowest_loss) if chance > lowest_loss else 0.0
        spread = fmean(record.spread for record in self._steps)
        self._widest, lowest = max(self._widest, spread), self._lowest
        self._lowest = min(lowest, share)
        if share < AT_CHANCE:
            return
        levels = f"the loss of the last {WINDOW} steps is that of equal scores ({chance:.3f})"
        if lowest < HAD_LEARNED or spread < LOST_SPREAD * self._widest:
            raise TrainingStoppedError(
                f"the model collapsed before step {state.global_step}: {levels}; try a lower --lr "
                "(--lr auto finds one), or a longer warm-up (--warmup_steps 0.2)"
            )
        patience = max(PATIENT_STEPS, PATIENT_SHARE * state.max_steps)
        if state.global_step >= patience and lowest >= AT_CHANCE:
            raise TrainingStoppedError(
                f"nothing was learned in {state.global_step} steps: {levels}; try another --lr "
                "(--lr auto finds one), and check the data with rerank-plugin check"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the figures of the latest steps."""
        return {
            "steps": [list(astuple(step)) for step in self._steps],
            "norms": list(self._norms),
            "exploding": self._exploding,
            "widest": self._widest,
            "lowest": self._lowest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the figures of the latest steps."""
        self._steps.extend(StepRecord(*values) for values in state["steps"])
        self._norms.extend(state["norms"])
        self._exploding = state["exploding"]
        self._widest, self._lowest = state["widest"], state["lowest"]
