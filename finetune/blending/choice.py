"""Choose how much of a fine-tuned model is kept in a blend with its base."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..evaluation.metrics import METRIC
from ..evaluation.scoring import Evaluation
from ..evaluation.significance import EQUAL, improvement_probability

#: The shares of the fine-tuned weights that are tried, in this order.
ALPHAS = (1.0, 0.8, 0.6, 0.4, 0.2)

#: What a blend may lose in nDCG@10 on the validation queries.
LOSS = 0.003

#: The share of what the fine-tuned model has lost on the general queries that a blend is to keep.
#: Keeping all of it can take so much of the base that the test queries lose, while the validation
#: queries are too few to show it: see docs/benchmarks.md.
KEPT_SHARE = 0.5

#: Without general queries, a blend must win on this share of bootstrap samples: the best of several
#: is in part the luckiest, and a lower share of the fine-tuned weights has adapted less.
EVIDENCE = 0.9

#: A blend is worse beyond chance if the best one wins on this share of bootstrap samples.
SURE = 0.95


@dataclass(frozen=True)
class Trial:
    """A blend, and its evaluations."""

    #: The share of the fine-tuned weights.
    alpha: float
    validation: Evaluation
    #: That of the general queries, if there are any.
    general: Evaluation | None = None

    @property
    def ndcg(self) -> float:
        """Return the mean nDCG@10 of the validation queries."""
        return self.validation.means[METRIC]

    @property
    def general_ndcg(self) -> float:
        """Return the mean nDCG@10 of the general queries; 0 without any."""
        return self.general.means[METRIC] if self.general else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """Return what `metrics.json` has of the trial."""
        figures = {"alpha": self.alpha, "validation": self.ndcg}
        return figures | ({"general": self.general_ndcg} if self.general else {})

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as JSON values."""
        general = self.general and self.general.to_dict()
        return {"alpha": self.alpha, "validation": self.validation.to_dict(), "general": general}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """Return the trial that `to_dict` described."""
        general = record["general"] and Evaluation.from_dict(record["general"])
        return cls(record["alpha"], Evaluation.from_dict(record["validation"]), general)


@dataclass(frozen=True)
class Choice:
    """The blend that was chosen, and all that were tried."""

    chosen: Trial
    tried: Sequence[Trial]

    @property
    def record(self) -> dict[str, Any]:
        """Return what `metrics.json` and `rerank.json` have of the choice."""
        return {
            "alpha": self.chosen.alpha,
            "queries": self.chosen.validation.means["queries"],
            "tried": [trial.figures for trial in self.tried],
        }


def choose_blend(
    evaluate: Callable[[float], Trial],
    beats_the_base: Callable[[Evaluation], bool],
    general_before: Evaluation | None = None,
) -> Choice:
    """Lower the share of the fine-tuned weights as long as nothing is lost, and choose one.

    Permitted are shares that lose at most `LOSS` to the best one on the validation queries, and
    nothing beyond chance. With general queries the highest share is chosen that keeps `KEPT_SHARE`
    of what the fine-tuned model has lost on them, or the one with the highest nDCG@10 on them if
    none keeps as much. Without, it is the fine-tuned model alone, unless a blend beats it beyond
    chance on the validation queries.

    Args:
        evaluate: Evaluates the blend with a share of the fine-tuned weights.
        beats_the_base: Whether an evaluation is above that of the base beyond chance.
        general_before: The evaluation of the base on the general queries, if there are any.
    """
    alone = evaluate(ALPHAS[0])
    lost = general_before.means[METRIC] - alone.general_ndcg if general_before else 0.0
    enough = alone.general_ndcg + KEPT_SHARE * lost - EQUAL
    tried = [alone]
    if general_before and lost <= EQUAL:
        return Choice(alone, tried)
    for alpha in ALPHAS[1:]:
        tried.append(evaluate(alpha))
        if tried[-1] not in permitted(tried, beats_the_base):
            break
        if general_before and tried[-1].general_ndcg >= enough:
            return Choice(tried[-1], tried)
    allowed = permitted(tried, beats_the_base)
    if general_before:
        highest = max(trial.general_ndcg for trial in allowed)
        chosen = next(trial for trial in allowed if trial.general_ndcg >= highest - EQUAL)
    else:
        best = max(allowed, key=lambda trial: trial.ndcg)
        chosen = best if win_probability(alone, best) >= EVIDENCE else alone
    return Choice(chosen, tried)


def permitted(tried: Sequence[Trial], beats_the_base: Callable[[Evaluation], bool]) -> list[Trial]:
    """Return the trials that lose nothing that counts; the model without a blend is one of them."""
    best = max(tried, key=lambda trial: trial.ndcg)
    return [
        trial
        for trial in tried
        if trial is tried[0]
        or (
            trial.ndcg >= best.ndcg - LOSS - EQUAL
            and beats_the_base(trial.validation)
            and win_probability(trial, best) < SURE
        )
    ]


def win_probability(first: Trial, second: Trial) -> float:
    """Return the share of bootstrap samples of validation queries on which the second is better."""
    return improvement_probability(
        first.validation.values[METRIC], second.validation.values[METRIC]
    )
