"""Pictures of a run and of what two models make of the same queries."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.calibration import Flags, Numbers, reliability
from ..evaluation.metrics import METRICS

#: Wide and low; letters stay readable on a telephone.
SIZE = (5.4, 3.1)

#: The first model, and the second.
COLOURS = ("#8a8f98", "#0b6e99")

#: Characters of a name.
LABEL = 40

RELEVANT, NOT_RELEVANT = "#1a7f4b", "#b3402e"


def png(figure: Figure) -> bytes:
    """A picture as the contents of a file."""
    contents = io.BytesIO()
    figure.savefig(contents, format="png", dpi=150)
    return contents.getvalue()


def empty() -> tuple[Figure, Any]:
    """A picture with one pair of axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def curves(history: Sequence[dict[str, float]]) -> Figure:
    """Loss and metrics over the steps of a run."""
    figure = Figure(figsize=SIZE, layout="constrained")
    loss, metrics = figure.subplots(1, 2)
    lines = {"loss": (loss, "training", ""), "eval_loss": (loss, "held out", "o")}
    lines |= {name: (metrics, name, "o") for name in METRICS}
    for name, (axes, label, marker) in lines.items():
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=label)
    loss.set(title="loss", xlabel="step")
    metrics.set(title="held-out queries", xlabel="step", ylim=(0, 1))
    for axes in (loss, metrics):
        axes.legend(fontsize="x-small")
        axes.grid(alpha=0.3)
    return figure


def distributions(scores: Mapping[str, Numbers], relevant: Flags) -> Figure:
    """How the scores of relevant and not relevant documents lie, by names, one above the other."""
    figure = Figure(figsize=(SIZE[0], 0.8 + 1.7 * len(scores)), layout="constrained")
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), 40)
    rows = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, own) in zip(rows, scores.items(), strict=True):
        for flags, colour, label in (
            (relevant, RELEVANT, "relevant"),
            (~relevant, NOT_RELEVANT, "not relevant"),
        ):
            weights = np.full(int(flags.sum()), 1 / max(1, flags.sum()))
            axes.hist(own[flags], edges, weights=weights, color=colour, alpha=0.55, label=label)
        axes.set(title=label_of(name), ylabel="share")
        axes.legend()
        axes.grid(alpha=0.3)
    axes.set(xlabel="score")
    return figure


def reliability_curves(found: Mapping[str, Numbers], relevant: Flags) -> Figure:
    """How often documents of a score are relevant, beside what the score says, by names."""
    figure, axes = empty()
    axes.plot((0, 1), (0, 1), color="#8a8f98", linestyle=":", label="as it should be")
    for name, probabilities in found.items():
        means, shares, _ = zip(*reliability(probabilities, relevant), strict=True)
        axes.plot(means, shares, marker="o", markersize=4, label=label_of(name))
    axes.set(xlabel="score", ylabel="share of relevant documents", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    return figure


def label_of(name: str) -> str:
    """A name as a picture shows it: short, nothing of it taken for a formula or left out."""
    shown = name if len(name) <= LABEL else f"…{name[1 - LABEL :]}"
    # The font has Latin, Greek and Cyrillic letters.
    shown = "".join(letter if letter < "\u0530" or letter == "…" else "?" for letter in shown)
    # A legend leaves out what begins with an underscore.
    return shown.replace("$", r"\$").replace("_", "\u2009_", 1 if shown.startswith("_") else 0)


def differences(delta: Numbers) -> Figure:
    """What every query gains or loses, in order."""
    figure, axes = empty()
    ordered = np.sort(delta)[::-1]
    # One area for any number of queries, as steps a query wide.
    edges, heights = np.arange(len(ordered) + 1) - 0.5, np.append(ordered, ordered[-1:])
    for kept, colour in ((heights > 0, RELEVANT), (heights < 0, NOT_RELEVANT)):
        axes.fill_between(edges, np.where(kept, heights, 0), step="post", color=colour)
    axes.axhline(0, color="#8a8f98", linewidth=0.8)
    axes.set(xlabel="queries, by what they gain", ylabel="nDCG@10, after minus before")
    return figure
