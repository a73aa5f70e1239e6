"""Root-mean-square norms and rotary positions of packed rows on a CPU, for scoring."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from rerank_plugin.engine.cpu.compiled import Function, address, compiled_function, run
from rerank_plugin.engine.cpu.instructions import AVX512_BF16, can_run

#: Cosine and sine of the positions, `[1, tokens, head size]`; both halves of a head are equal.
Angles = tuple[Tensor, Tensor]


class RowsWork(ctypes.Structure):
    """The arguments of `packed_rows`, with the layout of `RowsWork` in `packed_rows.c`."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("token", ctypes.c_int64),
        ("head", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("out", "weight", "cosine", "sine")),
        *((name, ctypes.c_int32) for name in ("tokens", "heads", "size")),
        ("epsilon", ctypes.c_float),
        ("next", ctypes.c_int64),
    )


@cache
def kernel() -> Function | None:
    """Return the compiled function, for bfloat16; None if it cannot be used."""
    if not can_run(AVX512_BF16):
        return None
    return compiled_function("packed_rows", RowsWork, "packed_rows_work_size")


def norm_and_rotate(
    x: Tensor, weight: Tensor | None = None, epsilon: float = 0.0, angles: Angles | None = None
) -> Tensor:
    """Return rows `[tokens, heads, size]`, normed and then rotated in float32, contiguous.

    Args:
        x: The rows.
        weight: The weight of a root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467),
            float32 `[heads, size]`; None for no norm.
        epsilon: Added to the mean square.
        angles: Rotary positions (Su et al. 2021, arXiv:2104.09864); None for no rotation.
    """
    compiled = kernel() if x.dtype == torch.bfloat16 and x.shape[-1] % 32 == 0 else None
    if compiled is None or x.stride(-1) != 1 or (angles and angles[0].dtype != x.dtype):
        return plain_norm_and_rotate(x, weight, epsilon, angles)
    out = torch.empty(x.shape, dtype=x.dtype)
    cosine, sine = (table[0].contiguous() for table in angles) if angles else (None, None)
    work = RowsWork(
        x=x.data_ptr(),
        token=x.stride(0),
        head=x.stride(1),
        out=out.data_ptr(),
        weight=address(weight),
        cosine=address(cosine),
        sine=address(sine),
        tokens=x.shape[0],
        heads=x.shape[1],
        size=x.shape[2],
        epsilon=epsilon,
    )
    run(compiled, work)
    return out


def plain_norm_and_rotate(
    x: Tensor, weight: Tensor | None, epsilon: float, angles: Angles | None
) -> Tensor:
    """Compute `norm_and_rotate` by torch's operators."""
    y = x
    if weight is not None:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        y = x * torch.rsqrt(norm.square() / x.shape[-1] + epsilon) * weight
    if angles is None:
        return y.to(x.dtype)
    half = x.shape[-1] // 2
    cosine, sine = (table[0, :, None, :half].float() for table in angles)
    first, second = y[..., :half].float(), y[..., half:].float()
    out = torch.empty(x.shape, dtype=x.dtype)
    out[..., :half] = first * cosine - second * sine
    out[..., half:] = second * cosine + first * sine
    return out
