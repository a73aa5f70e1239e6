"""`rerank-plugin mine`: mine groups, and print what was left out."""

import shlex

from rerank_plugin.cli.console import say, summary_stream
from rerank_plugin.io.streams import is_stream

from ..mining.mine import mine
from ..mining.options import MineOptions

__all__ = ["MineOptions", "main"]


def main(options: MineOptions) -> int:
    """Mine, print the summary and the next command, and return the exit code."""
    result = mine(options, progress=True)
    output = options.files[0]
    summary_stream(output).write("\n".join([*result.lines(), ""]))
    if not is_stream(output):
        check = shlex.join(["rerank-plugin", "check", "--data_path", str(output)])
        say(f"next:  {check}")
    return 0
