"""`rerank-plugin rerank`: rank documents, one JSON object for each request."""

from rerank_plugin.cli.console import say
from rerank_plugin.offline.options import RerankOptions
from rerank_plugin.offline.rerank import rerank

__all__ = ["RerankOptions", "main"]


def main(options: RerankOptions) -> int:
    """Rank every request of the data path, in its order; return the exit code."""
    result = rerank(options, progress=True)
    if options.engine == "ray":
        say(f"{options.output}: {result.requests} requests in {len(result.files)} files")
    return 0
