"""Training: groups in, a better reranker out."""

from typing import TYPE_CHECKING, Any

from .config import FinetuneConfig

if TYPE_CHECKING:
    from .training.finetune import FinetuneResult, finetune

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune"]


def __getattr__(name: str) -> Any:
    # torch and transformers load with the first run, not with its configuration.
    if name in {"FinetuneResult", "finetune"}:
        from .training import finetune as run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
