"""A better reranker for your RAG pipeline: fine-tune a cross-encoder, prove it, rank with it."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rerank_plugin.errors import InputError, RerankError

if TYPE_CHECKING:
    from rerank_plugin.reranker import Ranked, Reranker

__all__ = ["InputError", "Ranked", "RerankError", "Reranker", "__version__"]

__version__ = version("rerank-plugin")


def __getattr__(name: str) -> Any:
    # torch and transformers load with the first model, not with the package.
    if name in {"Ranked", "Reranker"}:
        from rerank_plugin import reranker

        return getattr(reranker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
