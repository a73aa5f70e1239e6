"""The cache of loaded models: components with one model and equal options share it."""

import os
import threading
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from rerank_plugin.model.source import identity

if TYPE_CHECKING:
    from rerank_plugin import Reranker

#: The models in use, by their source and options.
models: "WeakValueDictionary[Hashable, Reranker]" = WeakValueDictionary()

#: Held while a model is loaded, so that it is loaded once.
lock = threading.Lock()


def load_shared(model: str, options: Mapping[str, Any]) -> "Reranker":
    """Return the model of a name and options, loaded if it is not in use yet."""
    with lock:
        key = identity(model, options)
        reranker = models.get(key)
        if reranker is None:
            from rerank_plugin import Reranker

            reranker = models[key] = Reranker(model, **options)
        return reranker


def adopt(reranker: "Reranker") -> str:
    """Share a model that was loaded elsewhere; return the name to load it by.

    If its folder was replaced since it was loaded, that is another model.
    """
    models[reranker.identity] = reranker
    return reranker.source


def find(model: str, options: Mapping[str, Any]) -> "Reranker | None":
    """Return the model of a name and options, if it is in use."""
    return models.get(identity(model, options))


def renew_lock() -> None:
    """Renew the lock in a forked child, which does not have the thread that may hold it."""
    global lock
    lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)
