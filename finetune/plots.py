"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def plot_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Loss and nDCG@10 over steps, as a PNG."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, ndcg = figure.subplots(1, 2)
    for name, axes in (("loss", loss), ("eval_loss", loss), ("ndcg@10", ndcg)):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            marker = "" if name == "loss" else "o"
            label = {"loss": "training", "eval_loss": "held out"}.get(name)
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=label)
    loss.set(title="loss", xlabel="step")
    loss.legend()
    ndcg.set(title="nDCG@10 on held-out queries", xlabel="step", ylim=(0, 1))
    for axes in (loss, ndcg):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
