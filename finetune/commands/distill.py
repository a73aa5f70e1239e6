"""`rerank-plugin distill`: score with a teacher, train a student, and print its metrics."""

from ..distillation.options import DistillConfig
from .train import report

__all__ = ["DistillConfig", "main"]


def main(config: DistillConfig) -> int:
    """Distil, print the metrics and the next command, and return the exit code."""
    from ..distillation.distill import distill

    return report(config, distill(config, progress=True))
