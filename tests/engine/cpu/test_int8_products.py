"""Products with weights of 8 bits: exact integers on every processor, and scores close to float32.

Each test of a kernel runs with every kernel of this machine.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rerank_plugin import Reranker
from rerank_plugin.engine.cpu import int8_products
from rerank_plugin.engine.cpu.int8_products import (
    Instructions,
    Int8Product,
    is_int8_supported,
    quantize_weight,
    usable_instructions,
)
from rerank_plugin.engine.cpu.products import ACTIVATIONS
from rerank_plugin.engine.fused_layers import fuse_layers
from rerank_plugin.errors import OptionError
from rerank_plugin.info.model_info import model_info
from rerank_plugin.model.adapters import ActiveAdapter

from ...factories import build_model, sample_texts
from .. import test_causal_packing

pytestmark = pytest.mark.skipif(not is_int8_supported(), reason="no products of bytes here")

TEXTS = sample_texts()
PAIRS = [(query, text) for query in ("when does it sail", "dogs") for text in TEXTS[:40]]
LARGER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
FUNCTIONS: dict[str | None, Any] = {
    None: lambda x: x,
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
}


@pytest.fixture(params=Instructions, ids=lambda kind: kind.name)
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Instructions = request.param
    if kind not in usable_instructions():
        pytest.skip(f"no {kind.name} here")
    monkeypatch.setattr(int8_products, "usable_instructions", lambda: [kind])


def product(weight: Tensor, bias: Tensor | None = None) -> Int8Product:
    return Int8Product(weight, bias, active=ActiveAdapter(), additions={})


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product of quantised numbers, float64 `[rows, out]`."""
    quantized, scale = quantize_weight(weight)
    low = x.float().amin(1, keepdim=True).clamp(max=0)
    high = x.float().amax(1, keepdim=True).clamp(min=0)
    # In float32, whose rounding decides about halves; a number over a tensor would be a reciprocal.
    inverse = torch.full_like(low, 255) / (high - low)
    zero = (-low * inverse).round()
    integers = ((x.float() * inverse).round() + zero).clamp(0, 255) - zero
    out = integers.double() @ quantized.double().T * ((high - low).double() / 255) * scale.double()
    return out if bias is None else out + bias.double()


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 8, 8), (7, 64, 24), (97, 72, 136), (333, 384, 64)], ids=str)
def test_a_product_is_that_of_the_quantised_numbers(
    sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows, inner, columns = sizes
    x = torch.randn(rows, inner).to(dtype)
    weight, bias = torch.randn(columns, inner), torch.randn(columns)
    other = torch.randn(rows, columns).to(dtype)
    rtol, atol = (2**-8, 2e-2) if dtype == torch.bfloat16 else (1e-5, 1e-4)
    close = partial(torch.testing.assert_close, rtol=rtol, atol=atol)
    for own in (bias, None):
        multiply, expected = product(weight, own), exact(x, weight, own)
        for name, function in FUNCTIONS.items():
            out = multiply(x, ACTIVATIONS[name] if name else None)
            assert out.dtype == dtype
            close(out.double(), function(expected))
        added, times = (multiply.combine(x, other, name) for name in ("add", "mul"))
        close(added.double(), expected + other.double())
        close(times.double(), expected * other.double())


def layer_norm(size: int, dtype: torch.dtype, *, bias: bool) -> nn.LayerNorm:
    """Return a norm whose weights are not those of a new one."""
    norm = nn.LayerNorm(size, eps=1e-3, bias=bias).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.normal_()
    return norm.to(dtype)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 8, 8), (7, 24, 72), (203, 136, 40)], ids=str)
def test_a_second_product_and_a_norm_follow(
    sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows, inner, middle = sizes
    x, activation = torch.randn(rows, inner).to(dtype), ACTIVATIONS["gelu"]
    up = product(torch.randn(middle, inner), torch.randn(middle))
    down = product(torch.randn(inner, middle))
    rtol, atol = (2**-7, 2e-2) if dtype == torch.bfloat16 else (1e-5, 1e-5)
    for bias in (True, False):
        norm = layer_norm(inner, dtype, bias=bias)
        out = up.feed_forward(x, activation, down, norm)
        assert out.dtype == dtype
        summed = down(up(x.float(), activation)) + x.float()
        expected = norm.float()(summed)
        torch.testing.assert_close(out.float(), expected, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_follows_a_product(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, other = torch.randn(50, 64).to(dtype), torch.randn(50, 24).to(dtype)
    multiply, norm = product(torch.randn(24, 64)), layer_norm(24, dtype, bias=True)
    out = multiply.add_and_norm(x, other, norm)
    expected = norm.float()(multiply(x.float()) + other.float())
    rtol, atol = (2**-7, 2e-2) if dtype == torch.bfloat16 else (1e-5, 1e-5)
    torch.testing.assert_close(out.float(), expected, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("each_kernel")
def test_the_largest_bytes_do_not_overflow() -> None:
    x, weight = torch.full((6, 64), 3.0), torch.full((16, 64), 2.0)
    torch.testing.assert_close(product(weight)(x), torch.full((6, 16), 384.0))
    torch.testing.assert_close(product(-weight)(-x), torch.full((6, 16), 384.0))
    torch.testing.assert_close(product(weight)(-x), torch.full((6, 16), -384.0))


@pytest.mark.parametrize("threads", [1, 3])
@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 400), seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_other_rows(threads: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, multiply = torch.randn(rows, 40), product(torch.randn(48, 40), torch.randn(48))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = multiply(x)
    finally:
        torch.set_num_threads(before)
    row = seed % rows
    assert together[row].equal(multiply(x[row : row + 1])[0])


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_is_not_hidden(number: float) -> None:
    x = torch.randn(3, 64)
    x[1, 5] = number
    out = product(torch.randn(16, 64))(x)
    assert out.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.usefixtures("each_kernel")
def test_rows_of_zeros_and_rows_that_lie_apart() -> None:
    weight, bias = torch.randn(16, 32), torch.randn(16)
    assert product(weight, bias)(torch.zeros(2, 32)).equal(bias.expand(2, 16))
    x = torch.randn(5, 96)
    multiply = product(weight, bias)
    assert multiply(x[:, 32:64]).equal(multiply(x[:, 32:64].contiguous()))


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "electra"])
def test_scores_are_close_to_those_of_float32(family: str, tmp_path: Path) -> None:
    model = build_model(tmp_path / family, family, **LARGER)
    expected = Reranker(model, dtype="float32", device="cpu").logits(PAIRS)
    reranker = Reranker(model, dtype="int8", device="cpu")
    assert reranker.dtype == torch.int8
    logits = reranker.logits(PAIRS)
    assert np.corrcoef(logits, expected)[0, 1] > 0.98
    alone = np.concatenate([reranker.logits([pair]) for pair in PAIRS[:10]])
    np.testing.assert_allclose(alone, logits[:10], atol=2e-2)


@pytest.mark.parametrize("name", test_causal_packing.CONFIGS)
def test_logits_of_causal_models_are_close_to_those_of_float32(name: str) -> None:
    model, stock = (
        test_causal_packing.build_packed(test_causal_packing.CONFIGS[name]) for _ in range(2)
    )
    assert fuse_layers(model, ActiveAdapter(), int8=True)
    pairs = test_causal_packing.make_pairs([(20, [30, 1, 17]), *((3, [20]) for _ in range(30))])
    logits, expected = (test_causal_packing.packed_logits(each, pairs) for each in (model, stock))
    assert np.corrcoef(logits.detach(), expected.detach())[0, 1] > 0.98


def test_a_model_without_fused_layers_is_refused(tmp_path: Path) -> None:
    model = build_model(tmp_path / "albert", "albert")
    with pytest.raises(OptionError, match="dtype: int8 is not supported for this albert model"):
        Reranker(model, dtype="int8", device="cpu")
    with pytest.raises(OptionError, match="int8 is not supported for this albert model"):
        model_info(model, dtype="int8", device="cpu")


def test_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    model = build_model(tmp_path / "bert", "bert", intermediate_size=36)
    with pytest.raises(OptionError, match="multiples of 8, not 36×"):
        Reranker(model, dtype="int8", device="cpu")


def test_info_describes_a_model_of_int8(tiny_model: Path) -> None:
    assert model_info(tiny_model, dtype="int8", device="cpu").dtype == "int8"
