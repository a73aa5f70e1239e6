"""`rerank-plugin merge`: merge a LoRA adapter into its base, and print the folder."""

from rerank_plugin.cli.console import say

from ..export.options import MergeOptions

__all__ = ["MergeOptions", "main"]


def main(options: MergeOptions) -> int:
    """Merge, print the folder of the merged model, and return the exit code."""
    from ..export.merge import run_merge

    result = run_merge(options, progress=True)
    say(f"merged model: {result.model_dir}")
    return 0
