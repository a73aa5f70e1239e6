"""The contract of teachers, and those that are models on this machine."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from rerank_plugin.inputs import make_pairs
from rerank_plugin.reranker import Reranker

from ..data.groups import Group

#: Called with the index of a group and the logits of its documents, as soon as they are known.
Record = Callable[[int, list[float]], None]

#: Pairs that a model scores before they are recorded: a killed command loses at most those.
PAIRS_AT_ONCE = 1024


class Teacher(Protocol):
    """Scores the documents of groups."""

    def check_instruction(self, instruction: str, where: str = "") -> None:
        """Check that the teacher takes the instruction of a group; raises InputError."""
        ...

    def score(self, groups: Iterable[tuple[int, Group]], record: Record) -> None:
        """Score all documents of some groups, and record the logits of each."""
        ...


class LocalTeacher(Teacher):
    """A reranker on this machine.

    Args:
        reranker: The model.
    """

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker

    def check_instruction(self, instruction: str, where: str = "") -> None:
        """Check that the model takes an instruction; raises InputError."""
        self._reranker.check_instruction(instruction, where)

    def score(self, groups: Iterable[tuple[int, Group]], record: Record) -> None:
        """Score all documents of some groups, and record the logits of each."""
        for batch in batches(groups):
            pairs = [
                pair
                for _, group in batch
                for pair in make_pairs(group.query, group.documents, group.instruction)
            ]
            logits = iter(self._reranker.logits(pairs).tolist())
            for index, group in batch:
                record(index, [next(logits) for _ in group.documents])


def batches(groups: Iterable[tuple[int, Group]]) -> Iterator[list[tuple[int, Group]]]:
    """Yield groups in lists of about `PAIRS_AT_ONCE` pairs, at least one group each."""
    batch: list[tuple[int, Group]] = []
    pairs = 0
    for index, group in groups:
        batch.append((index, group))
        pairs += len(group.documents)
        if pairs >= PAIRS_AT_ONCE:
            yield batch
            batch, pairs = [], 0
    if batch:
        yield batch
