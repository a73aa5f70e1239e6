"""Every loss equals its formula, which is written again here for one group of numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_plugin.errors import OptionError
from rerank_plugin.finetune import FinetuneConfig
from rerank_plugin.finetune.losses import LOSSES, make_loss, parse_loss
from rerank_plugin.finetune.losses.base import Loss


@dataclass(frozen=True)
class Passage:
    score: float
    label: float
    teacher: float


Plain = list[Passage]


def sides(group: Plain) -> tuple[Plain, Plain]:
    return [p for p in group if p.label > 0], [p for p in group if p.label <= 0]


def pairs(group: Plain) -> list[tuple[Passage, Passage]]:
    return [(p, n) for p in group for n in group if p.label > n.label]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def softmax(values: list[float]) -> list[float]:
    return [math.exp(v) / sum(math.exp(w) for w in values) for v in values]


def softmax_cross_entropy(group: Plain) -> float:
    positives, _ = sides(group)
    lower = {p: [n.score for n in group if n.label < p.label] for p in positives}
    return mean([-math.log(softmax([p.score, *scores])[0]) for p, scores in lower.items()])


def binary_cross_entropy(group: Plain) -> float:
    positives, negatives = sides(group)
    accepted = [math.log(1 + math.exp(-p.score)) for p in positives]
    rejected = [math.log(1 + math.exp(n.score)) for n in negatives]
    return (mean(accepted) + mean(rejected)) / 2


def ranknet(group: Plain) -> float:
    return mean([math.log(1 + math.exp(n.score - p.score)) for p, n in pairs(group)])


def lambda_loss(group: Plain) -> float:
    def gain(passage: Passage) -> float:
        return (2**passage.label - 1) / best

    def discount(rank: int) -> float:
        return math.log2(1 + rank)

    ordered = sorted(group, key=lambda passage: (-passage.score, passage.label))
    ideal = sorted((passage.label for passage in group), reverse=True)
    best = sum((2**label - 1) / discount(rank) for rank, label in enumerate(ideal, 1))
    loss = 0.0
    for p, n in pairs(group):
        i, j = ordered.index(p) + 1, ordered.index(n) + 1
        rho = abs(1 / discount(i) - 1 / discount(j))
        delta = abs(1 / discount(abs(i - j)) - 1 / discount(abs(i - j) + 1))
        weight = (rho + 10 * delta) * abs(gain(p) - gain(n))
        loss += weight * math.log2(1 + math.exp(n.score - p.score))
    return loss


def listnet(group: Plain) -> float:
    targets, predicted = softmax([p.label for p in group]), softmax([p.score for p in group])
    return -sum(target * math.log(share) for target, share in zip(targets, predicted, strict=True))


def mse(group: Plain) -> float:
    return mean([(p.score - p.teacher) ** 2 for p in group])


def margin_mse(group: Plain) -> float:
    margins = [(p.score - n.score, p.teacher - n.teacher) for p, n in pairs(group)]
    return mean([(student - teacher) ** 2 for student, teacher in margins])


def kl_divergence(group: Plain, temperature: float = 1.0) -> float:
    targets = softmax([p.teacher / temperature for p in group])
    predicted = softmax([p.score / temperature for p in group])
    terms = [t * math.log(t / f) for t, f in zip(targets, predicted, strict=True)]
    return temperature**2 * sum(terms)


PLAIN: dict[str, Callable[[Plain], float]] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "ranknet": ranknet,
    "lambda_loss": lambda_loss,
    "listnet": listnet,
    "mse": mse,
    "margin_mse": margin_mse,
    "kl_divergence": kl_divergence,
}

NUMBERS = st.integers(-400, 400).map(lambda n: n / 100)


@st.composite
def plain_groups(draw: st.DrawFn) -> list[Plain]:
    """Draw groups of 1 to 6 documents with different scores, binary labels or grades."""
    labels = draw(st.sampled_from([[0.0, 1.0], [0.0, 1.0, 2.0, 3.0]]))
    groups = []
    for _ in range(draw(st.integers(1, 4))):
        scores = draw(st.lists(NUMBERS, min_size=1, max_size=6, unique=True))
        groups.append([Passage(s, draw(st.sampled_from(labels)), draw(NUMBERS)) for s in scores])
    return groups


def tensors(groups: list[Plain]) -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    passages = [passage for group in groups for passage in group]
    logits, labels, teacher = (
        torch.tensor([getattr(p, name) for p in passages], dtype=torch.float64)
        for name in ("score", "label", "teacher")
    )
    return logits.requires_grad_(), labels, [len(group) for group in groups], teacher


def check(loss: Loss, plain: Callable[[Plain], float], groups: list[Plain]) -> None:
    logits, labels, sizes, teacher = tensors(groups)
    value = loss(logits, labels, sizes, teacher)
    assert value.shape == ()
    assert value.item() == pytest.approx(sum(map(plain, groups)), rel=1e-9, abs=1e-9)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all()


def test_every_loss_is_tested() -> None:
    assert PLAIN.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", PLAIN)
@given(plain_groups())
def test_a_loss_is_its_formula(name: str, groups: list[Plain]) -> None:
    check(make_loss(name), PLAIN[name], groups)


@given(plain_groups(), st.sampled_from([0.5, 3.0]))
def test_temperature(groups: list[Plain], temperature: float) -> None:
    loss = make_loss("kl_divergence", temperature=temperature)
    check(loss, lambda group: kl_divergence(group, temperature), groups)


@given(plain_groups())
def test_a_sum_of_losses(groups: list[Plain]) -> None:
    loss = make_loss("ranknet + 0.1:kl_divergence", temperature=2)
    assert loss.needs_teacher
    check(loss, lambda group: ranknet(group) + 0.1 * kl_divergence(group, 2), groups)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=25)
@given(plain_groups(), st.permutations(range(4)))
def test_the_order_of_groups_does_not_matter(
    name: str, groups: list[Plain], order: list[int]
) -> None:
    shuffled = [groups[i] for i in order if i < len(groups)]
    losses = [make_loss(name)(*tensors(some)) for some in (groups, shuffled)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", PLAIN)
def test_what_a_loss_learns_from_grades(name: str) -> None:
    scores = torch.tensor([0.5, 1.0, -1.0, 0.0], dtype=torch.float64)
    teacher = torch.tensor([3.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    loss = make_loss(name)
    values = {
        loss(scores, torch.tensor(labels).double(), [4], teacher).item()
        for labels in ([2, 1, 0, 0], [3, 1, 0, 0], [1, 2, 0, 0], [1, 1, 0, 0])
    }
    # Their values, their order, which of them differ, or relevance alone.
    different = {"listnet": 4, "lambda_loss": 4, "margin_mse": 2}
    different |= {"binary_cross_entropy": 1, "mse": 1, "kl_divergence": 1}
    assert len(values) == different.get(name, 3)


@pytest.mark.parametrize("name", [*PLAIN, "listnet+0.1:margin_mse"])
@settings(max_examples=25)
@given(plain_groups())
def test_no_scores_go_below_the_lowest(name: str, groups: list[Plain]) -> None:
    logits, labels, sizes, teacher = tensors(groups)
    loss = make_loss(name)
    lowest = loss.lowest(labels, sizes).item()
    assert loss(logits, labels, sizes, teacher).item() >= lowest - 1e-9
    if name == "listnet":
        assert loss(labels + 3, labels, sizes).item() == pytest.approx(lowest)
        assert lowest > 0 or max(sizes) == 1


@pytest.mark.parametrize("name", [*PLAIN, "listnet+0.1:margin_mse"])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [4, 2, 5, 1]
    logits, teacher = torch.randn(2, sum(sizes), generator=generator, dtype=torch.float64) * 2
    labels = torch.cat([(torch.arange(size) < min(2, size - 1)).double() for size in sizes])
    loss = make_loss(name)
    assert torch.autograd.gradcheck(
        lambda values: loss(values, labels, sizes, teacher), logits.requires_grad_()
    )


@pytest.mark.parametrize("name", PLAIN)
def test_large_logits_and_one_sided_groups_in_float32(name: str) -> None:
    logits = torch.tensor([1e4, -1e4, -1e4, 1e4, 3.0, 2.0], requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    loss = make_loss(name)(logits, labels, [2, 2, 1, 1], torch.zeros(6))
    assert torch.isfinite(loss)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    if name in ("softmax_cross_entropy", "ranknet"):
        torch.testing.assert_close(loss, torch.tensor(2e4))
    # Without negatives or positives nothing is compared, except by pointwise losses.
    assert (gradient[4:] == 0).all() == (name not in ("binary_cross_entropy", "mse"))


def test_ties_count_against_the_positive() -> None:
    labels, sizes = torch.tensor([1.0, 0.0, 0.0]), [3]
    tied, below, above = (
        make_loss("lambda_loss")(torch.tensor([score, 0.0, 0.0]), labels, sizes)
        for score in (0.0, -1e-6, 1e-6)
    )
    torch.testing.assert_close(tied, below)
    assert abs(tied - above) > 0.1


def test_the_former_name_of_a_loss() -> None:
    assert parse_loss("lambda_rank") == parse_loss("lambda_loss")


def test_spelling() -> None:
    terms = parse_loss(" softmax_cross_entropy +0.1: ranknet")
    assert [(term.name, term.weight) for term in terms] == [
        ("softmax_cross_entropy", 1.0),
        ("ranknet", 0.1),
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"loss": "listnett"},
            "): did you mean listnet?",
        ),
        ({"loss": ""}, "--loss: invalid choice: '' (choose from softmax_cross_entropy, "),
        ({"loss": "ranknet+"}, "--loss: invalid choice: ''"),
        ({"loss": "x:ranknet"}, "--loss: invalid weight of ranknet: 'x'"),
        ({"loss": "-1:ranknet"}, "--loss: invalid weight of ranknet: '-1'"),
        ({"loss": "nan:ranknet"}, "--loss: invalid weight of ranknet: 'nan'"),
        ({"loss": "ranknet+2:ranknet"}, "contains ranknet twice"),
        ({"temperature": 2.0}, "--temperature: requires --loss kl_divergence"),
        (
            {"loss": "kl_divergence", "temperature": 0.0},
            "--temperature: must be more than 0, not 0.0",
        ),
        ({"teacher_margin": math.inf}, "--teacher_margin: must be a finite number, not inf"),
    ],
)
def test_misuse_names_the_option(options: dict[str, object], expected: str) -> None:
    with pytest.raises(OptionError) as error:
        FinetuneConfig(
            model_name_or_path="m",
            data_path="d.jsonl",
            finetune_model_dir="out",
            **options,  # type: ignore[arg-type]
        )
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
