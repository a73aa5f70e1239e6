"""Metrics and rankings as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rerank_plugin.cli.console import Stdout
from rerank_plugin.model.names import distinct_names

if TYPE_CHECKING:
    from ..evaluation.compared_queries import ComparedQuery
    from ..evaluation.fusion_figures import FusionFigures
    from ..evaluation.result import EvaluationResult

#: A file for rich, which needs only some of a file's methods.
STDOUT: Any = Stdout()


def print_evaluation(result: "EvaluationResult", *, worst: int) -> None:
    """Print the metrics of all models, and the queries that each of them hurt most.

    Args:
        result: The metrics, and comparisons with a baseline if there is one.
        worst: The number of hurt queries at most.
    """
    models = {name: evaluation.means for name, evaluation in result.models.items()}
    comparisons = result.comparisons
    if len(models) > 1:
        first = [comparison.evaluations[0].means for comparison in comparisons.values()][:1]
        print_models({**{str(result.baseline): means for means in first}, **models})
        differences = {name: comparison.difference for name, comparison in comparisons.items()}
        if differences:
            title = f"{result.metric}, compared with {escape(str(result.baseline))}"
            print_differences(title, differences, result.metric)
    elif comparisons:
        (comparison,) = comparisons.values()
        before, after = (evaluation.means for evaluation in comparison.evaluations)
        print_comparison(before, after, comparison.difference, distinct_names(*comparison.names))
    else:
        print_metrics(result.metrics)
    for name, figures in result.fusions.items():
        if len(models) > 1:
            Console(file=STDOUT).print(f"\n{escape(name)}, fused with the retriever")
        print_fusion(figures, result.metric)
    for comparison in comparisons.values():
        print_queries(comparison.hurt_queries[:worst], comparison.names, comparison.metric)


def print_comparison(
    before: Mapping[str, float],
    after: Mapping[str, float],
    difference: Mapping[str, Any],
    names: tuple[str, str] = ("before", "after"),
) -> None:
    """Print the metrics of two models, and their paired difference with its interval.

    Args:
        before: The means of the first model.
        after: The means of the second model.
        difference: The difference, as `significance.paired_difference` describes it.
        names: The titles of both columns.
    """
    # Without lines between columns, an interval fits into a terminal of 80 characters.
    table = Table(title=f"{after['queries']} queries", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = escape(names[0]), escape(names[1])
    for title in ("metric", *names, "difference", "95% interval", "p", "won, lost"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for name in metric_names(after):
        figures = f"{before[name]:.4f}", f"{after[name]:.4f}"
        table.add_row(name, *figures, *difference_cells(difference, name))
    Console(file=STDOUT).print(table)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print the metrics of one model."""
    table = Table(title=f"{metrics['queries']} queries")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in metric_names(metrics):
        table.add_row(name, f"{metrics[name]:.4f}")
    Console(file=STDOUT).print(table)


def print_models(models: Mapping[str, Mapping[str, float]]) -> None:
    """Print the metrics of several models, by their names."""
    first = next(iter(models.values()))
    names = metric_names(first)
    table = Table(title=f"{first['queries']} queries")
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for model, metrics in models.items():
        table.add_row(escape(model), *(f"{metrics[name]:.4f}" for name in names))
    Console(file=STDOUT).print(table)


def print_fusion(figures: "FusionFigures", metric: str) -> None:
    """Print a retriever, a reranker and both together, and what their fusion gains."""
    print_models(
        {"retriever": figures.retriever, "reranker": figures.reranker, "fused": figures.fused}
    )
    print_differences(f"{metric} of fused, compared with each", figures.differences, metric)


def print_differences(
    title: str, differences: Mapping[str, Mapping[str, Any]], metric: str
) -> None:
    """Print differences in one metric, by the names of models."""
    table = Table(title=title)
    table.add_column("model", overflow="fold")
    for title in ("difference", "95% interval", "p", "won, lost"):
        table.add_column(title, justify="right")
    for model, difference in differences.items():
        table.add_row(escape(model), *difference_cells(difference, metric))
    Console(file=STDOUT).print(table)


def difference_cells(difference: Mapping[str, Any], metric: str) -> tuple[str, str, str, str]:
    """Return difference, interval, p-value and the counts of queries won and lost."""
    low, high = difference["interval_95"][metric]
    return (
        f"{difference[metric]:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{difference['p_value'][metric]:.4f}",
        f"{difference['better'][metric]}, {difference['worse'][metric]}",
    )


def print_queries(queries: "Sequence[ComparedQuery]", names: tuple[str, str], metric: str) -> None:
    """Print queries with the best documents of two models."""
    console = Console(file=STDOUT, highlight=False, emoji=False, markup=False)
    for query in queries:
        change = f"{query.before.value:.3f} → {query.after.value:.3f}"
        console.print(f"\n{query.text}  {metric} {change}", style="bold")
        for name, top in zip(names, (query.before, query.after), strict=True):
            console.print(f"  {name}: {top.summary}")
            for rank, document in enumerate(top.documents, 1):
                label = "relevant" if document.relevant else "not relevant"
                console.print(f"    {rank}. {label}: {document.text}")
        for text in query.relevant:
            console.print(f"  relevant: {text}")


def metric_names(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics among means."""
    return [name for name in metrics if name != "queries"]
