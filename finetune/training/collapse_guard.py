"""Stops a run that breaks or collapses, at the last good model, and says what to do.

From the raw loss of every step: transformers' log shows averages, and by default hides NaN.
"""

from collections import deque
from dataclasses import astuple, dataclass
from math import isfinite
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

#: Steps over which losses and spreads are averaged.
WINDOW = 20

#: A loss from this share on of what equal scores would give is no better than they are; both are
#: counted from the lowest loss that there is.
AT_CHANCE = 0.98

#: A run whose loss was below this share and is back at chance has collapsed.
HAD_LEARNED = 0.85

#: So has one whose scores lie this much closer together than they did.
LOST_SPREAD = 0.02

#: Steps, and share of the run, after which one that never left chance is given up.
PATIENT_STEPS, PATIENT_SHARE = 200, 0.5

#: A gradient so many times as long as the usual one is exploding, if it stays so for some steps.
EXPLODING, EXPLODING_STEPS = 100.0, 5


class TrainingStoppedError(Exception):
    """Training further would only make the model worse; the message says why and what to do."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step."""

    #: Mean loss over its groups, and the loss that equal scores would give.
    loss: float
    chance: float
    #: Mean standard deviation of the logits of a group.
    spread: float
    #: The mean loss that no scores go below.
    lowest: float = 0.0


class CollapseGuard(TrainerCallback):
    """Watches loss, spread of scores and gradients, and ends the run when they break."""

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
        """Before the weights change: nothing that is no number may reach them.

        Raises:
            TrainingStoppedError: the loss or the gradient is broken.
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
                f"gradients explode since step {step - EXPLODING_STEPS + 1} ({norm:.3g}, usually "
                f"{usual:.3g}): try a lower --lr or a longer warm-up (--warmup_steps 0.2)"
            )
        self._norms.append(norm)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """After the step: is the model still telling passages apart?

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
        levels = f"the loss of the last {WINDOW} steps is what equal scores give ({chance:.3f})"
        if lowest < HAD_LEARNED or spread < LOST_SPREAD * self._widest:
            raise TrainingStoppedError(
                f"the model collapsed before step {state.global_step}: {levels}; try a lower --lr "
                "(--lr auto measures one), or a longer warm-up (--warmup_steps 0.2)"
            )
        patience = max(PATIENT_STEPS, PATIENT_SHARE * state.max_steps)
        if state.global_step >= patience and lowest >= AT_CHANCE:
            raise TrainingStoppedError(
                f"nothing was learned in {state.global_step} steps: {levels}; try another --lr "
                "(--lr auto measures one), and look at the data with rerank-plugin check"
            )

    def as_record(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON."""
        return {
            "steps": [list(astuple(step)) for step in self._steps],
            "norms": list(self._norms),
            "exploding": self._exploding,
            "widest": self._widest,
            "lowest": self._lowest,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on from what `as_record` gave."""
        self._steps.extend(StepRecord(*values) for values in record["steps"])
        self._norms.extend(record["norms"])
        self._exploding = record["exploding"]
        self._widest, self._lowest = record["widest"], record["lowest"]
