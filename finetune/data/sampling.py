"""Which passages of a group are trained on in an epoch, and in which order groups come."""

from collections.abc import Iterator, Sequence
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
    #: The teacher's scores of the passages, where the group has them.
    teacher: list[float] | None = None


def sample_group(group: Group, *, size: int, seed: int, epoch: int, index: int) -> Sample:
    """One positive and up to `size - 1` negatives, no text twice.

    They depend on (seed, epoch, index) alone. Over epochs every passage is used before any
    comes again, but for the ones that fill up the last epoch of a round.
    """
    positives = first_places(group.pos)
    negatives = first_places(group.neg)
    positive = rounds(len(positives), 1, seed=(seed, index, 1), epoch=epoch)
    negative = rounds(len(negatives), size - 1, seed=(seed, index, 0), epoch=epoch)
    # Places in `group.documents`.
    places = [positives[i] for i in positive]
    places += [len(group.pos) + negatives[i] for i in negative]
    documents, teacher = group.documents, group.teacher
    return Sample(
        group.query,
        [documents[place] for place in places],
        [1] * len(positive) + [0] * len(negative),
        None if teacher is None else [teacher[place] for place in places],
    )


def first_places(texts: Sequence[str]) -> list[int]:
    """Where each text stands first: one that comes again is left out."""
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, place)
    return list(places.values())


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
