"""`report.html`: two models on the same queries, in one self-contained file."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from matplotlib.figure import Figure

from rerank_plugin.engine.scores import normalize, sigmoid
from rerank_plugin.io.atomic import write_text
from rerank_plugin.io.paths import real_path
from rerank_plugin.model.settings import RerankSettings

from ..evaluation.calibration import (
    Calibration,
    Floats,
    PlattScaling,
    calibration_error,
    cross_fitted,
    describe_calibration,
)
from ..evaluation.compared_queries import gains
from ..evaluation.comparison import SHOWN_QUERIES, Comparison
from . import plots
from .sections import Section
from .verdict import metric_rows, metric_title, tiles, verdict

PACKAGES = ("rerank-plugin", "torch", "transformers", "peft")

#: Title and explanation of every plot, in the order in which they are shown.
PLOTS = {
    "differences": (
        "Query by query",
        "The change of every query, largest gain first. Blue above the line: better; orange below "
        "it: worse.",
    ),
    "scores": (
        "Scores of documents",
        "The less relevant and other documents overlap, the better a score threshold works.",
    ),
    "reliability": (
        "Reliability of scores",
        "On the dotted line, of all documents with a score of 0.8, 80% are relevant. Larger points "
        "have more documents; points of fewer than 10 are left out.",
    ),
    "training_curves": (
        "Training",
        "Training loss is measured on sampled groups, validation loss on whole ones: their values "
        "cannot be compared with each other.",
    ),
}


@dataclass(frozen=True)
class ComparisonReport:
    """A page about two models on the same queries."""

    title: str
    #: What the page calls the first and the second model.
    names: tuple[str, str]
    comparison: Comparison
    #: Whether the first's scores are a retriever's, on a scale of their own.
    retrieved_first: bool = False
    #: How logits become the scores that are shown.
    normalize: str = "sigmoid"
    #: The calibration of the second model that was fitted on these queries, if there is one.
    calibration: Calibration | None = None
    #: `scale` and `bias` of the second model that were fitted on other queries, if it has them.
    carried: Mapping[str, float] | None = None
    #: The entries of `history.jsonl`.
    history: Sequence[Mapping[str, float]] = ()
    #: The step of the run whose model was kept.
    kept_step: int | None = None
    #: Tables of facts, by their titles.
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: What is said besides, below the metrics.
    sections: Sequence[Section] = ()

    def write(self, folder: Path) -> Path:
        """Write `report.html`, and its plots as PNG files beside it; returns the page's path."""
        folder = real_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        figures = self.figures()
        for name, figure in figures.items():
            (folder / f"{name}.png").write_bytes(plots.png(figure))
        page = folder / "report.html"
        write_text(page, self.html(figures))
        return page

    def html(self, figures: Mapping[str, Figure]) -> str:
        """Return the page."""
        shown = [
            {"title": title, "text": text, "svg": plots.svg(figures[name], name, title)}
            for name, (title, text) in PLOTS.items()
            if name in figures
        ]
        return page_template().render(
            title=self.title,
            subtitle=self.subtitle,
            names=self.names,
            palette=plots.PALETTE,
            verdict=verdict(self.comparison, self.names, self.kept_step),
            tiles=tiles(self.comparison),
            metrics=metric_rows(self.comparison),
            queries_count=self.comparison.queries,
            sections=self.sections,
            plots=shown,
            calibration=self.calibration_text,
            thresholds=self.thresholds,
            improved=self.comparison.improved_queries[:SHOWN_QUERIES],
            hurt=self.comparison.hurt_queries[:SHOWN_QUERIES],
            scales=(self.first_scale, self.scale),
            tables={**self.facts, "Environment": environment_facts()},
            version=version("rerank-plugin"),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def figures(self) -> dict[str, Figure]:
        """Return all plots by name."""
        pairs = dict(zip(self.names, self.comparison.pairs, strict=True))
        if self.retrieved_first:
            del pairs[self.names[0]]
        relevant = self.comparison.pairs[1].relevant
        scores = {name: self.scale(model.logits) for name, model in pairs.items()}
        curves = {f"{name}, sigmoid": sigmoid(model.logits) for name, model in pairs.items()}
        if self.calibrated is not None:
            curves[f"{self.names[1]}, calibrated"] = self.calibrated
        colours = ("first", "blue", "orange")[self.retrieved_first :][: len(curves)]
        delta = gains(self.comparison.evaluations, self.comparison.metric)
        figures = {
            "differences": plots.plot_differences(delta, metric_title(self.comparison.metric)),
            "scores": plots.plot_scores(scores, relevant),
            "reliability": plots.plot_reliability(curves, relevant, colours),
        }
        if training := plots.training_curves(self.history, self.comparison.metric):
            figures["training_curves"] = plots.plot_training(training, self.kept_step)
        return figures

    @property
    def subtitle(self) -> str:
        """The line below the title: the number of queries and of their candidates."""
        queries = self.comparison.queries
        candidates = len(self.comparison.pairs[1].logits) / queries
        return f"{queries} queries with {candidates:.3g} candidates each on average"

    @cached_property
    def calibrated(self) -> Floats | None:
        """The second model's calibrated scores, fitted on other queries than each; None without."""
        if self.carried:
            scaling = PlattScaling(self.carried["scale"], self.carried["bias"])
            return scaling.probabilities(self.comparison.pairs[1].logits)
        return cross_fitted(self.comparison.pairs[1]) if self.calibration else None

    @property
    def calibration_text(self) -> str:
        """A sentence about calibrated scores and their error; empty without a calibration."""
        if self.carried:
            assert self.calibrated is not None
            pairs = self.comparison.pairs[1]
            plain, calibrated = (
                calibration_error(scores, pairs.relevant)
                for scores in (sigmoid(pairs.logits), self.calibrated)
            )
            return (
                f"The calibration that {self.names[1]} carries has an expected calibration error "
                f"of {calibrated:.4f} on these queries; the plain sigmoid has {plain:.4f}."
            )
        return describe_calibration(self.calibration.to_dict()) if self.calibration else ""

    @property
    def thresholds(self) -> dict[str, float]:
        """Scores by the names of the thresholds that were fitted on these queries."""
        if self.carried or self.calibration is None:
            return {}
        thresholds: dict[str, float] = self.calibration.settings(folded=False)["thresholds"]
        return thresholds

    def scale(self, logits: Any) -> Any:
        """Return logits as the scores that are shown."""
        return normalize(np.asarray(logits, np.float32), self.normalize, RerankSettings())

    def first_scale(self, logits: Any) -> Any:
        """Return the first model's logits, or a retriever's scores, as the scores shown."""
        return np.asarray(logits) if self.retrieved_first else self.scale(logits)


def page_template() -> jinja2.Template:
    """Return the template of the page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["fact"] = shown_fact
    text = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(text)


def shown_fact(value: Any) -> Any:
    """Return an option's value as a reader of another machine may see it: no absolute path."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown_fact(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(shown_fact(inner)) for inner in value)
    if isinstance(value, str | Path) and Path(value).is_absolute():
        return Path(value).name
    return value


def environment_facts() -> dict[str, str]:
    """Return the versions and the machine that the report was made with."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    versions = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "machine": machine, **versions}
