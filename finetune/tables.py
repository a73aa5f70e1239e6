"""Figures as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from .metrics import METRICS


def print_comparison(
    before: Mapping[str, float], after: Mapping[str, float], difference: Mapping[str, Any]
) -> None:
    """Before, after, and their paired difference with its interval, on stdout."""
    table = Table(title=f"{after['queries']} queries")
    for title in ("metric", "before", "after", "difference", "95% interval", "p", "won, lost"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for name in METRICS:
        low, high = difference["interval_95"][name]
        figures = f"{before[name]:.4f}", f"{after[name]:.4f}", f"{difference[name]:+.4f}"
        queries = f"{difference['better'][name]}, {difference['worse'][name]}"
        p_value = f"{difference['p_value'][name]:.4f}"
        table.add_row(name, *figures, f"{low:+.4f} to {high:+.4f}", p_value, queries)
    Console().print(table)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """The metrics of one model, on stdout."""
    table = Table(title=f"{metrics['queries']} queries")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in METRICS:
        table.add_row(name, f"{metrics[name]:.4f}")
    Console().print(table)
