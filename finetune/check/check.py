"""`rerank-plugin check`: everything that is wrong with a data set, at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.cli.console import Stdout, bar, summary_stream
from rerank_plugin.errors import CheckFailedError, InputError, OptionError
from rerank_plugin.io.atomic import writing
from rerank_plugin.io.jsonl import DataPath, read_lines
from rerank_plugin.options import check_options, option

from ..data.groups import Group
from ..data.writer import check_files, record_line
from .fix import Fixer
from .inspection import Inspection, Labels, Overlap, read_inspected
from .lengths import Lengths
from .summary import (
    CheckReport,
    describe,
    describe_labels,
    describe_lengths,
    describe_overlap,
)


@dataclass(kw_only=True)
class CheckOptions:
    """CheckReport what is wrong with groups, how long they are, and how much a length would cut."""

    data_path: str | list[str] = option(help="groups: .jsonl or .jsonl.gz files, folders or globs")
    eval_data_path: str | list[str] | None = option(
        None, help="groups to evaluate on: checked too, and for what --data_path shares with them"
    )
    model_name_or_path: str | None = option(
        None, help="a model whose tokenizer counts tokens; without it lengths are in characters"
    )
    max_len: int | None = option(
        None, help="the longest pair in tokens, as for train; default 512 or what the model reads"
    )
    fix: str | None = option(
        None,
        help="a .jsonl file for a copy of --data_path without unusable lines, passages that are "
        "blank, come twice or are labelled both ways, groups that come twice, and "
        "--eval_data_path's queries",
    )
    overwrite: bool = option(False, help="replace an earlier --fix")
    trust_remote_code: bool = option(False, help="run code that comes with the model")
    fail_on_warning: bool = option(False, help="exit code 3 if anything is warned about")

    def __post_init__(self) -> None:
        check_options(self)
        if self.max_len is not None and self.max_len < 1:
            raise OptionError("max_len", f"{self.max_len} is less than 1")
        if self.max_len is not None and self.model_name_or_path is None:
            raise OptionError("max_len", "counts tokens of a --model_name_or_path: give one")
        if self.fix:
            inputs = (self.data_path, self.eval_data_path)
            check_files([Path(self.fix)], inputs, overwrite=self.overwrite, option="fix")


def main(options: CheckOptions) -> int:
    """Print the report; exit code 2 if any line, file or option cannot be used."""
    report, labels = CheckReport(), Labels()
    lengths = start_lengths(options, report)
    found, other = Inspection(), Inspection()
    overlap = start_overlap(options, other, labels, lengths)
    for place, group in inspected(options.data_path, found, labels, lengths):
        if overlap:
            overlap.add(group, place)
    describe(report, found, str(options.data_path))
    if options.eval_data_path:
        describe(report, other, str(options.eval_data_path))
    describe_labels(report, labels)
    if overlap:
        describe_overlap(report, overlap)
    if lengths and found.groups + other.groups:
        describe_lengths(report, lengths)
    Stdout().write("\n".join([*report.lines, *report.last_lines]) + "\n")
    if options.fix:
        write_fixed(options, Fixer(labels, overlap), report)
    if report.unusable:
        return InputError.exit_code
    if options.fail_on_warning and report.warnings:
        raise CheckFailedError(f"--fail_on_warning: {report.warnings} warnings")
    return 0


def inspected(
    data_path: DataPath, found: Inspection, labels: Labels, lengths: Lengths | None
) -> Iterator[tuple[str, Group]]:
    """The usable groups of a data set with their places, inspected as they pass."""
    with bar("checking", "group") as progress:
        for line, group in read_inspected(data_path, found):
            place = f"{line.path}:{line.number}"
            labels.add(group, place)
            if lengths:
                lengths.add(group)
            yield place, group
            progress.update()


def start_overlap(
    options: CheckOptions, found: Inspection, labels: Labels, lengths: Lengths | None
) -> Overlap | None:
    """What compares with the evaluation data; None where there is none or not all can be read."""
    if not options.eval_data_path:
        return None
    # Read first, so that training groups can be compared with it as they come.
    inspection = inspected(options.eval_data_path, found, labels, lengths)
    held_out = [(group.query, group.pos) for _, group in inspection]
    return Overlap(held_out) if found.is_whole else None


def start_lengths(options: CheckOptions, report: CheckReport) -> Lengths | None:
    """Return what counts lengths, in tokens of a model or in characters.

    None if the model or the length cannot be used; the report ends with the reason.
    """
    model = options.model_name_or_path
    if model is None:
        return Lengths(None, None)
    from rerank_plugin.engine.encoder import PairEncoder
    from rerank_plugin.model.loading import (
        DEFAULT_MAX_LENGTH,
        load_config,
        load_tokenizer,
        resolve_max_length,
    )

    trust = options.trust_remote_code
    try:
        config = load_config(model, trust_remote_code=trust)
        max_len = resolve_max_length(
            options.max_len, default=DEFAULT_MAX_LENGTH, config=config, option="max_len"
        )
        tokenizer = load_tokenizer(model, trust_remote_code=trust)
        encoder = PairEncoder(tokenizer, max_length=max_len, option="max_len")
    except InputError as error:
        report.unusable = True
        report.last_lines.append(f"lengths: {error}")
        return None
    return Lengths(encoder, max_len)


def write_fixed(options: CheckOptions, fixer: Fixer, report: CheckReport) -> None:
    """Write the fixed copy, and say what is different in it."""
    if options.eval_data_path and not fixer.overlap:
        Stdout().write("--fix: not written, as --eval_data_path cannot be read\n")
        return
    output, groups = Path(str(options.fix)), 0
    if report.unusable:
        fixer.learn(options.data_path)
    with writing(output) as file:
        for line in read_lines(options.data_path):
            record = fixer.fix(line)
            if record:
                file.write(record_line(record))
                groups += 1
        if not groups:
            raise InputError(f"--fix: no group of {options.data_path} is left")
    told = summary_stream(output)
    told.write(f"{output}: {groups} groups\n")
    for what, count in fixer.counts.most_common():
        if count:
            told.write(f"  {count} × {what}\n")
