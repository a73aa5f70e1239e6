"""The batches of a training step: whole groups, in micro-batches that fit the token budget."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rerank_plugin.engine.packing import equal_batches
from rerank_plugin.engine.scorer import Scorer, on_device, pair_logits
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.inputs import make_pairs

from ..data.dataset import GroupDataset
from ..data.sampling import GroupBatches, GroupIndex, Sample, sample_group
from ..losses.base import teacher_scores

MicroBatch = dict[str, Any]

#: A sample, and whether its loss counts.
Counted = tuple[Sample, bool]


class SampledGroups(Dataset[Counted]):
    """Samples of training groups, by epoch and index.

    Args:
        groups: The training groups.
        size: Passages of a sample.
        seed: Fixes the negatives that are drawn.
    """

    def __init__(self, groups: GroupDataset, *, size: int, seed: int) -> None:
        self.groups = groups
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: GroupIndex) -> Counted:
        epoch, index, counts = key
        group = self.groups[index]
        sample = sample_group(group, size=self.size, seed=self.seed, epoch=epoch, index=index)
        return sample, counts


class GroupLoader(DataLoader[Any]):
    """The batches of one process, in another order every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer does so at the start of each."""
        batches = self.batch_sampler
        assert isinstance(batches, GroupBatches)
        batches.set_epoch(epoch)


class GroupCollator:
    """Turns samples into the input of a step: whole groups, in micro-batches.

    The token budget does not change which groups are in a step. It changes into how many forward
    and backward passes the step is divided, and so how much memory it needs.

    Args:
        scorer: Makes the batches, as it does for scoring.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, counted: Sequence[Counted]) -> MicroBatch:
        """Return the `micro_batches` of a step and its number of `groups`."""
        samples = [sample for sample, _ in counted]
        pairs = [
            pair
            for sample in samples
            for pair in make_pairs(sample.query, sample.documents, sample.instruction)
        ]
        encoded = iter(self.scorer.encoder.encode(pairs))
        groups = [[next(encoded) for _ in sample.documents] for sample in samples]
        costs = [self.scorer.cost(group) for group in groups]
        return {
            "micro_batches": [
                self.micro_batch([(samples[i], groups[i]) for i in sorted(indices)])
                for indices in equal_batches(costs, self.scorer.token_budget)
            ],
            "groups": sum(counts for _, counts in counted),
        }

    def micro_batch(self, groups: Sequence[tuple[Sample, list[EncodedPair]]]) -> MicroBatch:
        """Return the groups of one forward pass.

        These are the model's `inputs`, the `indices` of their pairs, `labels` `[pairs]`, the
        `sizes` of the groups, and the `teacher` scores `[pairs]`, None if a group has none.
        """
        pairs = [pair for _, encoded in groups for pair in encoded]
        # One packed row; where the model pads, batches of similar length.
        batches = [list(range(len(pairs)))] if self.scorer.packs else self.scorer.batches(pairs)
        return {
            "inputs": [self.scorer.inputs([pairs[i] for i in batch]) for batch in batches],
            "indices": torch.tensor([index for batch in batches for index in batch]),
            "labels": torch.tensor(
                [label for sample, _ in groups for label in sample.labels], dtype=torch.float32
            ),
            "sizes": [len(sample.labels) for sample, _ in groups],
            "teacher": teacher_scores([sample for sample, _ in groups]),
        }


def batch_logits(model: nn.Module, batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """Return the logits of a micro-batch, float32 `[pairs]`."""
    logits = torch.cat(
        [pair_logits(model, on_device(inputs, device)) for inputs in batch["inputs"]]
    )
    return torch.empty_like(logits).index_copy(0, batch["indices"].to(device), logits)
