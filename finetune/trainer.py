"""transformers' Trainer for groups: its loop, our batches, loss and evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from rerank_plugin.encoding import EncodedPair
from rerank_plugin.errors import InputError
from rerank_plugin.packing import equal_batches
from rerank_plugin.scoring import Scorer, on_device, pair_logits

from .dataset import GroupDataset
from .evaluation import Evaluation, evaluate_groups, teacher_scores
from .losses.contract import Loss
from .sampling import GroupSampler, Sample, sample_group
from .stopwatch import Stopwatch

Batch = dict[str, Any]


class SampledGroups(Dataset[Sample]):
    """Samples of training groups by (epoch, group)."""

    def __init__(self, groups: GroupDataset, *, size: int, seed: int) -> None:
        self.groups = groups
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        group = self.groups[index]
        return sample_group(group, size=self.size, seed=self.seed, epoch=epoch, index=index)


class GroupCollator:
    """From samples to a step's input: whole groups, in parts that the model sees one by one.

    A step is as many groups as it is, whatever the budget: that only says into how many forward and
    backward passes it is cut, and so how much memory it needs.

    Args:
        scorer: Makes the batches, as it does when it scores.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The `parts` of a step and its number of `groups`."""
        pairs = [(sample.query, text) for sample in samples for text in sample.documents]
        encoded = iter(self.scorer.encoder.encode(pairs))
        groups = [[next(encoded) for _ in sample.documents] for sample in samples]
        costs = [sum(self.scorer.costs(group)) for group in groups]
        parts = equal_batches(costs, self.scorer.token_budget)
        return {
            "parts": [self.part([(samples[i], groups[i]) for i in sorted(part)]) for part in parts],
            "groups": len(samples),
        }

    def part(self, groups: Sequence[tuple[Sample, list[EncodedPair]]]) -> Batch:
        """Some groups: model `inputs`, the `places` of their pairs, `labels` `[pairs]`, `sizes`.

        With them the teacher's scores `[pairs]`, where all groups have them.
        """
        pairs = [pair for _, encoded in groups for pair in encoded]
        # One packed row; where the model pads, batches of like length.
        batches = [list(range(len(pairs)))] if self.scorer.packs else self.scorer.batches(pairs)
        return {
            "inputs": [self.scorer.inputs([pairs[i] for i in batch]) for batch in batches],
            "places": torch.tensor([place for batch in batches for place in batch]),
            "labels": torch.tensor(
                [label for sample, _ in groups for label in sample.labels], dtype=torch.float32
            ),
            "sizes": [len(sample.labels) for sample, _ in groups],
            "teacher": teacher_scores([sample for sample, _ in groups]),
        }


@contextmanager
def refused_options() -> Iterator[None]:
    """Turn what transformers says of an option that it cannot use into one line."""
    try:
        yield
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"transformers: {' '.join(str(error).split())}") from error


class RerankTrainer(Trainer):
    """Trains on groups, evaluates with the scorer that serves.

    Args:
        model: The model to train.
        args: transformers' training arguments.
        scorer: Scores pairs with the same model.
        loss: The loss of a batch of groups.
        train_groups: Groups to train on.
        eval_groups: Groups to evaluate on, with all their candidates.
        group_size: Passages of a group in a step.
        stopwatch: Is paused while evaluating and saving.
    """

    # The loss is divided by the groups of the whole optimizer step, not once per micro-batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        scorer: Scorer,
        loss: Loss,
        train_groups: GroupDataset,
        eval_groups: GroupDataset,
        group_size: int,
        stopwatch: Stopwatch,
    ) -> None:
        self.scorer = scorer
        self.loss = loss
        self.groups = len(train_groups)
        self.eval_groups = eval_groups
        self.stopwatch = stopwatch
        self._latest: Evaluation | None = None
        #: Pairs that training steps have seen.
        self.train_pairs = 0
        with refused_options():
            super().__init__(
                model=model,
                args=args,
                data_collator=GroupCollator(scorer),
                train_dataset=SampledGroups(train_groups, size=group_size, seed=args.seed),
                # transformers asks for one where there is an evaluation strategy; `evaluate` is
                # ours.
                eval_dataset=eval_groups,
                processing_class=scorer.encoder.tokenizer,
            )

    @property
    def latest(self) -> Evaluation:
        """The latest evaluation, query by query."""
        assert self._latest is not None, "no evaluation yet"
        return self._latest

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupSampler:
        return GroupSampler(self.groups, seed=self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        return torch.tensor(sum(batch["groups"] for batch in batch_samples), device=device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' optimizer; an option that it cannot use is an error of one line."""
        with refused_options():
            return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Transformers' schedule; an option that it cannot use is an error of one line."""
        with refused_options():
            return super().create_scheduler(num_training_steps, optimizer)

    def training_step(
        self,
        model: nn.Module,
        inputs: Batch,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward part by part; returns the loss of all groups."""
        step = super().training_step
        return torch.stack(
            [step(model, part, num_items_in_batch) for part in inputs["parts"]]
        ).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the groups' losses over the number of groups in the whole step."""
        device = self.scorer.device
        parts = torch.cat(
            [pair_logits(model, on_device(part, device)) for part in inputs["inputs"]]
        )
        logits = torch.empty_like(parts).index_copy(0, inputs["places"], parts)
        self.train_pairs += len(logits)
        groups = len(inputs["sizes"]) if num_items_in_batch is None else num_items_in_batch
        loss = self.loss(logits, inputs["labels"], inputs["sizes"], inputs["teacher"]) / groups
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Rank the evaluation groups with the scorer; `eval_loss`, `eval_ndcg@10` …."""
        groups = self.eval_groups if eval_dataset is None else eval_dataset
        with self.stopwatch.paused():
            # At the precision that the model trains in, and serves in by default.
            with self.compute_loss_context_manager():
                self._latest = evaluate_groups(self.scorer, groups, self.loss)
            found = {"loss": self._latest.loss, **self._latest.means}
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        return metrics

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        # A pickle, of which nothing is ever read.
        folder = Path(output_dir or str(self.args.output_dir))
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
