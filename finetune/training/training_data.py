"""The groups of a run: those it trains on, those that choose its model, those that report on it."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rerank_plugin.io.jsonl import SkippedLines

from ..config import FinetuneConfig
from ..data.dataset import GroupDataset
from ..data.index_cache import cache_folder
from ..data.splits import FEW_QUERIES, halves, split_by_query
from .run_dir import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The groups of a run, on their three sides."""

    train: GroupDataset
    #: They choose the model that is kept.
    validation: GroupDataset
    #: They report what it is worth.
    test: GroupDataset
    fingerprint: str
    skipped: int


def load_data(config: FinetuneConfig, folder: RunFolder) -> Data:
    """Read and check all groups, and hold queries out where no others are given."""
    cache = cache_folder()
    skipped = SkippedLines(folder.skipped_lines) if config.on_bad_line == "skip" else None
    groups = GroupDataset.build(config.data_path, cache, skipped, progress=True)
    if config.eval_data_path is None:
        train, others = split_by_query(
            groups.query_hashes, wanted=config.eval_queries, seed=config.seed
        )
        sides = groups.select(train), groups.select(others)
    else:
        sides = groups, GroupDataset.build(config.eval_data_path, cache, skipped, progress=True)
        warn_of_repetitions("eval_data_path", sides[1], groups)
    if config.test_data_path is None:
        validation, test = halves(sides[1].query_hashes, seed=config.seed)
        held_out = sides[1].select(validation), sides[1].select(test)
    else:
        held_out = (
            sides[1],
            GroupDataset.build(config.test_data_path, cache, skipped, progress=True),
        )
        warn_of_repetitions("test_data_path", held_out[1], sides[0])
        warn_of_repetitions("test_data_path", held_out[1], sides[1], "validation")
    fewest = min(len(part) for part in held_out)
    if fewest < FEW_QUERIES // 2:
        logger.warning(
            "only %d queries to choose a model or to report on it: weak evidence", fewest
        )
    if config.teacher_margin is not None:
        sides = sides[0].without_false_negatives(config.teacher_margin), sides[1]
    count = skipped.count if skipped else 0
    if count:
        written = Path(config.finetune_model_dir) / folder.skipped_lines.name
        logger.warning("%d bad lines skipped, written down in %s", count, written)
    files = {"data_path": groups, "eval_data_path": sides[1], "test_data_path": held_out[1]}
    fingerprints = {name: part.fingerprint for name, part in files.items()}
    for name, known in folder.state.get("fingerprints", fingerprints).items():
        if known != fingerprints[name]:
            raise folder.changed(name, "the data is")
    folder.keep(
        fingerprints=fingerprints,
        held_out={
            name: [f"{query:016x}" for query in part.query_hashes.tolist()]
            for name, part in zip(("validation", "test"), held_out, strict=True)
        },
    )
    return Data(sides[0], *held_out, fingerprint=groups.fingerprint, skipped=count)


def warn_of_repetitions(
    name: str, groups: GroupDataset, others: GroupDataset, what: str = "training"
) -> None:
    """Say how many of the queries of files have a part in making or choosing the model too."""
    repeated = int(np.isin(groups.query_hashes, others.query_hashes).sum())
    if repeated:
        logger.warning(
            "--%s repeats %d %s queries of %d: its figures flatter the model",
            name,
            repeated,
            what,
            len(groups),
        )
