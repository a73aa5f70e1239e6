"""`rerank-plugin convert`: convert data, and print what was left out."""

from pathlib import Path

from rerank_plugin.cli.console import summary_stream

from ..converters.convert import convert_data
from ..converters.options import ConvertOptions

__all__ = ["ConvertOptions", "main"]


def main(options: ConvertOptions) -> int:
    """Convert, print the summary, and return the exit code."""
    result = convert_data(options, progress=True)
    summary_stream(Path(options.output)).write("\n".join([*result.summary(), ""]))
    return 0
