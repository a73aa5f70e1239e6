"""`report.html`: what two models make of the same queries, in one file that needs no network."""

import base64
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from rerank_plugin.engine.scores import normalize, sigmoid
from rerank_plugin.io.atomic import real_path, write_text
from rerank_plugin.model.settings import RerankSettings

from ..evaluation.calibration import (
    Calibration,
    Numbers,
    PlattScaling,
    ScoredPairs,
    calibration_error,
    cross_fitted,
    describe_calibration,
)
from ..evaluation.judged_query import JudgedQueries
from ..evaluation.metrics import METRICS
from ..evaluation.scoring import Evaluation
from . import plots
from .side_by_side import (
    METRIC,
    SideBySide,
    first_relevant,
    gains,
    most_hurt,
    most_improved,
    shortened,
    side_by_side,
)

#: Queries whose rankings are shown, of the most improved ones and of the most hurt ones each.
SHOWN = 10

#: The permutation test's p from which on a difference may be chance.
LEVEL = 0.05

PACKAGES = ("rerank-plugin", "torch", "transformers", "peft")

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --good: #1a7f4b; --bad: #b3402e }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h4 { overflow-wrap: anywhere }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
.verdict { font-size: 1.15rem; padding: .8rem 1rem; background: var(--soft);
           border-left: 4px solid var(--line) }
.verdict.better { border-color: var(--good) } .verdict.worse { border-color: var(--bad) }
.wide { overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
         vertical-align: top; font-variant-numeric: tabular-nums; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.facts td { text-align: left; white-space: normal }
.facts td + td { overflow-wrap: anywhere }
figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto; background: #fff }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; overflow-wrap: anywhere }
summary { cursor: pointer } ol { padding-left: 1.5rem } li { margin: .4rem 0 }
.relevant { color: var(--good); font-weight: 600 } .not-relevant { color: var(--bad) }
footer { margin: 3rem 0 1rem; opacity: .7; font-size: .85rem }
"""


@dataclass(frozen=True)
class Report:
    """What is told of two models on the same queries."""

    title: str
    #: What the first and the second model are called.
    names: tuple[str, str]
    judged: JudgedQueries
    #: Of each model, with its logits.
    evaluations: tuple[Evaluation, Evaluation]
    #: `paired_difference` of both.
    difference: Mapping[str, Any]
    #: Whether the first's scores are a retriever's, on a scale of their own.
    retrieved_first: bool = False
    #: How logits become the scores that are shown.
    normalize: str = "sigmoid"
    #: What was fitted on these queries for the second model, if anything.
    calibration: Calibration | None = None
    #: What the second model carries, fitted on others: `scale` and `bias`.
    carried: Mapping[str, float] | None = None
    #: Entries of `history.jsonl`.
    history: Sequence[dict[str, float]] = ()
    #: Tables of facts, by their titles.
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `report.html`, and its pictures as files beside it."""
        folder = real_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {name: plots.png(figure) for name, figure in self.pictures().items()}
        for name, contents in pictures.items():
            (folder / f"{name}.png").write_bytes(contents)
        write_text(folder / "report.html", self.html(pictures))

    def pictures(self) -> dict[str, Figure]:
        """All pictures by name."""
        second = self.second
        scored = {self.names[1]: second}
        if not self.retrieved_first:
            scored = {self.names[0]: self.evaluations[0].scored_pairs(self.judged), **scored}
        found = {}
        if self.history:
            found["training_curves"] = plots.curves(self.history)
        found["differences"] = plots.differences(gains(self.evaluations))
        scores = {name: self.scores(own.logits) for name, own in scored.items()}
        found["scores"] = plots.distributions(scores, second.relevant)
        curves = {f"{name}, sigmoid": sigmoid(own.logits) for name, own in scored.items()}
        calibrated = self.calibrated
        if calibrated is not None:
            curves[f"{self.names[1]}, calibrated"] = calibrated
        found["reliability"] = plots.reliability_curves(curves, second.relevant)
        return found

    @cached_property
    def second(self) -> ScoredPairs:
        """The second model's logits of all candidates; reads all that is judged."""
        return self.evaluations[1].scored_pairs(self.judged)

    @cached_property
    def calibrated(self) -> Numbers | None:
        """The second model's calibrated scores of what they were not fitted on, if it has any."""
        if self.carried:
            fit = PlattScaling(self.carried["scale"], self.carried["bias"])
            return fit.probabilities(self.second.logits)
        return cross_fitted(self.second) if self.calibration else None

    def scores(self, logits: Any) -> Any:
        """Logits as the scores that are shown."""
        return normalize(np.asarray(logits, np.float32), self.normalize, RerankSettings())

    def html(self, pictures: Mapping[str, bytes]) -> str:
        """The whole file."""
        improved, hurt = (
            side_by_side(self.judged, self.evaluations, of(self.evaluations, SHOWN))
            for of in (most_improved, most_hurt)
        )
        sections = [
            self.verdict(),
            section("Figures", self.figures()),
            *(
                section(TITLES[name], picture(contents, TITLES[name]), TEXTS[name])
                for name, contents in pictures.items()
            ),
            section("Scores as probabilities", self.meaning()),
            section("Most improved queries", "".join(map(self.query, improved))),
            section("Most hurt queries", "".join(map(self.query, hurt))),
            *(
                section(title.capitalize(), facts_table(facts))
                for title, facts in {**self.facts, "environment": environment()}.items()
            ),
        ]
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{escape(self.title)}</h1>\n" + "\n".join(filter(None, sections)) + "\n"
            f"<footer>rerank-plugin {version('rerank-plugin')}, {made}</footer>\n</body>\n</html>\n"
        )

    def verdict(self) -> str:
        """What came out, in a sentence."""
        before, after = (own.means[METRIC] for own in self.evaluations)
        low, high = self.difference["interval_95"][METRIC]
        # The interval of a few queries is too narrow: the test must find the same.
        chance = self.difference["p_value"][METRIC] >= LEVEL
        kind = "" if chance else "better" if low > 0 else "worse" if high < 0 else ""
        words = {"better": "better beyond chance", "worse": "worse beyond chance"}
        told = words.get(kind, "no difference beyond chance")
        return (
            f'<p class="verdict {kind}">nDCG@10 {before:.4f} → <strong>{after:.4f}</strong> on '
            f"{len(self.judged)} queries: {self.difference[METRIC]:+.4f} "
            f"(95% interval {low:+.4f} to {high:+.4f}), {told}.</p>"
        )

    def figures(self) -> str:
        """Before, after, and their paired difference."""
        before, after = (own.means for own in self.evaluations)
        rows = []
        for name in METRICS:
            low, high = self.difference["interval_95"][name]
            rows.append(
                (
                    name,
                    f"{before[name]:.4f}",
                    f"{after[name]:.4f}",
                    f"{self.difference[name]:+.4f}",
                    f"{low:+.4f} to {high:+.4f}",
                    f"{self.difference['p_value'][name]:.4f}",
                    f"{self.difference['better'][name]}",
                    f"{self.difference['worse'][name]}",
                )
            )
        return table(
            ("", *self.names, "difference", "95% interval", "p", "queries won", "lost"), rows
        )

    def meaning(self) -> str:
        """What calibrated scores and thresholds are."""
        if self.carried:
            return f"<p>{escape(self.carried_meaning())}</p>"
        if self.calibration is None:
            return ""
        found = self.calibration.settings(folded=False)["thresholds"]
        text = f"<p>{escape(describe_calibration(self.calibration.to_dict()))}</p>"
        rows = [(name, f"{score:.4f}") for name, score in found.items()]
        return text + (table(("threshold", "score (sigmoid)"), rows) if rows else "")

    def carried_meaning(self) -> str:
        """What the second model's own calibration is worth on these queries."""
        assert self.calibrated is not None
        plain, own = (
            calibration_error(scores, self.second.relevant)
            for scores in (sigmoid(self.second.logits), self.calibrated)
        )
        return (
            f"The calibration that {self.names[1]} carries has an expected calibration error of "
            f"{own:.4f} here; the plain sigmoid has {plain:.4f}."
        )

    def query(self, own: SideBySide) -> str:
        """A query with the best documents of both models."""
        change = f"{own.before.value:.3f} → {own.after.value:.3f}"
        parts = [f"<details><summary>{escape(shortened(own.judged.query))} ({change})</summary>"]
        models = zip(self.names, self.evaluations, (own.before, own.after), strict=True)
        for number, (name, evaluation, ranked) in enumerate(models):
            assert evaluation.logits is not None
            scores = evaluation.logits[own.place]
            if number or not self.retrieved_first:
                scores = self.scores(scores)
            parts.append(f"<h4>{escape(name)}: {first_relevant(ranked)}</h4><ol>")
            for index in ranked.best:
                kind = "relevant" if own.judged.labels[index] > 0 else "not relevant"
                style = kind.replace(" ", "-")
                parts.append(
                    f'<li><span class="{style}">{kind}, {scores[index]:.4f}</span> '
                    f"{escape(shortened(own.judged.documents[index]))}</li>"
                )
            parts.append("</ol>")
        relevant = "".join(f"<li>{escape(text)}</li>" for text in own.relevant)
        parts.append(f"<h4>relevant documents</h4><ul>{relevant}</ul></details>")
        return "".join(parts)


TITLES = {
    "training_curves": "The run",
    "differences": "Query by query",
    "scores": "Scores of relevant and not relevant documents",
    "reliability": "What a score means",
}

TEXTS = {
    "training_curves": "Loss in training; loss and metrics on the queries that choose the model.",
    "differences": "A bar a query: what its nDCG@10 gains or loses.",
    "scores": "The further apart, the better a threshold works.",
    "reliability": "On the dotted line a score of 0.8 is a relevant document in 80 of 100 cases.",
}


def section(title: str, content: str, text: str = "") -> str:
    """A part of the report; nothing without content."""
    told = f"<p>{escape(text)}</p>" if text else ""
    return f"<h2>{escape(title)}</h2>{told}{content}" if content else ""


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names and values."""
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    return f'<div class="wide"><table class="facts">{rows}</table></div>'


def picture(contents: bytes, title: str) -> str:
    """A picture inside the file."""
    data = base64.b64encode(contents).decode("ascii")
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'


def environment() -> dict[str, str]:
    """What the report was made with."""
    versions = {name: version(name) for name in PACKAGES}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return {"python": platform.python_version(), "machine": machine, **versions}
