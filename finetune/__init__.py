"""Training: groups in, a better reranker out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import FinetuneConfig

if TYPE_CHECKING:
    from .training.finetune import FinetuneResult, finetune

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune"]

#: The module of every name that is imported when it is first used: torch and transformers are then
#: loaded by the first run, not by its configuration.
MODULES = {
    "FinetuneResult": "training.finetune",
    "finetune": "training.finetune",
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
