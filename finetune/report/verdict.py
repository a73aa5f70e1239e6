"""The result of a comparison as a sentence, as large figures and as the rows of a table."""

from typing import Any, NamedTuple

from ..evaluation.comparison import Comparison
from ..evaluation.metrics import parse_metric

#: A difference with a p-value of at least this may be chance.
LEVEL = 0.05

TITLES = {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP"}


class Verdict(NamedTuple):
    """The result in a sentence."""

    #: `better`, `worse`, or nothing.
    kind: str
    headline: str
    details: str


class Tile(NamedTuple):
    """A figure that is shown large."""

    name: str
    value: str
    note: str


def verdict(
    comparison: Comparison, names: tuple[str, str], kept_step: int | None = None
) -> Verdict:
    """Return which model ranks better, in a sentence.

    Args:
        comparison: The models on the same queries.
        names: What the sentence calls them.
        kept_step: The step of a run whose model is the second one; at 0 that is the first one.
    """
    first, second = names
    metric, difference = comparison.metric, comparison.difference
    before, after = (evaluation.means[metric] for evaluation in comparison.evaluations)
    low, high = difference["interval_95"][metric]
    p_value = difference["p_value"][metric]
    # The interval of a few queries is too narrow: the test must agree.
    certain = p_value < LEVEL
    kind = "better" if certain and low > 0 else "worse" if certain and high < 0 else ""
    headline = f"No significant difference between {first} and {second}:"
    if kept_step == 0:
        headline = f"No checkpoint ranked better than {first}, so {second} contains the base:"
    elif kind:
        headline = f"{second} ranks {kind} than {first}:"
    chance = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    details = (
        f"{metric_title(metric)} {before:.3f} → {after:.3f} on {comparison.queries} queries, "
        f"{difference[metric]:+.3f} (95% interval {low:+.3f} to {high:+.3f}, {chance})."
    )
    return Verdict(kind, headline, details)


def tiles(comparison: Comparison) -> list[Tile]:
    """Return the figures that are shown large."""
    metric, queries = comparison.metric, comparison.queries
    before, after = (evaluation.means for evaluation in comparison.evaluations)
    better, worse = (comparison.difference[name][metric] for name in ("better", "worse"))
    change = f"{before[metric]:.3f} → {after[metric]:.3f}"
    shown = [Tile(metric_title(metric), change, f"mean over {queries} queries; 1 is perfect")]
    if "hit@1" in after:
        change = f"{before['hit@1']:.0%} → {after['hit@1']:.0%}"
        shown.append(Tile("Relevant document on top", change, "of the queries"))
    unchanged = f"{queries - better - worse} unchanged"
    return [*shown, Tile("Queries better / worse", f"{better} / {worse}", unchanged)]


def metric_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of the table of metrics."""
    before, after = (evaluation.means for evaluation in comparison.evaluations)
    difference = comparison.difference
    return [
        {
            "name": metric_title(name),
            "description": parse_metric(name).SHORT_DESC,
            "before": before[name],
            "after": after[name],
            "difference": difference[name],
            "interval": difference["interval_95"][name],
            "p_value": difference["p_value"][name],
            "better": difference["better"][name],
            "worse": difference["worse"][name],
        }
        for name in after
        if name != "queries"
    ]


def metric_title(metric: str) -> str:
    """Return the name of a metric as the literature spells it."""
    kind, at, cut_off = metric.partition("@")
    return f"{TITLES.get(kind, kind)}{at}{cut_off}"
