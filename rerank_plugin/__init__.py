"""A better reranker for your RAG pipeline: fine-tune a cross-encoder, prove it, rank with it."""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rerank_plugin.errors import InputError, RerankError

if TYPE_CHECKING:
    from rerank_plugin.info.model_info import model_info
    from rerank_plugin.info.result import ModelInfo
    from rerank_plugin.ranking import Ranked
    from rerank_plugin.reranker import Reranker

__all__ = [
    "InputError",
    "ModelInfo",
    "Ranked",
    "RerankError",
    "Reranker",
    "__version__",
    "model_info",
]

__version__ = version("rerank-plugin")

# GNU OpenMP reads it once, when torch is imported. By default its threads wait for each other in
# loops of milliseconds, which takes the CPU from the thread that they wait for as soon as another
# program is busy.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

#: torch and transformers load with the first model, not with the package.
MODULES = {
    "ModelInfo": "rerank_plugin.info.result",
    "Ranked": "rerank_plugin.ranking",
    "Reranker": "rerank_plugin.reranker",
    "model_info": "rerank_plugin.info.model_info",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used."""
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
