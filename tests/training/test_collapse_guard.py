from math import log, nan
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rerank_plugin import Reranker
from rerank_plugin.finetune.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from rerank_plugin.finetune.training.collapse_guard import (
    EXPLODING_STEPS,
    PATIENT_STEPS,
    WINDOW,
    CollapseGuard,
    StepRecord,
    TrainingStoppedError,
)

from .conftest import Train

CHANCE = log(8)
ARGS: Any = SimpleNamespace(fp16=False)
CONTROL: Any = None


def watch(
    guard: CollapseGuard,
    losses: list[float],
    *,
    spread: float = 1.0,
    norm: float = 1.0,
    start: int = 0,
    max_steps: int = 1000,
) -> None:
    for step, loss in enumerate(losses, start):
        guard.latest, guard.gradient_norm = StepRecord(loss, CHANCE, spread), norm
        state: Any = SimpleNamespace(global_step=step, max_steps=max_steps)
        guard.on_pre_optimizer_step(ARGS, state, CONTROL)
        state = SimpleNamespace(global_step=step + 1, max_steps=max_steps)
        guard.on_step_end(ARGS, state, CONTROL)


def test_a_run_that_learns_continues() -> None:
    guard = CollapseGuard()
    # A newly initialised head has the loss of chance for a while.
    watch(guard, [CHANCE] * 150, spread=1e-4)
    watch(guard, [CHANCE * 0.97**step for step in range(200)], start=150)


def test_losses_and_gradients_that_are_not_finite_stop_the_run() -> None:
    with pytest.raises(TrainingStoppedError, match=r"loss of step 1 is nan.*--lr"):
        watch(CollapseGuard(), [nan])
    with pytest.raises(TrainingStoppedError, match="gradient of step 3 is inf"):
        guard = CollapseGuard()
        watch(guard, [1.0] * 2)
        watch(guard, [1.0], norm=float("inf"), start=2)


def test_several_exploding_gradients_stop_the_run_and_fewer_do_not() -> None:
    guard = CollapseGuard()
    watch(guard, [1.0] * WINDOW)
    watch(guard, [1.0] * (EXPLODING_STEPS - 1), norm=500)
    watch(guard, [1.0])
    with pytest.raises(TrainingStoppedError, match="explode"):
        watch(guard, [1.0] * EXPLODING_STEPS, norm=500)


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_a_loss_that_is_back_at_chance_is_a_collapse(spread: float) -> None:
    guard = CollapseGuard()
    watch(guard, [0.5] * WINDOW)
    with pytest.raises(TrainingStoppedError, match=r"collapsed.*--lr auto"):
        watch(guard, [CHANCE] * WINDOW, spread=spread, start=WINDOW)


def test_a_loss_is_counted_from_the_lowest_possible() -> None:
    """The loss of soft targets never falls below their entropy."""
    guard, lowest = CollapseGuard(), CHANCE - 0.08
    guard.latest = StepRecord(lowest + 0.04, CHANCE, 1.0, lowest)
    state: Any = SimpleNamespace(global_step=PATIENT_STEPS + 1, max_steps=PATIENT_STEPS)
    for _ in range(2 * WINDOW):
        guard.on_step_end(ARGS, state, CONTROL)
    guard.latest = StepRecord(CHANCE - 1e-4, CHANCE, 1.0, lowest)
    with pytest.raises(TrainingStoppedError, match="collapsed"):
        for _ in range(WINDOW):
            guard.on_step_end(ARGS, state, CONTROL)


def test_a_run_that_never_learns_is_stopped_late() -> None:
    guard = CollapseGuard()
    watch(guard, [CHANCE] * (PATIENT_STEPS - 1), max_steps=300)
    with pytest.raises(TrainingStoppedError, match="nothing was learned in 200 steps"):
        watch(guard, [CHANCE], start=PATIENT_STEPS - 1, max_steps=300)


def test_a_resumed_guard_keeps_its_figures() -> None:
    guard, resumed = CollapseGuard(), CollapseGuard()
    watch(guard, [0.5] * WINDOW)
    resumed.load_state_dict(guard.state_dict())
    with pytest.raises(TrainingStoppedError, match="collapsed"):
        watch(resumed, [CHANCE] * WINDOW, start=WINDOW)


def test_a_run_whose_loss_is_nan_keeps_earlier_weights(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = 0

    def broken(_self: object, logits: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        nonlocal steps
        steps += logits.requires_grad
        return logits.sum() * (nan if steps > 4 else 1.0)

    monkeypatch.setattr(SoftmaxCrossEntropy, "__call__", broken)
    result = train(batch_size=8)
    assert "the best model so far is kept" in caplog.text
    assert max(entry["step"] for entry in result.history) <= 5
    assert len(Reranker(result.model_dir).score([("a question", "refund")])) == 1
