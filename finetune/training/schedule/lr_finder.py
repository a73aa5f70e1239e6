"""`--lr auto`: the learning rate of the best of some short training runs."""

import logging
from collections.abc import Sequence
from math import inf, isfinite

import numpy as np
import torch
from torch import nn

from rerank_plugin.cli.console import bar
from rerank_plugin.engine.scorer import Scorer
from rerank_plugin.engine.scores import ScoringError
from rerank_plugin.errors import OptionError

from ...data.dataset import GroupDataset
from ...data.sampling import Sample, sample_group
from ...losses.base import Loss, teacher_scores
from ..collator import GroupCollator, batch_logits

logger = logging.getLogger(__name__)

#: The rates that are tried, as multiples of the default one.
FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)

#: Optimizer steps with each rate, and groups whose loss is measured after them.
STEPS, MEASURED = 30, 64

#: The fewest training groups with which rates can be compared.
FEWEST = 3

#: Of two rates whose losses differ by less than this share, the lower one is chosen: in a longer
#: run a rate that is too high does more damage than one that is too low.
CLOSE = 0.05


class LearningRateFinder:
    """Trains for some steps with each of several rates, from the same weights.

    Args:
        scorer: Scores with the model; its weights are restored.
        loss: The loss that is trained and measured.
        groups: The training groups; those that are measured are not trained on here.
        group_size: Passages of a group.
        step_groups: Groups of an optimizer step.
        seed: Fixes the choice of groups.
        dtype: The precision of matrix products.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        loss: Loss,
        groups: GroupDataset,
        group_size: int,
        step_groups: int,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self.scorer = scorer
        self.loss = loss
        self.collate = GroupCollator(scorer)
        self.dtype = dtype
        self.step_groups = step_groups
        indices = np.random.default_rng((seed, 2)).permutation(len(groups))
        if len(indices) < FEWEST:
            problem = f"auto requires {FEWEST} training groups, found {len(indices)}"
            raise OptionError("lr", f"{problem}: use a number")
        indices = indices[: MEASURED + STEPS * step_groups]
        measured = min(MEASURED, len(indices) // 3)
        samples = [
            sample_group(groups[int(i)], size=group_size, seed=seed, epoch=0, index=int(i))
            for i in indices
        ]
        self.measured, self.trained = samples[:measured], samples[measured:]

    def best(self, default: float) -> float:
        """Return the rate with the lowest loss, or a lower one with almost the same loss."""
        rates = [default * factor for factor in FACTORS]
        logger.info("--lr auto: %d rates, %d steps each", len(rates), STEPS)
        device = self.scorer.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            losses = self.losses(rates)
        rate = choose(rates, losses)
        table = ", ".join(
            f"{tried:.2g}: {loss:.3f}" for tried, loss in zip(rates, losses, strict=True)
        )
        logger.info("--lr auto: chose %.2g (loss above the lowest possible: %s)", rate, table)
        return rate

    def losses(self, rates: Sequence[float]) -> list[float]:
        """Return the loss after a short run with each rate; the weights are restored."""
        weights = {
            name: value.detach().clone()
            for name, value in self.scorer.model.named_parameters()
            if value.requires_grad
        }
        losses: list[float] = []
        with bar("learning rates", "rate", len(rates)) as progress:
            for rate in rates:
                losses.append(self.loss_after_training(rate))
                with torch.no_grad():
                    for name, value in self.scorer.model.named_parameters():
                        if name in weights:
                            value.copy_(weights[name])
                progress.set_postfix(lr=f"{rate:.2g}", loss=f"{losses[-1]:.3f}")
                progress.update()
        return losses

    def loss_after_training(self, rate: float) -> float:
        """Return the loss after a short run with a rate; infinite if it diverges."""
        model = self.scorer.model
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
        # float16 gradients below its smallest number would be lost.
        scaler = torch.amp.GradScaler(self.scorer.device.type, enabled=self.dtype == torch.float16)
        model.train()
        for step in range(STEPS):
            # Warm-up over a tenth of the steps, then linear decay, as in a run.
            scale = min((step + 1) / (0.1 * STEPS), (STEPS - step) / (0.9 * STEPS))
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            if not isfinite(self.backward(model, self.step_samples(step), scaler)):
                return inf
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return self.measured_loss()

    def step_samples(self, step: int) -> list[Sample]:
        """Return the samples of a step; after the last one it continues with the first."""
        size = min(self.step_groups, len(self.trained))
        start = step * self.step_groups
        return [self.trained[(start + i) % len(self.trained)] for i in range(size)]

    def backward(
        self, model: nn.Module, samples: Sequence[Sample], scaler: torch.amp.GradScaler
    ) -> float:
        """Compute the gradients of a step, and return its mean loss."""
        total, device = 0.0, self.scorer.device
        for batch in self.collate([(sample, True) for sample in samples])["micro_batches"]:
            with self.autocast():
                logits = batch_logits(model, batch, device)
                labels, teacher = batch["labels"].to(device), batch["teacher"]
                if teacher is not None:
                    teacher = teacher.to(device)
                loss = self.loss(logits, labels, batch["sizes"], teacher) / len(samples)
            scaler.scale(loss).backward()
            total += float(loss.detach())
        return total

    def measured_loss(self) -> float:
        """Return the mean loss of the measured groups, above the lowest possible one."""
        pairs = [(sample.query, text) for sample in self.measured for text in sample.documents]
        try:
            with self.autocast():
                logits = torch.from_numpy(self.scorer.logits(pairs))
        except ScoringError:
            return inf
        labels = torch.tensor(
            [label for sample in self.measured for label in sample.labels], dtype=torch.float32
        )
        sizes = [len(sample.labels) for sample in self.measured]
        loss = self.loss(logits, labels, sizes, teacher_scores(self.measured))
        return float(loss - self.loss.lowest(labels, sizes)) / len(self.measured)

    def autocast(self) -> torch.autocast:
        """Return the precision of a run."""
        half = self.dtype != torch.float32
        return torch.autocast(self.scorer.device.type, dtype=self.dtype, enabled=half)


def choose(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Return the lowest rate whose loss is close to the lowest loss; rates are ascending."""
    lowest = min(losses)
    if not isfinite(lowest):
        return rates[0]
    bound = lowest + CLOSE * abs(lowest)
    return next(rate for rate, loss in zip(rates, losses, strict=True) if loss <= bound)
