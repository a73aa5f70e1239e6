"""`rerank-plugin check`: everything that is wrong with a data set, at once."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.jsonl import DataPath, Line, input_files, read_lines
from rerank_plugin.options import option

from .groups import Group, find_problems, parse_group, query_key

#: How many places of each kind of problem are shown.
SHOWN = 3

PERCENTILES = (50, 90, 99, 100)


@dataclass(kw_only=True)
class CheckOptions:
    """Report what is wrong with groups, how long they are, and how much a length would cut."""

    data_path: str | list[str] = option(help="groups: .jsonl or .jsonl.gz files, folders or globs")
    eval_data_path: str | list[str] | None = option(
        None, help="groups to evaluate on: checked too, and for queries of --data_path"
    )
    model_name_or_path: str | None = option(
        None, help="a model whose tokenizer counts tokens; without it lengths are in characters"
    )
    max_len: int | None = option(
        None, help="the longest pair in tokens, as for train; default 512 or what the model reads"
    )

    def __post_init__(self) -> None:
        if self.max_len is not None and self.max_len < 1:
            raise OptionError("max_len", f"{self.max_len} is less than 1")


@dataclass
class Findings:
    """What a data set's lines hold, and what is wrong with them."""

    groups: list[Group] = field(default_factory=list)
    lines: int = 0
    #: Kinds of problems, with the message of every line that has it.
    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Take one more line."""
        self.lines += 1
        try:
            record = line.record()
        except InputError as error:
            kind = "not UTF-8" if "UTF-8" in str(error) else "broken JSON or no object"
            self.problems.setdefault(kind, []).append(str(error))
            return
        problems = find_problems(record)
        for problem in problems:
            message = str(line.error(problem.message))
            self.problems.setdefault(problem.kind, []).append(message)
        if not problems:
            self.groups.append(parse_group(line))


def main(options: CheckOptions) -> int:
    """Print the report; exit code 2 if any line, file or option cannot be used."""
    found = gather(options.data_path)
    report = describe(found, str(options.data_path))
    bad = bool(found.problems)
    groups = found.groups
    if options.eval_data_path:
        other = gather(options.eval_data_path)
        report += describe(other, str(options.eval_data_path))
        report += describe_overlap(found.groups, other.groups)
        bad = bad or bool(other.problems)
        groups = groups + other.groups
    if groups:
        try:
            report += describe_lengths(groups, options)
        except InputError as error:
            bad = True
            report.append(f"lengths: {error}")
    sys.stdout.write("\n".join(report) + "\n")
    return InputError.exit_code if bad else 0


def gather(data_path: DataPath) -> Findings:
    """Read all lines of all files, whatever is wrong with them."""
    findings = Findings()
    try:
        files = input_files(data_path)
    except InputError as error:
        findings.problems["missing file"] = [str(error)]
        return findings
    for file in files:
        try:
            for line in read_lines(file):
                findings.add(line)
        except InputError as error:
            findings.problems.setdefault("unusable file", []).append(str(error))
    return findings


def describe(found: Findings, name: str) -> list[str]:
    """The problems by kind with counts, and the sizes of the groups."""
    report = [f"{name}: {found.lines} lines, {len(found.groups)} usable groups"]
    for kind, messages in sorted(found.problems.items(), key=lambda item: -len(item[1])):
        report.append(f"  {len(messages)} × {kind}")
        report += [f"      {message}" for message in messages[:SHOWN]]
        if len(messages) > SHOWN:
            report.append(f"      … and {len(messages) - SHOWN} more")
    report += describe_queries(found.groups)
    for side in ("pos", "neg"):
        sizes = Counter(len(getattr(group, side)) for group in found.groups)
        if sizes:
            low, high = min(sizes), max(sizes)
            report.append(f"  {side}: {low} to {high} a group, mostly {sizes.most_common(1)[0][0]}")
    return report


def describe_queries(groups: Sequence[Group]) -> list[str]:
    """Queries that stand in several groups, and passages that stand twice in one."""
    repeated = [n for n in Counter(query_key(group.query) for group in groups).values() if n > 1]
    report = []
    if repeated:
        count = f"{len(repeated)} queries stand in several groups, up to {max(repeated)}"
        report.append(f"  note: {count}")
    twice = sum(len(set(group.documents)) < len(group.documents) for group in groups)
    if twice:
        report.append(f"  note: {twice} groups hold a passage twice; training uses it once")
    return report


def describe_overlap(train: Sequence[Group], held_out: Sequence[Group]) -> list[str]:
    """Queries on both sides."""
    known = {query_key(group.query) for group in train}
    repeated = [group.query for group in held_out if query_key(group.query) in known]
    if not repeated:
        return ["no query stands on both sides"]
    return [f"warning: {len(repeated)} evaluation queries are training queries: {repeated[0]!r} …"]


def describe_lengths(groups: Sequence[Group], options: CheckOptions) -> list[str]:
    """Percentiles of the pairs' lengths, and how many `max_len` would cut."""
    if options.model_name_or_path is None:
        lengths = np.array([len(query) + len(text) for query, text in pairs_of(groups)])
        report = [f"characters of a pair: {percentiles(lengths)}"]
        return [*report, "with --model_name_or_path: in tokens, and what --max_len would cut"]
    from rerank_plugin.encoding import PairEncoder
    from rerank_plugin.loading import (
        DEFAULT_MAX_LENGTH,
        load_config,
        load_tokenizer,
        resolve_max_length,
    )

    model = options.model_name_or_path
    max_len = resolve_max_length(
        options.max_len, default=DEFAULT_MAX_LENGTH, config=load_config(model), option="max_len"
    )
    encoder = PairEncoder(load_tokenizer(model), max_length=max_len, option="max_len")
    lengths = encoder.lengths(list(pairs_of(groups)))
    cut = lengths > max_len
    lost = (lengths[cut] - max_len).sum() / max(1, lengths.sum())
    share = f"{cut.sum()} of {len(lengths)} pairs ({cut.mean():.1%}), {lost:.1%} of all tokens"
    return [
        f"tokens of a pair: {percentiles(lengths)}",
        f"--max_len {max_len} cuts {share}",
    ]


def pairs_of(groups: Sequence[Group]) -> Iterator[tuple[str, str]]:
    """All (query, document) pairs."""
    return ((group.query, document) for group in groups for document in group.documents)


def percentiles(lengths: "np.typing.NDArray[np.integer]") -> str:
    """The percentiles of lengths, as text."""
    values = np.percentile(lengths, PERCENTILES)
    shown = [f"{int(value)} ({name}%)" for name, value in zip(PERCENTILES, values, strict=True)]
    return ", ".join(shown).replace("(100%)", "(longest)").replace("(50%)", "(median)")
