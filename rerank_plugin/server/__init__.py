"""An HTTP endpoint in the formats of Jina, Cohere and text-embeddings-inference."""

from typing import TYPE_CHECKING, Any

from rerank_plugin.server.settings import ServerSettings

if TYPE_CHECKING:
    from rerank_plugin.server.app import create_app

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    # Imported when it is used: settings are read without the packages of the extra.
    if name == "create_app":
        from rerank_plugin.server.app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
