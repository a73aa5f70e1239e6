"""LangChain's interface of cross-encoders, which langchain-core has only had since 1.2.19."""

from abc import ABC
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

#: Modules with the interface, the one to prefer first.
CROSS_ENCODER_MODULES = (
    "langchain_core.cross_encoders",
    "langchain_classic.retrievers.document_compressors.cross_encoder",
)


def interface() -> Any:
    """Return the class that LangChain's own rerankers accept as a model."""
    for module in CROSS_ENCODER_MODULES:
        with suppress(ModuleNotFoundError):
            return import_module(module).BaseCrossEncoder
    return ABC


if TYPE_CHECKING:
    from langchain_core.cross_encoders import BaseCrossEncoder
else:
    BaseCrossEncoder = interface()

__all__ = ["BaseCrossEncoder"]
