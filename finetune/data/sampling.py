"""Samples of groups for each epoch, and the order of groups in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from torch.utils.data import Sampler

from .groups import Group

#: Epoch and index of a group, and whether its loss counts.
GroupIndex = tuple[int, int, bool]


@dataclass(frozen=True)
class Sample:
    """A training sample: a query, some of its group's passages, and the grade of each."""

    query: str
    #: The group's; "" for the default.
    instruction: str
    documents: list[str]
    labels: list[int]
    #: The teacher's scores of the passages, where the group has them.
    teacher: list[float] | None = None


def sample_group(group: Group, *, size: int, seed: int, epoch: int, index: int) -> Sample:
    """Draw one passage of the highest grade and up to `size - 1` of lower grades, no text twice.

    Without grades that is one positive, and negatives. With them lower positives are drawn like
    negatives, so that a loss sees several grades, and each of them below a better one.

    The draw depends on (seed, epoch, index) alone. Over epochs every passage is used once before
    any is used again, except for those that fill up the last epoch of a round.
    """
    documents, labels, teacher = group.documents, group.labels, group.teacher
    distinct = distinct_indices(documents)
    best = max(labels[i] for i in distinct)
    highest = [i for i in distinct if labels[i] == best]
    lower = [i for i in distinct if labels[i] < best]
    indices = [highest[i] for i in rounds(len(highest), 1, seed=(seed, index, 1), epoch=epoch)]
    indices += [lower[i] for i in rounds(len(lower), size - 1, seed=(seed, index, 0), epoch=epoch)]
    return Sample(
        group.query,
        group.instruction,
        [documents[i] for i in indices],
        [labels[i] for i in indices],
        None if teacher is None else [teacher[i] for i in indices],
    )


def distinct_indices(texts: Sequence[str]) -> list[int]:
    """Return the index of the first copy of each text."""
    indices: dict[str, int] = {}
    for index, text in enumerate(texts):
        indices.setdefault(text, index)
    return list(indices.values())


def rounds(count: int, take: int, *, seed: tuple[int, ...], epoch: int) -> list[int]:
    """Return `take` of `count` indices for an epoch: permutations, one a round, cut into epochs."""
    if take >= count:
        return list(range(count))
    turn, start = divmod(epoch, ceil(count / take))
    permutation = np.random.default_rng((*seed, turn)).permutation(count)
    chosen = permutation[start * take : (start + 1) * take]
    # The last epoch of a round is filled up with the round's first indices, which differ from it.
    return [int(i) for i in (*chosen, *permutation[: take - len(chosen)])]


class GroupBatches(Sampler[list[GroupIndex]]):
    """The batches of one process, in an order that depends on the seed and the epoch alone.

    All processes together take `batch_size * processes` groups a batch, the last one what is left:
    no group is repeated and none is left out. A process without a group gets one that does not
    count, so that all processes make the same number of steps.

    The epoch is part of the index because a dataset in another process does not know it.
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
        """Set the epoch; called by the trainer at its start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return ceil(self.groups / (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[GroupIndex]]:
        permutation = np.random.default_rng((self.seed, self.epoch)).permutation(self.groups)
        together = self.batch_size * self.processes
        for start in range(0, self.groups, together):
            batch = permutation[start : start + together]
            share = batch[self.rank :: self.processes]
            counts = len(share) > 0
            yield [(self.epoch, int(index), counts) for index in (share if counts else batch[:1])]
