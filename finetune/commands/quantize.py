"""`rerank-plugin quantize`: write a folder that scores with int8, and print what it costs."""

from typing import TYPE_CHECKING

from rerank_plugin.cli.console import say

from ..export.options import QuantizeOptions

if TYPE_CHECKING:
    from ..export.quantization import QuantizationResult

__all__ = ["QuantizeOptions", "main"]


def main(options: QuantizeOptions) -> int:
    """Quantize, print how int8 differs from float32, and return the exit code."""
    from ..export.quantization import QuantizationError
    from ..export.quantize import run_quantize

    try:
        result = run_quantize(options, progress=True)
    except QuantizationError as error:
        print_measurements(error.result)
        raise
    print_measurements(result)
    if not result.is_safe:
        say("--force: the interval of ndcg@10 reaches below the accepted loss; see rerank.json")
    say(f"model: {result.model_dir}")
    return 0


def print_measurements(result: "QuantizationResult") -> None:
    """Print metrics, differences of logits and speeds of both precisions."""
    from ..report.tables import print_comparison

    print_comparison(result.float32, result.int8, result.difference, ("float32", "int8"))
    say(f"int8 against float32: {result.agreement}")
    speeds = (f"{name} {speed:.1f}" for name, speed in result.pairs_per_second.items())
    say(f"pairs per second: {', '.join(speeds)}")
