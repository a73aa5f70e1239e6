"""Groups in an Arrow file: any number of them at flat memory, each at hand by its index."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from rerank_plugin.errors import InputError
from rerank_plugin.jsonl import DataPath, SkippedLines, fingerprint

from .groups import Group, read_groups

TEXTS = datasets.List(datasets.Value("string"))
NUMBERS = datasets.List(datasets.Value("float64"))
FEATURES = datasets.Features(
    {
        "query": datasets.Value("string"),
        "pos": TEXTS,
        "neg": TEXTS,
        "pos_scores": NUMBERS,
        "neg_scores": NUMBERS,
        "id": datasets.Value("string"),
    }
)


class GroupDataset:
    """The groups of a data path, in the order of its lines.

    Args:
        rows: The Arrow data set that holds them.
        fingerprint: A hash of the files that they were read from.
    """

    def __init__(self, rows: datasets.Dataset, *, fingerprint: str) -> None:
        self.rows = rows
        self.fingerprint = fingerprint

    @classmethod
    def build(
        cls, data_path: DataPath, cache: Path, skipped: SkippedLines | None
    ) -> "GroupDataset":
        """Read and check all groups into an Arrow file under `cache`."""

        def generate() -> Iterator[dict[str, Any]]:
            for group in read_groups(data_path, skipped):
                yield asdict(group)

        contents = fingerprint(data_path)
        try:
            rows = datasets.Dataset.from_generator(
                generate, features=FEATURES, cache_dir=str(cache), fingerprint=contents
            )
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            raise
        return cls(rows, fingerprint=contents)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Group:
        row = self.rows[index]
        return Group(**{item.name: row[item.name] for item in fields(Group)})

    def __iter__(self) -> Iterator[Group]:
        return (self[index] for index in range(len(self)))

    @property
    def queries(self) -> list[str]:
        """The queries of all groups."""
        return list(self.rows["query"])

    def select(self, indices: list[int]) -> "GroupDataset":
        """Some of the groups, in the order of their indices."""
        return GroupDataset(self.rows.select(indices), fingerprint=self.fingerprint)
