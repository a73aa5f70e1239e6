"""The groups of a run: training, validation and test."""

import logging
from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.io.jsonl import SkippedLines

from ..config import FinetuneConfig
from ..data.dataset import GroupDataset
from ..data.index_cache import cache_folder
from ..data.splits import FEW_QUERIES, halves, sides, split_by_query
from ..losses import make_loss
from .distributed import main_process_first
from .run_dir import RunDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The groups of a run."""

    train: GroupDataset
    #: The training groups, and those of the same files that are held out.
    whole: GroupDataset
    #: Chooses the model that is kept.
    validation: GroupDataset
    #: Reports its quality.
    test: GroupDataset
    #: Queries of other topics, on which the model must not become worse; None without any.
    general: GroupDataset | None
    #: Of the files of `--data_path`.
    fingerprint: str
    #: The number of invalid lines that were skipped.
    skipped: int


def load_data(config: FinetuneConfig, run_dir: RunDir) -> RunData:
    """Read and check all groups, and split them where no evaluation files are given.

    Raises:
        InputError: a file cannot be read, a line is invalid, a group lacks the teacher scores that
            the loss needs, or the data has changed since the run was interrupted.
    """
    with main_process_first():
        skipped = SkippedLines(run_dir.skipped_lines) if config.on_bad_line == "skip" else None
        groups = GroupDataset.build(config.data_path, cache_folder(), skipped, progress=True)
        train, held_out = held_out_groups(config, groups, skipped)
        validation, test = validation_and_test(config, train, held_out, skipped)
        general = general_groups(config, train, skipped)
        warn_of_few_queries(validation, test)
        whole = groups
        if config.teacher_margin is not None:
            train = train.without_false_negatives(config.teacher_margin)
            whole = whole.without_false_negatives(config.teacher_margin)
        count = report_skipped_lines(config, skipped)
        files = {"data_path": groups, "eval_data_path": held_out, "test_data_path": test}
        check_unchanged(run_dir, files | ({"general_data_path": general} if general else {}))
        run_dir.keep(held_out={"validation": query_ids(validation), "test": query_ids(test)})
        data = RunData(train, whole, validation, test, general, groups.fingerprint, skipped=count)
    check_teacher_scores(config, data)
    return data


def held_out_groups(
    config: FinetuneConfig, groups: GroupDataset, skipped: SkippedLines | None
) -> tuple[GroupDataset, GroupDataset]:
    """Return the training groups, and those for validation and test."""
    if config.eval_data_path is None:
        train, held_out = split_by_query(
            groups.query_hashes, wanted=config.eval_queries, seed=config.seed
        )
        return groups.select(train), groups.select(held_out)
    evaluation = GroupDataset.build(config.eval_data_path, cache_folder(), skipped, progress=True)
    warn_of_overlap("eval_data_path", evaluation, groups, "training")
    return groups, evaluation


def validation_and_test(
    config: FinetuneConfig,
    train: GroupDataset,
    held_out: GroupDataset,
    skipped: SkippedLines | None,
) -> tuple[GroupDataset, GroupDataset]:
    """Return the validation groups and the test groups: two files, or two halves of one."""
    if config.test_data_path is None:
        validation, test = halves(held_out.query_hashes, seed=config.seed)
        return held_out.select(validation), held_out.select(test)
    groups = GroupDataset.build(config.test_data_path, cache_folder(), skipped, progress=True)
    warn_of_overlap("test_data_path", groups, train, "training")
    warn_of_overlap("test_data_path", groups, held_out, "validation")
    return held_out, groups


def general_groups(
    config: FinetuneConfig, train: GroupDataset, skipped: SkippedLines | None
) -> GroupDataset | None:
    """Return the groups of `--general_data_path`, if it is given."""
    if config.general_data_path is None:
        return None
    groups = GroupDataset.build(config.general_data_path, cache_folder(), skipped, progress=True)
    warn_of_overlap("general_data_path", groups, train, "training")
    return groups


def warn_of_overlap(option: str, groups: GroupDataset, others: GroupDataset, split: str) -> None:
    """Log how many queries of an evaluation file are in another split, too."""
    _, repeated = sides(groups.query_hashes, others.query_hashes)
    if len(repeated):
        logger.warning(
            "--%s: %d of %d queries are %s queries too, so its metrics will be too high",
            option,
            len(repeated),
            len(groups),
            split,
        )


def warn_of_few_queries(validation: GroupDataset, test: GroupDataset) -> None:
    """Log that metrics on few queries are weak evidence."""
    if min(len(validation), len(test)) < FEW_QUERIES // 2:
        logger.warning(
            "only %d validation and %d test queries: metrics are weak evidence; use more "
            "groups, or --eval_data_path and --test_data_path",
            len(validation),
            len(test),
        )


def report_skipped_lines(config: FinetuneConfig, skipped: SkippedLines | None) -> int:
    """Return how many invalid lines were skipped, and log where they are listed."""
    count = skipped.count if skipped else 0
    if skipped and count:
        path = Path(config.finetune_model_dir) / skipped.path.name
        logger.warning("skipped %d invalid lines, listed in %s", count, path)
    return count


def check_unchanged(run_dir: RunDir, files: dict[str, GroupDataset]) -> None:
    """Check that the files of a resumed run are those of the interrupted one."""
    fingerprints = {option: groups.fingerprint for option, groups in files.items()}
    for option, known in run_dir.state.get("fingerprints", fingerprints).items():
        if known != fingerprints[option]:
            raise run_dir.changed(option, "the data")
    run_dir.keep(fingerprints=fingerprints)


def query_ids(groups: GroupDataset) -> list[str]:
    """Return the hashes of the queries as text."""
    return [f"{query:016x}" for query in groups.query_hashes.tolist()]


def check_instructions(data: RunData, encoder: PairEncoder) -> None:
    """Check that the model takes the instructions of groups."""
    for groups in filter(None, (data.train, data.validation, data.test, data.general)):
        groups.check_instructions(encoder)


def check_teacher_scores(config: FinetuneConfig, data: RunData) -> None:
    """Check that all groups have the teacher scores that the loss needs."""
    if config.loss and make_loss(config.loss).needs_teacher:
        for groups in (data.train, data.validation, data.test):
            groups.require_teacher("loss", config.loss)
