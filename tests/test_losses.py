import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.finetune.losses import SoftmaxCrossEntropy

SIZES = st.lists(st.integers(2, 6), min_size=1, max_size=4)


def ragged(sizes: list[int], positives: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    logits = torch.randn(sum(sizes), generator=generator, dtype=torch.float64) * 3
    labels = [torch.arange(size) < min(positives, size - 1) for size in sizes]
    return logits.requires_grad_(), torch.cat(labels).double()


@given(SIZES)
def test_with_one_right_passage_it_is_cross_entropy(sizes: list[int]) -> None:
    logits, labels = ragged(sizes)
    groups = torch.split(logits, sizes)
    losses = [torch.nn.functional.cross_entropy(group[None], torch.tensor([0])) for group in groups]
    expected = torch.stack(losses).sum()
    torch.testing.assert_close(SoftmaxCrossEntropy()(logits, labels, sizes), expected)


@given(SIZES, st.integers(1, 3))
def test_right_passages_do_not_compete(sizes: list[int], positives: int) -> None:
    logits, labels = ragged(sizes, positives)
    expected = torch.zeros((), dtype=torch.float64)
    for group, right in zip(torch.split(logits, sizes), torch.split(labels, sizes), strict=True):
        terms = [
            -torch.log_softmax(torch.cat([p[None], group[right == 0]]), 0)[0]
            for p in group[right == 1]
        ]
        expected = expected + torch.stack(terms).mean()
    torch.testing.assert_close(SoftmaxCrossEntropy()(logits, labels, sizes), expected)


def test_gradients_agree_with_finite_differences() -> None:
    logits, labels = ragged([4, 2, 5], positives=2)
    assert torch.autograd.gradcheck(lambda x: SoftmaxCrossEntropy()(x, labels, [4, 2, 5]), logits)


def test_large_logits_and_one_sided_groups() -> None:
    logits = torch.tensor([1e4, -1e4, -1e4, 1e4, 3.0], requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    loss = SoftmaxCrossEntropy()(logits, labels, [2, 2, 1])
    torch.testing.assert_close(loss, torch.tensor(2e4))
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert SoftmaxCrossEntropy()(logits, torch.ones(5), [5]) == 0
