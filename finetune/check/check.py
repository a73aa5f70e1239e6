"""Check groups: all problems of a data set at once, and a fixed copy of it."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from rerank_plugin.cli.console import bar
from rerank_plugin.errors import InputError
from rerank_plugin.io.atomic import writing
from rerank_plugin.io.jsonl import DataPath, read_lines

from ..data.groups import Group
from ..data.writer import record_line
from .fix import Fixer
from .inspection import Inspection, read_inspected
from .labels import Labels
from .lengths import Lengths
from .options import GroupCheckOptions
from .overlap import Overlap
from .result import (
    CheckResult,
    FixedCopy,
    describe,
    describe_labels,
    describe_lengths,
    describe_overlap,
)


def check_groups(
    *,
    data_path: DataPath,
    eval_data_path: DataPath | None = None,
    model_name_or_path: str | PathLike[str] | None = None,
    max_len: int | None = None,
    instruction: str | None = None,
    fix: str | PathLike[str] | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> CheckResult:
    """Report all problems of groups, and write a fixed copy if one is wanted.

    Lines that cannot be used, missing files and a model that cannot be loaded are part of the
    result: nothing of them is an error.

    Args:
        data_path: Groups: `.jsonl` or `.jsonl.gz` files, folders or globs.
        eval_data_path: Evaluation groups, which are checked too and compared with `data_path`.
        model_name_or_path: A model whose tokenizer counts tokens; without it lengths are in
            characters.
        max_len: The maximum length of a pair in tokens; by default 512, or the model's
            limit if lower.
        instruction: The instruction of groups without one, for language models.
        fix: A `.jsonl` file for a copy of `data_path` without unusable lines, blank, repeated and
            contradictory passages, repeated groups, and the queries of `eval_data_path`.
        overwrite: Replace an earlier `fix`.
        trust_remote_code: Run code that comes with the model.
        progress: Show a progress bar on stderr.

    Returns:
        The findings, with the report as the command prints it.

    Raises:
        InputError: an option is invalid.
    """
    # The parameters are the fields of GroupCheckOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return check(GroupCheckOptions(**options), progress=progress)


def check(options: GroupCheckOptions, *, progress: bool) -> CheckResult:
    """Check groups, and write the fixed copy."""
    result, labels = CheckResult(), Labels()
    lengths = start_lengths(options, result)
    data, eval_data = Inspection(), Inspection()
    overlap = None
    if options.eval_data_path:
        # Read first, so that training groups can be compared with it in one pass.
        groups = inspected(options.eval_data_path, eval_data, labels, lengths, progress=progress)
        held_out = [(group.query, group.pos) for _, group in groups]
        overlap = Overlap(held_out) if eval_data.is_whole else None
    for where, group in inspected(options.data_path, data, labels, lengths, progress=progress):
        if overlap:
            overlap.add(group, where)
    describe(result, data, str(options.data_path))
    if options.eval_data_path:
        describe(result, eval_data, str(options.eval_data_path))
    describe_labels(result, labels)
    if overlap:
        describe_overlap(result, overlap)
    if lengths and lengths.problem:
        result.length_problem = lengths.problem
    elif lengths and data.groups + eval_data.groups:
        describe_lengths(result, lengths)
    if options.fix:
        write_fixed(options, Fixer(labels, overlap), result)
    return result


def inspected(
    data_path: DataPath,
    inspection: Inspection,
    labels: Labels,
    lengths: Lengths | None,
    *,
    progress: bool,
) -> Iterator[tuple[str, Group]]:
    """Yield the usable groups of a data set with file and line of each, and inspect them."""
    with bar("checking", "group", shown=progress) as shown:
        for line, group in read_inspected(data_path, inspection):
            where = f"{line.path}:{line.number}"
            labels.add(group, where)
            if lengths:
                lengths.add(group, where)
            yield where, group
            shown.update()


def start_lengths(options: GroupCheckOptions, result: CheckResult) -> Lengths | None:
    """Return a counter of lengths, in tokens of a model or in characters.

    None if the model or the length cannot be used, which is then a problem of the result.
    """
    model = options.model_name_or_path
    if model is None:
        return Lengths(None, None)
    from rerank_plugin.engine.encoder import PairEncoder
    from rerank_plugin.model.formats import find_format
    from rerank_plugin.model.language_models import language_reranker
    from rerank_plugin.model.loading import (
        load_config,
        load_tokenizer,
        resolve_max_length,
    )

    trust = options.trust_remote_code
    try:
        config = load_config(model, trust_remote_code=trust)
        tokenizer = load_tokenizer(model, trust_remote_code=trust)
        model_format = find_format(model, config)
        reranker = language_reranker(model, config, tokenizer, model_format, is_base=True)
        prompt = reranker.prompt if reranker else None
        max_len = resolve_max_length(
            options.max_len, prompt=prompt, config=config, option="max_len"
        )
        encoder = PairEncoder(
            tokenizer,
            max_length=max_len,
            option="max_len",
            prompt=prompt,
            instruction=options.instruction,
        )
    except InputError as error:
        result.length_problem = str(error)
        return None
    return Lengths(encoder, max_len)


def write_fixed(options: GroupCheckOptions, fixer: Fixer, result: CheckResult) -> None:
    """Write the fixed copy, unless the evaluation data is unreadable or no group is left."""
    if options.eval_data_path and not fixer.overlap:
        result.fix_problem = "--eval_data_path cannot be read"
        return
    if not result.is_usable:
        fixer.learn(options.data_path)
    output = Path(str(options.fix))
    try:
        with writing(output) as file:
            groups = 0
            for line in read_lines(options.data_path):
                record = fixer.fix(line)
                if record:
                    file.write(record_line(record))
                    groups += 1
            if not groups:
                raise InputError(f"no group of {options.data_path} is left")
    except InputError as error:
        result.fix_problem = str(error)
    except OSError as error:
        result.fix_problem = f"{error.filename or output}: {error.strerror}"
    else:
        result.fixed = FixedCopy(output, groups, fixer.counts)
