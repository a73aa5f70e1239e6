"""Training: groups in, a better reranker out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import FinetuneConfig
from .distillation.options import DistillConfig

if TYPE_CHECKING:
    from .check.check import check_groups
    from .check.result import CheckResult
    from .converters.convert import convert
    from .converters.result import ConversionResult
    from .distillation.distill import distill
    from .evaluation.evaluate import evaluate
    from .evaluation.result import EvaluationResult
    from .export.agreement import Agreement
    from .export.export import ExportResult, export_model
    from .export.merge import MergeResult, merge
    from .export.quantization import QuantizationResult
    from .export.quantize import quantize
    from .fusion.fuse import FusionResult, fuse
    from .mining.mine import mine_negatives
    from .mining.result import MiningResult
    from .teachers.result import ScoringResult
    from .teachers.score import score_groups
    from .training.finetune import FinetuneResult, finetune

__all__ = [
    "Agreement",
    "CheckResult",
    "ConversionResult",
    "DistillConfig",
    "EvaluationResult",
    "ExportResult",
    "FinetuneConfig",
    "FinetuneResult",
    "FusionResult",
    "MergeResult",
    "MiningResult",
    "QuantizationResult",
    "ScoringResult",
    "check_groups",
    "convert",
    "distill",
    "evaluate",
    "export_model",
    "finetune",
    "fuse",
    "merge",
    "mine_negatives",
    "quantize",
    "score_groups",
]

#: The module of every name that is imported when it is first used: torch and transformers are then
#: loaded by the first run, not by its configuration.
MODULES = {
    "Agreement": "export.agreement",
    "CheckResult": "check.result",
    "ConversionResult": "converters.result",
    "EvaluationResult": "evaluation.result",
    "ExportResult": "export.export",
    "FinetuneResult": "training.finetune",
    "FusionResult": "fusion.fuse",
    "MergeResult": "export.merge",
    "MiningResult": "mining.result",
    "QuantizationResult": "export.quantization",
    "ScoringResult": "teachers.result",
    "check_groups": "check.check",
    "convert": "converters.convert",
    "distill": "distillation.distill",
    "evaluate": "evaluation.evaluate",
    "export_model": "export.export",
    "finetune": "training.finetune",
    "fuse": "fusion.fuse",
    "merge": "export.merge",
    "mine_negatives": "mining.mine",
    "quantize": "export.quantize",
    "score_groups": "teachers.score",
}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
