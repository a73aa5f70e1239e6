"""`rerank-plugin export`: export a reranker for another runtime, and print how its scores agree."""

from rerank_plugin.cli.console import say

from ..export.options import ExportOptions

__all__ = ["ExportOptions", "main"]


def main(options: ExportOptions) -> int:
    """Export, print the folder and the agreement of the scores, and return the exit code."""
    from ..export.export import run_export

    result = run_export(options, progress=True)
    say(f"exported model: {result.model_dir}")
    say(f"{result.file.name} against Reranker in float32: {result.agreement}")
    return 0
