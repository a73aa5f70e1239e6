"""`rerank-plugin score`: write teacher scores into groups, and print what the file has."""

import shlex

from rerank_plugin.cli.console import say, summary_stream

from ..distillation.options import DEFAULT_LOSS
from ..teachers.options import ScoreGroupsOptions

__all__ = ["ScoreGroupsOptions", "main"]


def main(options: ScoreGroupsOptions) -> int:
    """Score, print the summary and the next command, and return the exit code."""
    from ..teachers.score import score

    result = score(options, progress=True)
    summary_stream(result.output).write("\n".join([*result.lines(), ""]))
    train = ["rerank-plugin", "train", "--data_path", str(result.output), "--loss", DEFAULT_LOSS]
    say(f"next:  {shlex.join(train)}")
    return 0
