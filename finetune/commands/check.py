"""`rerank-plugin check`: check groups, and print the findings."""

from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.cli.console import Stdout, summary_stream
from rerank_plugin.errors import CheckFailedError, InputError
from rerank_plugin.options import option

from ..check.check import check
from ..check.options import GroupCheckOptions


@dataclass(kw_only=True)
class CheckOptions(GroupCheckOptions):
    """Report all problems of groups, their lengths, and how much a maximum length would cut."""

    fail_on_warning: bool = option(False, help="exit with code 3 if there is a warning")


def main(options: CheckOptions) -> int:
    """Check, print the findings, and return the exit code."""
    result = check(options, progress=True)
    stream = summary_stream(Path(options.fix)) if options.fix else Stdout()
    stream.write("\n".join([*result.lines(), ""]))
    if not result.is_usable or result.fix_problem:
        return InputError.exit_code
    if options.fail_on_warning and result.warnings:
        raise CheckFailedError(f"--fail_on_warning: {len(result.warnings)} warnings")
    return 0
