"""Models that are loaded: adapters of one model and settings share one."""

import os
import threading
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from rerank_plugin.model.source import identity

if TYPE_CHECKING:
    from rerank_plugin import Reranker

#: Models that somebody uses, by what they were loaded from and how.
resident: "WeakValueDictionary[Hashable, Reranker]" = WeakValueDictionary()

#: So that a model is loaded once; who only looks does not wait for it.
lock = threading.Lock()


def load(model: str, options: Mapping[str, Any]) -> "Reranker":
    """The model of that name and options, loaded if nobody uses it yet."""
    with lock:
        key = identity(model, options)
        reranker = resident.get(key)
        if reranker is None:
            from rerank_plugin import Reranker

            reranker = resident[key] = Reranker(model, **options)
        return reranker


def adopt(reranker: "Reranker") -> str:
    """Share a model that was loaded elsewhere; returns the name under which it can be loaded.

    As what it was when it was loaded: if its folder was replaced since, that is another model.
    """
    resident[reranker.identity] = reranker
    return reranker.source


def find(model: str, options: Mapping[str, Any]) -> "Reranker | None":
    """The model of that name and options, if somebody uses it."""
    return resident.get(identity(model, options))


def after_fork() -> None:
    """In a child: the lock may be held by a thread that it does not have."""
    global lock
    lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
