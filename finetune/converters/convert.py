"""Convert training data of other libraries into groups, and groups into theirs."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_plugin.cli.console import bar
from rerank_plugin.errors import InputError
from rerank_plugin.io.atomic import writing
from rerank_plugin.io.jsonl import DataPath, read_lines
from rerank_plugin.io.outputs import scratch_folder

from ..data.groups import Group, parse_group
from ..data.reason_counts import ReasonCounts
from ..data.writer import group_line, record_line
from .beir import read_beir
from .grouping import group
from .labelled_query import LabelledQuery
from .options import ConvertOptions
from .readers import LABELLED, READERS
from .result import ConversionResult
from .rows import JSON, table_files
from .to_sentence_transformers import FORMATS, fitting, rows

#: The fields of a line with a group that are read.
GROUP_FIELDS = {field.name for field in fields(Group)}

#: Negatives that a query without one gets by default.
NEGATIVES = 7


def convert(
    *,
    from_: str,
    data_path: DataPath,
    output: str | PathLike[str],
    overwrite: bool = False,
    to: str = "groups",
    output_format: str | None = None,
    threshold: float | None = None,
    split: str | None = None,
    negatives: int | None = None,
    seed: int = 42,
    progress: bool = False,
) -> ConversionResult:
    """Convert training data of other libraries into groups, or groups into theirs.

    Args:
        from_: The format of the data: `beir`, `msmarco`, `sentence-transformers`, `flagembedding`,
            `tevatron`, `table` or `groups`.
        data_path: Files, folders or globs: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, or a data
            set saved by `datasets`.
        output: The `.jsonl` file to write.
        overwrite: Replace an earlier file.
        to: The format of the output: `groups` or `sentence-transformers`.
        output_format: With `sentence-transformers`: `labeled-list` (the default), `labeled-pair`,
            `triplet`, `n-tuple` or `pair`.
        threshold: The lowest label of a positive; by default 1 where labels are whole numbers, and
            above 0 in a BEIR folder.
        split: The qrels of a BEIR folder to read; by default `train`.
        negatives: How many passages of other queries are drawn for a query without negatives; by
            default 7.
        seed: The seed of these draws.
        progress: Show a progress bar on stderr.

    Returns:
        The file with its numbers of groups, passages and lines, and counts of what was left out.

    Raises:
        InputError: an option or a record is invalid, or there is no group.
    """
    # The parameters are the fields of ConvertOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return convert_data(ConvertOptions(**options), progress=progress)


def convert_data(options: ConvertOptions, *, progress: bool) -> ConversionResult:
    """Convert, and write the file when all of it is there."""
    output = Path(options.output)
    result = ConversionResult(output)
    with (
        TemporaryDirectory(prefix=".convert-", dir=scratch_folder(output)) as work,
        writing(output) as file,
        bar("converting", "group", shown=progress) as shown,
    ):
        for converted in read_converted(options, Path(work), result.counts):
            result.groups += 1
            result.passages += len(converted.documents)
            for line in output_lines(converted, options):
                result.lines += 1
                file.write(line)
            shown.update()
        if not result.groups:
            reasons = ", ".join(result.counts.lines())
            reasons = f" ({reasons})" if reasons else ""
            raise InputError(f"{options.data_path}: no group can be made of it{reasons}")
    return result


def read_converted(options: ConvertOptions, work: Path, counts: ReasonCounts) -> Iterable[Group]:
    """Yield the groups that the format of the output can hold."""
    groups = read_source(options, work, counts)
    return groups if options.to == "groups" else fitting(groups, format_of(options), counts)


def format_of(options: ConvertOptions) -> str:
    """Return the sentence-transformers format of the output."""
    return options.output_format or FORMATS[0]


def read_source(options: ConvertOptions, work: Path, counts: ReasonCounts) -> Iterator[Group]:
    """Yield the groups of the data."""
    if options.from_ == "groups":
        yield from read_own_groups(options.data_path, counts)
        return
    labelled, size = read_labelled(options, counts)
    yield from group(
        labelled,
        work,
        size=size,
        negatives=options.negatives or NEGATIVES,
        seed=options.seed,
        counts=counts,
    )


def read_own_groups(data_path: DataPath, counts: ReasonCounts) -> Iterator[Group]:
    """Yield groups, and count their other fields."""
    for line in read_lines(data_path):
        for name in sorted((line.quick_record() or {}).keys() - GROUP_FIELDS):
            counts[f"fields {name!r}, left out"] += 1
        yield parse_group(line)


def read_labelled(
    options: ConvertOptions, counts: ReasonCounts
) -> tuple[Iterator[LabelledQuery], int]:
    """Return the records of the data, and about how many bytes of text they have."""
    path, threshold = options.data_path, options.threshold
    if options.from_ == "beir":
        # A judged part of the corpus is small.
        split = options.split or "train"
        return read_beir(Path(str(path)), counts, split=split, threshold=threshold), 0
    if options.from_ in READERS:
        return READERS[options.from_](path, counts), text_size(path)
    return LABELLED[options.from_](path, counts, threshold=threshold), text_size(path)


def text_size(data_path: DataPath) -> int:
    """Return about how many bytes of text files hold, compressed ones several times their size."""
    size = 0
    for path in table_files(data_path, JSON):
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        times = 4 if path.suffix in (".gz", ".parquet") else 1
        size += times * sum(file.stat().st_size for file in files)
    return size


def output_lines(converted: Group, options: ConvertOptions) -> Iterator[str]:
    """Yield the lines of a group: itself, or its rows in the sentence-transformers format."""
    if options.to == "groups":
        yield group_line(converted)
        return
    for row in rows(converted, format_of(options)):
        yield record_line(row)
