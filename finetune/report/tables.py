"""Figures and rankings on the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rerank_plugin.cli.console import Stdout

from ..evaluation.metrics import METRICS

#: For rich, which asks a file for no more than this one has.
STDOUT: Any = Stdout()

if TYPE_CHECKING:
    from ..evaluation.judged_query import JudgedQueries
    from ..evaluation.scoring import Evaluation


def print_comparison(
    before: Mapping[str, float], after: Mapping[str, float], difference: Mapping[str, Any]
) -> None:
    """Before, after, and their paired difference with its interval, on stdout."""
    table = Table(title=f"{after['queries']} queries")
    for title in ("metric", "before", "after", "difference", "95% interval", "p", "won, lost"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for name in METRICS:
        figures = f"{before[name]:.4f}", f"{after[name]:.4f}"
        table.add_row(name, *figures, *difference_cells(difference, name))
    Console(file=STDOUT).print(table)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """The metrics of one model, on stdout."""
    table = Table(title=f"{metrics['queries']} queries")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in METRICS:
        table.add_row(name, f"{metrics[name]:.4f}")
    Console(file=STDOUT).print(table)


def print_models(models: Mapping[str, Mapping[str, float]]) -> None:
    """The metrics of several models by their names, on stdout."""
    table = Table(title=f"{next(iter(models.values()))['queries']} queries")
    table.add_column("model", overflow="fold")
    for name in METRICS:
        table.add_column(name, justify="right")
    for model, metrics in models.items():
        table.add_row(escape(model), *(f"{metrics[name]:.4f}" for name in METRICS))
    Console(file=STDOUT).print(table)


def print_differences(baseline: str, records: Sequence[Mapping[str, Any]], metric: str) -> None:
    """How several models differ from a baseline in one metric, on stdout."""
    table = Table(title=f"{metric} beside {escape(baseline)}")
    table.add_column("model", overflow="fold")
    for title in ("difference", "95% interval", "p", "won, lost"):
        table.add_column(title, justify="right")
    for record in records:
        table.add_row(escape(record["model"]), *difference_cells(record["difference"], metric))
    Console(file=STDOUT).print(table)


def difference_cells(difference: Mapping[str, Any], metric: str) -> tuple[str, str, str, str]:
    """A paired difference in one metric, its interval, its p, and who wins how many queries."""
    low, high = difference["interval_95"][metric]
    return (
        f"{difference[metric]:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{difference['p_value'][metric]:.4f}",
        f"{difference['better'][metric]}, {difference['worse'][metric]}",
    )


def print_worst(
    judged: "JudgedQueries",
    evaluations: "tuple[Evaluation, Evaluation]",
    names: tuple[str, str],
    count: int,
) -> None:
    """The queries that lose most from the first model to the second, with passages, on stdout."""
    from .side_by_side import first_relevant, most_hurt, shortened, side_by_side

    console = Console(file=STDOUT, highlight=False, emoji=False, markup=False)
    for own in side_by_side(judged, evaluations, most_hurt(evaluations, count)):
        change = f"{own.before.value:.3f} → {own.after.value:.3f}"
        console.print(f"\n{shortened(own.judged.query)}  nDCG@10 {change}", style="bold")
        for name, ranked in zip(names, (own.before, own.after), strict=True):
            console.print(f"  {name}: {first_relevant(ranked)}")
            for place, index in enumerate(ranked.best, 1):
                kind = "relevant" if own.judged.labels[index] > 0 else "not relevant"
                text = shortened(own.judged.documents[index])
                console.print(f"    {place}. {kind}: {text}")
        for text in own.relevant:
            console.print(f"  relevant: {text}")
