"""Plots of a training run and of two models on the same queries, as SVG and as PNG."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.calibration import Flags, Floats, reliability
from .verdict import metric_title

#: The palette on a light page, by the names of the variables that the page's style sheet sets.
PALETTE = {
    "ink": "#1c2330",
    "muted": "#646d7a",
    "line": "#dde1e6",
    "first": "#8b93a0",
    "blue": "#0b6e99",
    "orange": "#c2571a",
}

#: Inches: text stays readable on a telephone, where a plot is as wide as the screen.
WIDTH, HEIGHT = 4.8, 2.9

STYLE: Any = {
    "axes.edgecolor": PALETTE["muted"],
    "axes.grid": True,
    "axes.labelcolor": PALETTE["ink"],
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": PALETTE["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.axisbelow": True,
    "font.size": 9,
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": PALETTE["ink"],
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["muted"],
    "xtick.labelcolor": PALETTE["ink"],
    "ytick.color": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["ink"],
    # Text stays text: the page's font, and something to search for.
    "svg.fonttype": "none",
}

#: Characters of a model's name in a legend.
LABEL = 32

#: Documents of a point in the reliability plot at least: the share of fewer is mostly chance.
FEWEST_DOCUMENTS = 10

#: The smallest height of an axis of a metric: noise shall not look like progress.
SMALLEST_RANGE = 0.1

#: Steps and values of a curve.
Points = list[tuple[float, float]]

GROUP_ID = re.compile(r' id="[a-z0-9]+_\d+"')
SIZE = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>')


def svg(figure: Figure, name: str, title: str) -> Markup:
    """Return a figure as an SVG element for a page: colours are the page's variables.

    Args:
        figure: The figure.
        name: What makes the ids inside it different from those of other figures of the page.
        title: What a screen reader says.
    """
    contents = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        save(figure, contents, format="svg", metadata=metadata, transparent=True)
    text = contents.getvalue()
    text = GROUP_ID.sub("", text[text.index("<svg") :]).replace("xlink:href", "href")
    text = SIZE.sub(rf'<svg viewBox="\1" role="img" aria-label="{escape(title)}">', text, count=1)
    for variable, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)


def png(figure: Figure) -> bytes:
    """Return a figure as the contents of a PNG file."""
    contents = io.BytesIO()
    save(figure, contents, format="png", dpi=150)
    return contents.getvalue()


def save(figure: Figure, contents: io.StringIO | io.BytesIO, **options: Any) -> None:
    """Save a figure; its layout is computed for the first format and kept for the others."""
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(contents, **options)


def panels(rows: int, height: float, **options: Any) -> tuple[Figure, list[Any]]:
    """Return a figure with axes below each other."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False, **options)[:, 0])


def training_curves(history: Sequence[Mapping[str, float]], metric: str) -> dict[str, Points]:
    """Return steps and values of training loss, validation loss and a metric, where there are any.

    Args:
        history: The entries of `history.jsonl`.
        metric: The metric of the validation queries.
    """
    titles = {
        "loss": "Training loss",
        "eval_loss": "Validation loss",
        metric: f"{metric_title(metric)} on validation queries",
    }
    curves = {
        title: [(entry["step"], entry[name]) for entry in history if name in entry]
        for name, title in titles.items()
    }
    return {title: points for title, points in curves.items() if points}


@mpl.rc_context(STYLE)
def plot_training(curves: Mapping[str, Points], kept_step: int | None = None) -> Figure:
    """Plot losses and a metric over the steps, each on its own axis.

    The training loss is that of sampled groups, the validation loss that of whole ones: they are
    on different scales and cannot be compared.

    Args:
        curves: Steps and values by the titles of their axes, as `training_curves` returns them.
        kept_step: The step whose model was kept, marked by a line.
    """
    blue = PALETTE["blue"]
    figure, axes = panels(len(curves), 0.5 + 1.35 * len(curves), sharex=True)
    for panel, (title, points) in zip(axes, curves.items(), strict=True):
        panel.plot(*zip(*points, strict=True), "o-" if len(points) <= 20 else "-", color=blue)
        panel.set(title=title)
        if title.endswith("queries"):
            panel.set_ylim(*metric_range([value for _, value in points]))
    axes[-1].set(xlabel="step")
    if kept_step is not None:
        mark_step(axes, kept_step)
    return figure


def mark_step(axes: Sequence[Any], step: int) -> None:
    """Mark the step whose model was kept on all axes, and name the mark on the last."""
    for panel in axes:
        panel.axvline(step, color=PALETTE["orange"], linestyle="--", linewidth=1)
    low, high = axes[-1].get_xlim()
    is_early = step < (low + high) / 2
    axes[-1].annotate(
        "kept",
        (step, axes[-1].get_ylim()[0]),
        (3 if is_early else -3, 3),
        textcoords="offset points",
        ha="left" if is_early else "right",
        color=PALETTE["orange"],
        fontsize=8.5,
    )


def metric_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value of an axis: not so narrow that noise looks large."""
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), (SMALLEST_RANGE - (high - low)) / 2)
    return max(-0.005, low - margin), min(1.005, high + margin)


@mpl.rc_context(STYLE)
def plot_differences(delta: Floats, metric: str) -> Figure:
    """Plot what every query gains or loses, in order; gains and losses have the same scale."""
    figure, (axes,) = panels(1, HEIGHT)
    ordered = np.sort(delta)[::-1]
    # One area for any number of queries, as steps a query wide.
    edges, heights = np.arange(len(ordered) + 1), np.append(ordered, ordered[-1:])
    for kept, colour in ((heights > 0, "blue"), (heights < 0, "orange")):
        bars = np.where(kept, heights, 0)
        axes.fill_between(edges, bars, step="post", color=PALETTE[colour], linewidth=0)
    axes.axhline(0, color=PALETTE["muted"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=(1, 2, 5, 10), integer=True))
    limit = max(SMALLEST_RANGE, 1.05 * float(np.abs(delta).max()))
    axes.set(
        xlabel="queries, sorted by their change",
        ylabel=f"change of {metric}",
        xlim=(0, len(ordered)),
        ylim=(-limit, limit),
    )
    return figure


@mpl.rc_context(STYLE)
def plot_scores(scores: Mapping[str, Floats], relevant: Flags) -> Figure:
    """Plot the distribution of the scores of relevant and other documents, a panel a model."""
    figure, axes = panels(len(scores), 0.75 + 1.35 * len(scores), sharex=True)
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), 30)
    for panel, (name, values) in zip(axes, scores.items(), strict=True):
        for flags, colour, label in (
            (~relevant, "orange", "not relevant"),
            (relevant, "blue", "relevant"),
        ):
            weights = np.full(int(flags.sum()), 100 / max(1, flags.sum()))
            panel.hist(
                values[flags],
                edges,
                weights=weights,
                color=PALETTE[colour],
                alpha=0.6,
                label=label,
            )
        panel.set(title=legible(name), ylabel="% of documents")
    axes[0].legend()
    axes[-1].set(xlabel="score")
    return figure


@mpl.rc_context(STYLE)
def plot_reliability(
    probabilities: Mapping[str, Floats], relevant: Flags, colours: Sequence[str]
) -> Figure:
    """Plot how often documents of a score are relevant, beside what the score promises.

    Args:
        probabilities: Scores of all documents by the names of their curves.
        relevant: Which documents are relevant.
        colours: The curves' colours in the palette.
    """
    figure, (axes,) = panels(1, HEIGHT)
    axes.plot((0, 1), (0, 1), color=PALETTE["muted"], linestyle=":", label="ideal")
    for (name, values), colour in zip(probabilities.items(), colours, strict=True):
        bins = reliability(values, relevant)
        bins = [bin_ for bin_ in bins if bin_[2] >= FEWEST_DOCUMENTS] or bins
        means, shares, counts = zip(*bins, strict=True)
        tint = PALETTE[colour]
        axes.plot(means, shares, "o-", linewidth=1, markersize=2, color=tint, label=legible(name))
        areas = 120 * np.sqrt(np.array(counts) / len(values))
        axes.scatter(means, shares, areas, color=tint, alpha=0.5, linewidth=0)
    axes.set(xlabel="score", ylabel="share of relevant documents", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend()
    return figure


def legible(name: str) -> str:
    """Return a name as matplotlib shows it: short, no formula, of letters that its font has."""
    shown = name if len(name) <= LABEL else f"…{name[1 - LABEL :]}"
    shown = "".join(letter if letter < "\u0530" or letter == "…" else "?" for letter in shown)
    # A legend leaves out what begins with an underscore.
    return shown.replace("$", r"\$").replace("_", "\u2009_", 1 if shown.startswith("_") else 0)
