"""Forked processes, which have none of the threads that their parent scored with."""

import os
import threading
from weakref import WeakSet

import torch

from rerank_plugin.errors import RerankError

FORKED = (
    "a model was used before this process was forked, and a fork has none of its threads: load "
    'models in the child processes only, or start these with multiprocessing.get_context("spawn")'
)

#: The number of forks between this process and the one that imported the module.
forks = 0

#: Whether a process that this one was forked from had scored with several threads.
forked_from_scoring = False

#: The threads of queues, those of queues that nobody holds any more too: they may be freeing the
#: model.
scoring_threads: "WeakSet[threading.Thread]" = WeakSet()


class QueueError(RerankError):
    """The model cannot be used from here, or not any more."""


def check_fork() -> None:
    """Raise a `QueueError` if a model that is loaded now would hang.

    OpenMP's threads, which torch computes with, do not exist in a child, and it waits for them.
    """
    if forked_from_scoring:
        raise QueueError(FORKED)


def after_fork() -> None:
    """Count the fork in a child, and forget the threads of its parent."""
    global forks, forked_from_scoring, scoring_threads
    forks += 1
    if torch.get_num_threads() > 1 and scoring_threads:
        forked_from_scoring = True
    scoring_threads = WeakSet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
