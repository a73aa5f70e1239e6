"""The weights of a folder, and what a model has forgotten, in plain words."""

from collections.abc import Mapping
from typing import Any

from ..evaluation.metrics import METRIC


def describe_blend(record: Mapping[str, Any]) -> str:
    """Describe the weights of a folder, from the `blend` of `metrics.json`."""
    alpha, tried = record["alpha"], {trial["alpha"]: trial for trial in record["tried"]}
    if alpha == 1:
        reason = (
            "none of the blends with the base model's weights that were tried was preferred on the "
            "validation queries"
            if len(tried) > 1
            else "nothing was lost that a blend with the base model's weights could keep"
        )
        return f"The folder has the fine-tuned weights alone: {reason}."
    text = (
        f"The folder has {alpha:.0%} of the fine-tuned model's weights and {1 - alpha:.0%} of the "
        f"base model's. {METRIC} on {record['queries']} validation queries is "
        f"{tried[alpha]['validation']:.3f}"
    )
    if 1.0 not in tried:
        return f"{text}."
    text += f", and {tried[1.0]['validation']:.3f} with the fine-tuned weights alone"
    if "general" not in tried[alpha]:
        return f"{text}."
    return (
        f"{text}; on the general queries it is {tried[alpha]['general']:.3f} instead of "
        f"{tried[1.0]['general']:.3f}."
    )


def describe_refit(record: Mapping[str, Any]) -> str:
    """Describe a second run on all groups, from the `refit` of `metrics.json`."""
    groups, held_out = record["groups"], record["held_out"]
    if not record["kept"]:
        return (
            f"A second run on all {groups} groups diverged or ended with worse weights, so those "
            "of the first run are kept."
        )
    return (
        f"The weights are those of a second run of {record['steps']} steps on all {groups} groups, "
        f"{held_out} more than in the first run, which held them out. All figures are those of the "
        "first run. They do not measure the second one, which was trained on the held-out groups, "
        "too."
    )


def describe_general(record: Mapping[str, Any]) -> str:
    """Describe what was forgotten, from the `general` of `metrics.json`."""
    before, after = record["before"], record["after"]
    low, high = record["difference"]["interval_95"][METRIC]
    if high < 0:
        result = "the model has become worse on them"
    elif low > 0:
        result = "the model has become better on them"
    else:
        result = "no loss beyond chance"
    return (
        f"On {after['queries']} general queries {METRIC} is {before[METRIC]:.3f} with the base "
        f"model and {after[METRIC]:.3f} with this one ({record['difference'][METRIC]:+.3f}, 95% "
        f"interval {low:+.3f} to {high:+.3f}): {result}."
    )
