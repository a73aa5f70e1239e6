"""Which passages of a group are trained on in an epoch, and in which order groups come."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from torch.utils.data import Sampler

from .groups import Group

#: Epoch and index of a group, and whether it counts.
Place = tuple[int, int, bool]


@dataclass(frozen=True)
class Sample:
    """What is trained on: a query, some of its group's passages, and 1 or 0 for each."""

    query: str
    documents: list[str]
    labels: list[int]


def sample_group(group: Group, *, size: int, seed: int, epoch: int, index: int) -> Sample:
    """One right passage and up to `size - 1` wrong ones, no text twice.

    They depend on (seed, epoch, index) alone. Over epochs every passage is used before any
    comes again, but for the ones that fill up the last epoch of a round.
    """
    positives = list(dict.fromkeys(group.pos))
    negatives = list(dict.fromkeys(group.neg))
    positive = rounds(len(positives), 1, seed=(seed, index, 1), epoch=epoch)
    negative = rounds(len(negatives), size - 1, seed=(seed, index, 0), epoch=epoch)
    documents = [positives[i] for i in positive] + [negatives[i] for i in negative]
    labels = [1] * len(positive) + [0] * len(negative)
    return Sample(group.query, documents, labels)


def rounds(count: int, take: int, *, seed: tuple[int, ...], epoch: int) -> list[int]:
    """`take` of `count` indices for an epoch: rounds of fresh permutations, cut into epochs."""
    if take >= count:
        return list(range(count))
    turn, place = divmod(epoch, ceil(count / take))
    permutation = np.random.default_rng((*seed, turn)).permutation(count)
    chosen = permutation[place * take : (place + 1) * take]
    # The last epoch of a round is filled up with the round's first ones, which differ from its own.
    return [int(i) for i in (*chosen, *permutation[: take - len(chosen)])]


class GroupBatches(Sampler[list[Place]]):
    """The batches of one process, in an order that depends on the seed and the epoch alone.

    All processes together take `batch_size * processes` groups a batch, the last one what is left:
    no group comes twice and none is left out. A process for which nothing is left gets a group that
    does not count, so that all take the same number of steps.

    The epoch travels with the index because a dataset in another process is never told it.
    """

    def __init__(
        self, groups: int, *, batch_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return ceil(self.groups / (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[Place]]:
        permutation = np.random.default_rng((self.seed, self.epoch)).permutation(self.groups)
        together = self.batch_size * self.processes
        for start in range(0, self.groups, together):
            batch = permutation[start : start + together]
            own = batch[self.rank :: self.processes]
            counts = len(own) > 0
            yield [(self.epoch, int(index), counts) for index in (own if counts else batch[:1])]
