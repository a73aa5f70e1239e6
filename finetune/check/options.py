"""Options of checking, validated together for Python and the command line."""

from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.options import check_options, option

from ..data.writer import check_files


@dataclass(kw_only=True)
class GroupCheckOptions:
    """The data sets that are checked, how lengths are measured, and where a fixed copy is put."""

    data_path: str | list[str] = option(help="groups: .jsonl or .jsonl.gz files, folders or globs")
    eval_data_path: str | list[str] | None = option(
        None, help="evaluation groups, which are checked too and compared with --data_path"
    )
    model_name_or_path: str | None = option(
        None, help="a model whose tokenizer counts tokens; without it lengths are in characters"
    )
    max_len: int | None = option(
        None,
        aliases=("max_length",),
        minimum=1,
        help="the maximum length of a pair in tokens, as for train; default: 512, or the model's "
        "if less",
    )
    instruction: str | None = option(
        None, help="the instruction of groups without one, as for train; its tokens count, too"
    )
    fix: str | None = option(
        None,
        help="a .jsonl file for a copy of --data_path without unusable lines, blank, repeated and "
        "contradictory passages, repeated groups, and the queries of --eval_data_path",
    )
    overwrite: bool = option(False, help="replace an earlier file of --fix")
    trust_remote_code: bool = option(False, help="run code that comes with the model")

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("max_len", "instruction"):
            if getattr(self, name) is not None and self.model_name_or_path is None:
                raise OptionError(
                    name, "requires --model_name_or_path, whose tokenizer counts tokens"
                )
        if self.fix:
            inputs = (self.data_path, self.eval_data_path)
            check_files([Path(self.fix)], inputs, overwrite=self.overwrite, option="fix")
