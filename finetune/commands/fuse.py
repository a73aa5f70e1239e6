"""`rerank-plugin fuse`: fit how much a retriever counts beside a reranker, and print it."""

from rerank_plugin.cli.console import say

from ..fusion.options import FuseOptions

__all__ = ["FuseOptions", "main"]


def main(options: FuseOptions) -> int:
    """Fuse, print the retriever, the reranker and both, and return the exit code."""
    from ..evaluation.metrics import METRIC
    from ..fusion.fuse import run_fuse
    from ..report.tables import print_fusion

    result = run_fuse(options, progress=True)
    print_fusion(result, METRIC)
    say(result.summary)
    say(f"model: {result.model_dir}")
    return 0
