"""Results for people: tables on the terminal, and a plot of how many times faster we are."""

from pathlib import Path
from typing import Any

from peers.scorers import OURS
from rich.console import Console
from rich.table import Table

from shared.results import DISTURBED, Results, Row, summary

GIGABYTE = 2**30

SHORT = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}


def print_row(console: Console, row: Row) -> None:
    """Print one row as a table, a line a contestant."""
    table = Table(title=f"{row.kind}, {row.model}: {row.title}", title_justify="left")
    table.add_column("")
    times = ("p50 ms", "p95 ms") if row.kind == "latency" else ("pairs/s",)
    for name in ("in", *times, "tokens/s", "of GEMM", "peak GB"):
        table.add_column(name, justify="right")
    table.add_column("we are faster,\nsame precision", justify="right")
    table.add_column("we are faster,\ndefaults", justify="right")
    for line in summary(row):
        table.add_row(*cells(line), style="bold" if line["who"] == OURS else None)
    if any(mark(run) for run in summary(row)):
        table.caption = "~ other programs kept the machine busy in every round"
    console.print(table)


def print_machine(console: Console, machine: dict[str, Any]) -> None:
    """Print what the CPU can multiply with, and what limits it."""
    limits = [f"{name}={value}" for name, value in machine["cpu_limits"].items()]
    limited = f"; limited by {' '.join(limits)}" if limits else ""
    console.print(
        f"{machine['cpu']}, {machine['threads']} threads: {' '.join(machine['cpu_flags'])}{limited}"
    )


def print_agreement(console: Console, agreement: dict[str, dict[str, float]]) -> None:
    """Print how well logits agree with those of float32."""
    for name, figures in agreement.items():
        console.print(
            f"  {name}: logits differ by at most {figures['difference']:.2g}, "
            f"correlation {figures['correlation']:.4f}"
        )


def cells(line: dict[str, Any]) -> list[str]:
    """Return a contestant's figures as texts."""
    if "p50_seconds" in line:
        times = [f"{1000 * line[name]:,.0f}" for name in ("p50_seconds", "p95_seconds")]
    else:
        times = [f"{line['pairs_per_second']:.1f}"]
    return [
        f"{mark(line)}{line['who']}, {line['setting']}",
        SHORT[line["precision"]],
        *times,
        f"{line['tokens_per_second']:,.0f}",
        "" if line["gemm_share"] is None else f"{line['gemm_share']:.0%}",
        f"{line['peak_memory'] / GIGABYTE:.2f}",
        *(ratio(line, name) for name in ("same_precision", "default")),
    ]


def ratio(line: dict[str, Any], name: str) -> str:
    """Return how many times faster this project was, with the range over the rounds."""
    if f"faster_{name}" not in line:
        return ""
    speedup = line[f"faster_{name}"]
    low, high = speedup["range"]
    spread = "" if low == high else f" ({low:.2f} – {high:.2f})"
    return f"{mark(speedup)}{speedup['times']:.2f}×{spread}"


def mark(speedup: dict[str, Any]) -> str:
    """Return a sign at figures for which there was no quiet round."""
    return "~" if speedup["others_cpus"] > DISTURBED else ""


def plot(results: Results, path: Path) -> None:
    """Draw for every row how many times faster this project was than each peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    comparisons = {"same_precision": "at equal precision", "default": "default against default"}
    lines = [line for row in results.rows for line in summary(row) if line["who"] != OURS]
    shown = {name: [line for line in lines if f"faster_{name}" in line] for name in comparisons}
    height = 1.5 + 0.22 * max(len(rows) for rows in shown.values())
    figure, axes = pyplot.subplots(1, 2, figsize=(16, height), layout="constrained")
    for (name, title), axis in zip(comparisons.items(), axes, strict=True):
        draw(axis, shown[name], f"faster_{name}")
        axis.set_title(f"times faster than, {title}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw(axis: Any, lines: list[dict[str, Any]], key: str) -> None:
    """Draw a bar a contestant, its range over the rounds as a whisker."""
    peers = sorted({line["who"] for line in lines})
    for row, line in enumerate(lines):
        times = line[key]["times"]
        low, high = line[key]["range"]
        color = f"C{peers.index(line['who'])}"
        axis.barh(row, times, xerr=[[times - low], [high - times]], color=color)
        axis.text(times, row, f" {mark(line[key])}{times:.2f}", va="bottom", fontsize=7)
    labels = [f"{line['row']}  {line['who']}, {line['setting']}" for line in lines]
    axis.set_yticks(range(len(lines)), labels, fontsize=7)
    axis.invert_yaxis()
    # Room for the figures at the ends of the bars.
    axis.margins(x=0.1)
    axis.axvline(1, color="black", linewidth=0.8)
