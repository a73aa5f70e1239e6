"""What goes into a training step: whole groups, in parts that the model sees one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rerank_plugin.engine.encoder import EncodedPair
from rerank_plugin.engine.packing import equal_batches
from rerank_plugin.engine.scorer import Scorer, on_device, pair_logits

from ..data.dataset import GroupDataset
from ..data.sampling import GroupBatches, GroupIndex, Sample, sample_group
from ..losses.base import teacher_scores

Batch = dict[str, Any]

#: A sample, and whether it counts.
Counted = tuple[Sample, bool]


class SampledGroups(Dataset[Counted]):
    """Samples of training groups by their places."""

    def __init__(self, groups: GroupDataset, *, size: int, seed: int) -> None:
        self.groups = groups
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: GroupIndex) -> Counted:
        epoch, index, counts = place
        group = self.groups[index]
        sample = sample_group(group, size=self.size, seed=self.seed, epoch=epoch, index=index)
        return sample, counts


class GroupLoader(DataLoader[Any]):
    """Batches of one process; every epoch has an order of its own."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of every epoch."""
        batches = self.batch_sampler
        assert isinstance(batches, GroupBatches)
        batches.set_epoch(epoch)


class GroupCollator:
    """From samples to a step's input: whole groups, in parts that the model sees one by one.

    A step is as many groups as it is, whatever the budget: that only says into how many forward and
    backward passes it is cut, and so how much memory it needs.

    Args:
        scorer: Makes the batches, as it does when it scores.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, counted: Sequence[Counted]) -> Batch:
        """The `parts` of a step and its number of `groups`."""
        samples = [sample for sample, _ in counted]
        pairs = [(sample.query, text) for sample in samples for text in sample.documents]
        encoded = iter(self.scorer.encoder.encode(pairs))
        groups = [[next(encoded) for _ in sample.documents] for sample in samples]
        costs = [sum(self.scorer.costs(group)) for group in groups]
        parts = equal_batches(costs, self.scorer.token_budget)
        return {
            "parts": [self.part([(samples[i], groups[i]) for i in sorted(part)]) for part in parts],
            "groups": sum(counts for _, counts in counted),
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


def part_logits(model: nn.Module, part: Mapping[str, Any], device: torch.device) -> Tensor:
    """One float32 logit for every pair of a part, `[pairs]`."""
    logits = torch.cat([pair_logits(model, on_device(batch, device)) for batch in part["inputs"]])
    return torch.empty_like(logits).index_copy(0, part["places"].to(device), logits)
