"""`rerank-plugin compare A B`: a report on what two models make of the same queries."""

from dataclasses import dataclass

from rerank_plugin.options import option

from .evaluate import EvaluateOptions, main

__all__ = ["CompareOptions", "main"]


@dataclass(kw_only=True)
class CompareOptions(EvaluateOptions):
    """Compare two models, A and B, on groups: a table, and a report in HTML."""

    baseline: str = option(help="the first model, A: a hub id, a folder or an adapter folder")
    model_dir: str = option(help="the second model, B")
    report: str = option("comparison", help="a folder for report.html and its pictures")
