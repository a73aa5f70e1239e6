"""The compiled attention: bfloat16 on AMX or AVX512-BF16, float32 on AVX2 or AVX-512.

Without it, or on a processor that cannot run it, attention runs through torch's kernels: slower,
with the same results.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rerank_plugin.engine.cpu.compiled import Function, address, compiled_function, run
from rerank_plugin.engine.cpu.instructions import AMX_BF16, AVX2, AVX512, AVX512_BF16, can_run

#: The sizes of heads for which the kernels of a precision are faster than torch's.
HEAD_SIZES = {torch.bfloat16: (32, 64, 128), torch.float32: (32, 64, 96, 128, 256)}


@dataclass(frozen=True)
class Variant:
    """Kernels by the ends of their names in C, and the instructions that they are compiled for."""

    forward: str
    backward: str
    instructions: tuple[str, ...]


#: The kernels of each precision, the fastest first.
VARIANTS = {
    torch.bfloat16: (
        Variant("amx", "bfloat16", AMX_BF16),
        Variant("bfloat16", "bfloat16", AVX512_BF16),
    ),
    torch.float32: (
        Variant("float32_avx512", "float32_avx512", AVX512),
        Variant("float32_avx2", "float32_avx2", AVX2),
    ),
}


class Rows(ctypes.Structure):
    """The address of a tensor, and the strides of its tokens and heads in numbers."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("token", ctypes.c_int64),
        ("head", ctypes.c_int64),
    )

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "Rows":
        """Return the rows of a tensor `[tokens, heads, head size]`."""
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


class Work(ctypes.Structure):
    """The arguments of one call, with the layout of `Work` in `packed_attention.h`."""

    _fields_ = (
        *((name, Rows) for name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv")),
        ("lse", ctypes.c_void_p),
        ("bounds", ctypes.c_void_p),
        ("key_bounds", ctypes.c_void_p),
        *(
            (name, ctypes.c_int32)
            for name in (
                *("segments", "heads", "key_heads", "dim"),
                *("tokens", "longest", "window", "causal"),
            )
        ),
        ("scale", ctypes.c_float),
        ("failed", ctypes.c_int32),
        ("next", ctypes.c_int64),
    )


@cache
def variant(dtype: torch.dtype) -> Variant | None:
    """Return the fastest kernels for a precision on this machine; None if none run."""
    variants = VARIANTS.get(dtype, ())
    return next((each for each in variants if can_run(each.instructions)), None)


@cache
def kernels(dtype: torch.dtype) -> tuple[Function, Function] | None:
    """Return the forward and the backward kernel of attention; None if they cannot be used."""
    chosen = variant(dtype)
    if chosen is None:
        return None
    forward, backward = (
        compiled_function(name, Work, "packed_attention_work_size")
        for name in (
            f"packed_attention_forward_{chosen.forward}",
            f"packed_attention_backward_{chosen.backward}",
        )
    )
    return (forward, backward) if forward and backward else None


def is_supported(query: Tensor) -> bool:
    """Return whether the kernel takes queries `[tokens, heads, head size]`."""
    return (
        query.device.type == "cpu"
        and query.shape[-1] in HEAD_SIZES.get(query.dtype, ())
        and kernels(query.dtype) is not None
    )


@dataclass(frozen=True)
class Sizes:
    """The sizes of the segments of a row, and of their scores, for a kernel."""

    #: The start of each segment's queries and of its keys, and the end; int32 `[segments + 1]`.
    bounds: Tensor
    key_bounds: Tensor
    #: The keys of the segment that has most.
    longest: int
    #: A token sees tokens less than this distance away; 0 for all.
    window: int
    causal: bool
    #: The factor of the scores.
    scale: float


def call(kernel: Function, sizes: Sizes, lse: Tensor | None, **tensors: Tensor) -> None:
    """Fill in the sizes and run a kernel."""
    tokens, heads, dim = tensors["q"].shape
    work = Work(
        **{name: Rows.from_tensor(tensor) for name, tensor in tensors.items()},
        lse=address(lse),
        bounds=sizes.bounds.data_ptr(),
        key_bounds=sizes.key_bounds.data_ptr(),
        segments=len(sizes.bounds) - 1,
        heads=heads,
        key_heads=tensors["k"].shape[1],
        dim=dim,
        tokens=tokens,
        longest=sizes.longest,
        window=sizes.window,
        causal=sizes.causal,
        scale=sizes.scale,
    )
    run(kernel, work)


def inner_contiguous(tensor: Tensor) -> Tensor:
    """Return a tensor with a contiguous last dimension, as the kernels read it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class CpuAttention(torch.autograd.Function):
    """Attention inside the segments of a packed row `[tokens, heads, head size]`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, sizes: Sizes) -> Tensor:
        """Return the output of every token, contiguous.

        Args:
            ctx: Keeps the tensors of the backward pass.
            query: `[tokens, heads, head size]`.
            key: `[keys, key heads, head size]`; so is `value`.
            value: See above.
            sizes: The segments.
        """
        compiled = kernels(query.dtype)
        assert compiled is not None
        query, key, value = (inner_contiguous(tensor) for tensor in (query, key, value))
        out = torch.empty(query.shape, dtype=query.dtype)
        out[sizes.bounds[-1] :] = 0
        training = any(ctx.needs_input_grad[:3])
        lse = torch.empty(query.shape[1], query.shape[0]) if training else None
        call(compiled[0], sizes, lse, q=query, k=key, v=value, out=out)
        if training:
            ctx.save_for_backward(query, key, value, out, lse)
            ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, out, lse = ctx.saved_tensors
        compiled = kernels(query.dtype)
        assert compiled is not None
        dq, dk, dv = empty_gradients(query, key)
        dq[ctx.sizes.bounds[-1] :] = 0
        dk[ctx.sizes.key_bounds[-1] :] = 0
        dv[ctx.sizes.key_bounds[-1] :] = 0
        rows = {"q": query, "k": key, "v": value, "out": out, "dq": dq, "dk": dk, "dv": dv}
        call(compiled[1], ctx.sizes, lse, **rows, dout=inner_contiguous(gradients[0]))
        return dq, dk, dv, None


def empty_gradients(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Return tensors for the gradients of query, key and value."""
    if query.shape == key.shape:
        # Side by side: if the three are one product, its gradient is one tensor already.
        return torch.empty(query.shape[0], 3, *query.shape[1:], dtype=query.dtype).unbind(1)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(key)
