"""Sections of a report besides the comparison: refit, fusion, blend, general queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_plugin.model.settings import RerankSettings

from ..blending.describe import describe_blend, describe_general, describe_refit
from ..evaluation.fusion_fit import describe_fusion
from .verdict import metric_title

#: The rankings of a fusion, as `rerank.json` calls them.
RANKINGS = ("retriever", "reranker", "fused")


@dataclass(frozen=True)
class Section:
    """A title, a text and a table of figures."""

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def run_sections(settings: RerankSettings) -> list[Section]:
    """Return the sections of a training run, from its `rerank.json`."""
    sections = []
    if "refit" in settings.metrics:
        text = describe_refit(settings.metrics["refit"])
        sections.append(Section("Trained once more on all groups", text))
    if "fused" in settings.fusion:
        sections.append(fusion_section(settings.fusion, describe_fusion(settings.fusion)))
    if "blend" in settings.metrics:
        sections.append(blend_section(settings.metrics["blend"]))
    if "general" in settings.metrics:
        sections.append(general_section(settings.metrics["general"]))
    return sections


def fusion_section(figures: Mapping[str, Any], text: str) -> Section:
    """Return the figures of a retriever, of a reranker and of their fusion.

    Args:
        figures: Those of `FusionFigures`.
        text: What is said about them.
    """
    names = [name for name in figures["fused"] if name != "queries"]
    rows = [[name, *(f"{figures[name][metric]:.4f}" for metric in names)] for name in RANKINGS]
    for name, difference in figures["differences"].items():
        rows.append([f"fused − {name}", *(change(difference, metric) for metric in names)])
    return Section("With the retriever", text, ["ranking", *map(metric_title, names)], rows)


def blend_section(record: Mapping[str, Any]) -> Section:
    """Return the blends with the base that were tried."""
    tried = record["tried"]
    names = [name for name in ("validation", "general") if name in tried[0]]
    rows = [[f"{trial['alpha']:.0%}", *(f"{trial[name]:.4f}" for name in names)] for trial in tried]
    columns = ["fine-tuned weights", *(f"nDCG@10, {name} queries" for name in names)]
    return Section("Blend with the base model", describe_blend(record), columns, rows)


def general_section(record: Mapping[str, Any]) -> Section:
    """Return what the model has forgotten, on the general queries."""
    before, after, difference = record["before"], record["after"], record["difference"]
    rows = [
        [
            metric_title(name),
            f"{before[name]:.4f}",
            f"{after[name]:.4f}",
            change(difference, name),
        ]
        for name in after
        if name != "queries"
    ]
    columns = ["metric", "base model", "this model", "difference (95% interval)"]
    return Section("What was forgotten", describe_general(record), columns, rows)


def change(difference: Mapping[str, Any], metric: str) -> str:
    """Return a paired difference with its interval."""
    low, high = difference["interval_95"][metric]
    return f"{difference[metric]:+.4f} ({low:+.4f} to {high:+.4f})"
