"""The compiled attention is attention, for each set of instructions that this machine has."""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rerank_plugin.engine.attention import attend
from rerank_plugin.engine.boundaries import Boundaries, Keys
from rerank_plugin.engine.cpu import compiled
from rerank_plugin.engine.cpu.attention import HEAD_SIZES, VARIANTS, kernels, variant
from rerank_plugin.engine.cpu.instructions import can_run
from rerank_plugin.engine.cpu.rows import RowsWork

DTYPES = {each: dtype for dtype, variants in VARIANTS.items() for each in variants}


@pytest.fixture(params=DTYPES, ids=lambda each: each.forward)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """The precision of kernels, which are used for it."""
    chosen = DTYPES[request.param]
    if not can_run(request.param.instructions) or kernels(chosen) is None:
        pytest.skip("not compiled, or not for this machine")
    monkeypatch.setitem(VARIANTS, chosen, (request.param,))
    variant.cache_clear()
    kernels.cache_clear()
    assert variant(chosen) == request.param
    yield chosen
    variant.cache_clear()
    kernels.cache_clear()


def make_boundaries(segments: list[tuple[int, int]]) -> Boundaries:
    """Return segments of so many queries, the last ones of so many keys."""
    queries, keys = zip(*segments, strict=True)
    return replace(Boundaries.from_lengths(queries), keys=Keys.from_lengths(keys))


def plain_attention(
    boundaries: Boundaries, rows: list[Tensor], *, scale: float, window: int, causal: bool
) -> Tensor:
    """Attention written out, segment by segment."""
    query, key, value = rows
    segments = boundaries.keys or boundaries
    key, value = (
        row[: segments.tokens].repeat_interleave(query.shape[1] // key.shape[1], 1)
        for row in (key, value)
    )
    outputs = []
    for q, k, v in zip(
        query[: boundaries.tokens].split(boundaries.lengths),
        key.split(segments.lengths),
        value.split(segments.lengths),
        strict=True,
    ):
        distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
        unseen = (distance < 0) & causal
        if window:
            unseen |= distance.abs() >= window
        scores = torch.einsum("ihd,jhd->hij", q, k) * scale
        weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, v))
    return torch.cat(outputs)


def assert_is_attention(
    boundaries: Boundaries, rows: list[Tensor], *, window: int = 0, causal: bool = False
) -> None:
    """Compare output and gradients with attention written out in float64."""
    rows = [row.detach().requires_grad_() for row in rows]
    options: dict[str, Any] = {"scale": rows[0].shape[-1] ** -0.5, "causal": causal}
    out = attend(boundaries, *rows, window=window, **options)
    weight = torch.randn(out.shape).to(out.dtype)
    torch.autograd.backward(out, weight)
    with torch.no_grad():
        assert torch.equal(attend(boundaries, *rows, window=window, **options), out)
    assert not out[boundaries.tokens :].any()
    exact = [row.detach().double().requires_grad_() for row in rows]
    expected = plain_attention(boundaries, exact, window=window, **options)
    torch.autograd.backward(expected, weight[: boundaries.tokens].double())
    whole = out.dtype == torch.float32
    bound = 3e-6 if whole else 2e-2
    torch.testing.assert_close(out[: boundaries.tokens].double(), expected, atol=bound, rtol=bound)
    gradients = [(row.grad, reference.grad) for row, reference in zip(rows, exact, strict=True)]
    largest = max(float(wanted.norm()) for _, wanted in gradients if wanted is not None)
    for gradient, wanted in gradients:
        assert gradient is not None and wanted is not None
        assert (gradient - wanted).norm() <= (2e-6 if whole else 8e-3) * largest


#: Around the sizes of tiles and blocks.
LENGTHS = [1, 2, 11, 12, 13, 31, 32, 33, 95, 96, 97, 255, 256, 257]


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("window", [0, 5, 65])
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
def test_it_is_attention(dtype: torch.dtype, size: int, window: int, causal: bool) -> None:
    if size not in HEAD_SIZES[dtype]:
        pytest.skip("not compiled for this size")
    torch.manual_seed(0)
    qkv = torch.randn(sum(LENGTHS) + 7, 3, 3, size).to(dtype)
    boundaries = Boundaries.from_lengths(LENGTHS)
    assert_is_attention(boundaries, list(qkv.unbind(1)), window=window, causal=causal)


segments = st.integers(1, 140).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 200)))


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.lists(
        st.one_of(segments, st.tuples(st.just(1), st.integers(1, 200))), min_size=1, max_size=6
    ),
    st.sampled_from([(3, 3), (6, 2), (4, 1)]),
    st.sampled_from([0, 1, 2, 5, 65]),
    st.booleans(),
    st.sampled_from([32, 64, 128]),
    st.integers(0, 99),
)
def test_random_segments(
    dtype: torch.dtype,
    segments: list[tuple[int, int]],
    heads: tuple[int, int],
    window: int,
    causal: bool,
    size: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    boundaries = make_boundaries(segments)
    assert boundaries.keys is not None
    query = torch.randn(boundaries.tokens + 3, heads[0], size).to(dtype)
    key, value = torch.randn(2, boundaries.keys.tokens + 2, heads[1], size).to(dtype)
    assert_is_attention(boundaries, [query, key, value], window=window, causal=causal)


def test_a_long_segment(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    boundaries = make_boundaries([(1, 8192), (7, 8192)])
    query, keys = torch.randn(8, 2, 32).to(dtype), torch.randn(2, 2 * 8192, 1, 32).to(dtype)
    assert_is_attention(boundaries, [query, *keys])


def test_any_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 32, 4, 50).to(dtype).transpose(1, 3).unbind(0)
    assert rows[0].stride(-1) != 1
    boundaries = Boundaries.from_lengths([20, 30])
    assert_is_attention(boundaries, list(rows))
    assert_is_attention(
        boundaries, [row.transpose(0, 1).contiguous().transpose(0, 1) for row in rows]
    )


def test_large_scores(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = (torch.randn(3, 50, 2, 32) * 20).to(dtype).unbind(0)
    out = attend(Boundaries.from_lengths([50]), *rows, scale=1.0)
    exact = [row.double() for row in rows]
    options: dict[str, Any] = {"scale": 1.0, "window": 0, "causal": False}
    expected = plain_attention(Boundaries.from_lengths([50]), exact, **options)
    bound = 2e-2 if dtype == torch.float32 else 1.0
    torch.testing.assert_close(out.double(), expected, atol=bound, rtol=bound)


def at_the_end_of_memory(tensor: Tensor) -> Tensor:
    """Return a copy behind which memory cannot be read."""
    length = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, length + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    protected = ctypes.c_void_p(address + length)
    assert libc.mprotect(protected, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    count, start = tensor.numel(), length - tensor.nbytes
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=start)
    return copy.view(tensor.shape).copy_(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("queries", [1, 2, 5, 37])
def test_memory_behind_the_rows_is_not_read(dtype: torch.dtype, queries: int, causal: bool) -> None:
    torch.manual_seed(0)
    for keys in (37, 48, 97):
        rows = [torch.randn(n, 2, 32).to(dtype) for n in (queries, keys, keys)]
        guarded = [at_the_end_of_memory(row) for row in rows]
        assert_is_attention(make_boundaries([(queries, keys)]), guarded, causal=causal)


@pytest.mark.parametrize("queries", [1, 130])
def test_neighbours_and_threads_change_nothing(dtype: torch.dtype, queries: int) -> None:
    torch.manual_seed(0)
    pairs = [torch.randn(length, 3, 4, 32).to(dtype) for length in (130, 77, queries)]
    alone = attend(Boundaries.from_lengths([77]), *pairs[1].unbind(1), scale=0.2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        lengths = [len(pair) for pair in pairs]
        together = attend(Boundaries.from_lengths(lengths), *torch.cat(pairs).unbind(1), scale=0.2)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together[130:207], alone)


@pytest.mark.parametrize("length", [2, 20])
def test_nan_is_not_hidden(dtype: torch.dtype, length: int) -> None:
    qkv = torch.randn(2 * length, 3, 2, 32).to(dtype)
    qkv[1, 0] = torch.nan
    out = attend(Boundaries.from_lengths([length, length]), *qkv.unbind(1), scale=0.2)
    assert out[1].isnan().all()
    assert out[length:].isfinite().all()
    qkv[1] = torch.nan
    out = attend(Boundaries.from_lengths([length, length]), *qkv.unbind(1), scale=0.2)
    assert out[:length].isnan().all()


@pytest.mark.parametrize("library", ["garbage", "no library", "another library"])
def test_a_library_that_cannot_be_loaded_is_not_used(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    file = tmp_path / "kernel.so"
    if library == "garbage":
        file.write_text("not a library")
    if library == "another library":
        file.symlink_to(str(torch._C.__file__))
    spec = ModuleSpec("kernel", None, origin=str(file))
    monkeypatch.setattr(compiled, "find_spec", lambda _: spec)
    monkeypatch.setattr(compiled, "library", compiled.library.__wrapped__)
    assert compiled.compiled_function("packed_rows", RowsWork, "packed_rows_work_size") is None
    (record,) = caplog.records
    assert str(file) in record.getMessage()
