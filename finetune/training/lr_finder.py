"""`--lr auto`: a learning rate by measuring some, for a few steps each, on the training groups."""

import logging
from collections.abc import Sequence
from math import inf, isfinite

import numpy as np
import torch
from torch import nn

from rerank_plugin.cli.console import bar
from rerank_plugin.engine.scorer import Scorer, ScoringError
from rerank_plugin.errors import OptionError

from ..data.dataset import GroupDataset
from ..data.sampling import Sample, sample_group
from ..losses.base import Loss, teacher_scores
from .checkpoint import random_states, restore_random_states
from .collator import GroupCollator, part_logits

logger = logging.getLogger(__name__)

#: The rates, as multiples of the one that suits what is loaded.
FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)

#: Optimizer steps of a rate, and groups whose loss is measured behind them.
STEPS, MEASURED = 30, 64

#: Training groups without which nothing can be measured.
FEWEST = 3

#: Of two rates whose losses differ by less than this share the lower one is taken: in a longer run
#: too high a rate costs everything, too low a one little.
CLOSE = 0.05


class Sweep:
    """Short runs from the same weights at several rates.

    Args:
        scorer: Holds the model, which is left as it was.
        loss: What is trained and measured.
        groups: The training groups; those that are measured are not trained on in the sweep.
        group_size: Passages of a group.
        step_groups: Groups of an optimizer step.
        seed: Chooses the groups.
        dtype: Precision of the products.
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
        chosen = np.random.default_rng((seed, 2)).permutation(len(groups))
        if len(chosen) < FEWEST:
            problem = f"auto needs {FEWEST} training groups, there are {len(chosen)}: give a number"
            raise OptionError("lr", problem)
        chosen = chosen[: MEASURED + STEPS * step_groups]
        measured = min(MEASURED, len(chosen) // 3)
        samples = [
            sample_group(groups[int(i)], size=group_size, seed=seed, epoch=0, index=int(i))
            for i in chosen
        ]
        self.measured, self.trained = samples[:measured], samples[measured:]

    def best(self, suits: float) -> float:
        """The rate with the lowest loss, or one below it that is hardly worse."""
        rates = [suits * factor for factor in FACTORS]
        states = random_states()
        weights = {
            name: value.detach().clone()
            for name, value in self.scorer.model.named_parameters()
            if value.requires_grad
        }
        losses: list[float] = []
        logger.info("--lr auto: %d rates, %d steps each", len(rates), STEPS)
        with bar("learning rates", "rate", len(rates)) as progress:
            for rate in rates:
                losses.append(self.measure(rate))
                with torch.no_grad():
                    for name, value in self.scorer.model.named_parameters():
                        if name in weights:
                            value.copy_(weights[name])
                progress.set_postfix(lr=f"{rate:.2g}", loss=f"{losses[-1]:.3f}")
                progress.update()
        restore_random_states(states)
        rate = choose(rates, losses)
        table = ", ".join(
            f"{tried:.2g}: {loss:.3f}" for tried, loss in zip(rates, losses, strict=True)
        )
        logger.info("--lr auto takes %.2g (loss above the lowest, by rate: %s)", rate, table)
        return rate

    def measure(self, rate: float) -> float:
        """The loss behind a short run at a rate; infinite where it breaks."""
        model = self.scorer.model
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
        # Gradients in float16 would be lost below its smallest number.
        scaler = torch.amp.GradScaler(self.scorer.device.type, enabled=self.dtype == torch.float16)
        model.train()
        for step in range(STEPS):
            # Up over a tenth, then down to nothing, as in a run.
            scale = min((step + 1) / (0.1 * STEPS), (STEPS - step) / (0.9 * STEPS))
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            places = [(step * self.step_groups + i) % len(self.trained) for i in self.step]
            samples = [self.trained[place] for place in places]
            if not isfinite(self.backward(model, samples, scaler)):
                return inf
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return self.loss_behind()

    @property
    def step(self) -> range:
        """The groups of a step, counted from its first."""
        return range(min(self.step_groups, len(self.trained)))

    def backward(
        self, model: nn.Module, samples: Sequence[Sample], scaler: torch.amp.GradScaler
    ) -> float:
        """Gradients of a step; returns its mean loss."""
        total, device = 0.0, self.scorer.device
        for part in self.collate([(sample, True) for sample in samples])["parts"]:
            with self.precision():
                logits = part_logits(model, part, device)
                labels, teacher = part["labels"].to(device), part["teacher"]
                if teacher is not None:
                    teacher = teacher.to(device)
                found = self.loss(logits, labels, part["sizes"], teacher)
                loss = found / len(samples)
            scaler.scale(loss).backward()
            total += float(loss.detach())
        return total

    def loss_behind(self) -> float:
        """The mean loss of the measured groups with the model as it is, above the lowest."""
        pairs = [(sample.query, text) for sample in self.measured for text in sample.documents]
        try:
            with self.precision():
                logits = torch.from_numpy(self.scorer.logits(pairs))
        except ScoringError:
            return inf
        labels = torch.tensor(
            [label for sample in self.measured for label in sample.labels], dtype=torch.float32
        )
        sizes = [len(sample.labels) for sample in self.measured]
        found = self.loss(logits, labels, sizes, teacher_scores(self.measured))
        return float(found - self.loss.lowest(labels, sizes)) / len(self.measured)

    def precision(self) -> torch.autocast:
        """The precision of a run."""
        half = self.dtype != torch.float32
        return torch.autocast(self.scorer.device.type, dtype=self.dtype, enabled=half)


def choose(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The lowest rate whose loss is close to the lowest loss; rates rise."""
    lowest = min(losses)
    if not isfinite(lowest):
        return rates[0]
    bound = lowest + CLOSE * abs(lowest)
    return next(rate for rate, loss in zip(rates, losses, strict=True) if loss <= bound)
