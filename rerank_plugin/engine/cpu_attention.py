"""The compiled attention of `packed_attention.c`, for processors that can run it.

It is built when the package is installed, if a C compiler is found. Without it, on a processor
without bfloat16 products, or in float32, attention runs through torch's kernels: slower, with the
same results.
"""

import ctypes
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rerank_plugin.model.device import cpu_has, torch_uses_avx512

logger = logging.getLogger(__name__)

#: The compiled library, which setuptools puts into the package.
MODULE = "rerank_plugin.engine._packed_attention"

HEAD_SIZES = (32, 64)

#: The instructions that the C file is compiled for, by torch's names.
INSTRUCTIONS = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16", "fma3")

Kernel = Callable[[Any, int | None, int], int]


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
    """The arguments of one call, with the layout of `Work` in the C file."""

    _fields_ = (
        *((name, Rows) for name in ("q", "k", "v", "out", "dout", "dq", "dk", "dv")),
        ("lse", ctypes.c_void_p),
        ("bounds", ctypes.c_void_p),
        *(
            (name, ctypes.c_int32)
            for name in ("pairs", "heads", "dim", "tokens", "longest", "window")
        ),
        ("scale", ctypes.c_float),
        ("failed", ctypes.c_int32),
        ("next", ctypes.c_int64),
    )


@cache
def kernels() -> tuple[Kernel, Kernel] | None:
    """Return the forward and the backward kernel; None if this machine cannot run them.

    None too if `ATEN_CPU_CAPABILITY` keeps torch itself from using AVX-512.
    """
    if not torch_uses_avx512() or not all(map(cpu_has, INSTRUCTIONS)):
        return None
    spec = find_spec(MODULE)
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        size = library.packed_attention_work_size()
    except (OSError, AttributeError) as error:
        logger.warning(
            "%s cannot be loaded, attention is slower without it: %s", spec.origin, error
        )
        return None
    if size != ctypes.sizeof(Work):
        logger.warning("%s was built for another version: reinstall the package", spec.origin)
        return None
    functions = library.packed_attention_forward, library.packed_attention_backward
    for function in functions:
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        function.restype = ctypes.c_int
    return functions


@cache
def parallel() -> int | None:
    """Return the address of `GOMP_parallel` in the OpenMP runtime of torch, if it is GNU's.

    Other packages come with another copy, whose threads would compete with torch's.
    """
    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.with_name("torch.libs")):
        for file in folder.glob("libgomp*"):
            with suppress(OSError, AttributeError):
                entry = ctypes.CDLL(str(file)).GOMP_parallel
                return ctypes.cast(entry, ctypes.c_void_p).value
    return None


def is_supported(query: Tensor) -> bool:
    """Return whether the kernel takes queries `[tokens, heads, head size]`."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[-1] in HEAD_SIZES
        and kernels() is not None
    )


def call(kernel: Kernel, bounds: Tensor, *, longest: int, window: int, **values: Any) -> None:
    """Fill in the sizes and run a kernel."""
    query = values["q"]
    tokens, heads, dim = query.shape
    rows = {
        name: Rows.from_tensor(value) for name, value in values.items() if isinstance(value, Tensor)
    }
    lse = rows.pop("lse", None)
    work = Work(
        **rows,
        lse=lse.data if lse is not None else None,
        bounds=bounds.data_ptr(),
        pairs=len(bounds) - 1,
        heads=heads,
        dim=dim,
        tokens=tokens,
        longest=longest,
        window=window,
        scale=values["scale"],
    )
    if kernel(ctypes.byref(work), parallel(), torch.get_num_threads()):
        raise MemoryError("no memory for the attention of a packed row")


def inner_contiguous(tensor: Tensor) -> Tensor:
    """Return a tensor with a contiguous last dimension, as the kernels read it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class CpuAttention(torch.autograd.Function):
    """Attention inside the pairs of a packed row, bfloat16 `[tokens, heads, head size]`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Tensor,
        longest: int,
        window: int,
        scale: float,
    ) -> Tensor:
        """Return the output of every token, contiguous.

        Args:
            ctx: Keeps the tensors of the backward pass.
            query: As `key` and `value` `[tokens, heads, head size]`.
            key: See above.
            value: See above.
            bounds: The start of each pair, and the end; int32 `[pairs + 1]` on the CPU.
            longest: The number of tokens of the longest pair.
            window: A token sees tokens less than this distance away; 0 for all.
            scale: The factor of the scores.
        """
        compiled = kernels()
        assert compiled is not None
        query, key, value = (inner_contiguous(tensor) for tensor in (query, key, value))
        out = torch.empty(query.shape, dtype=query.dtype)
        out[bounds[-1] :] = 0
        training = any(ctx.needs_input_grad[:3])
        lse = torch.empty(query.shape[1], query.shape[0]) if training else None
        sizes: dict[str, Any] = {"longest": longest, "window": window, "scale": scale}
        call(compiled[0], bounds, q=query, k=key, v=value, out=out, lse=lse, **sizes)
        if training:
            ctx.save_for_backward(query, key, value, out, lse, bounds)
            ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        compiled = kernels()
        assert compiled is not None
        query, key, value, out, lse, bounds = ctx.saved_tensors
        # Side by side: if the three are one product, its gradient is one tensor already.
        grads = torch.empty(query.shape[0], 3, *query.shape[1:], dtype=query.dtype)
        grads[bounds[-1] :] = 0
        dq, dk, dv = grads.unbind(1)
        call(
            compiled[1],
            bounds,
            q=query,
            k=key,
            v=value,
            out=out,
            dout=inner_contiguous(gradients[0]),
            dq=dq,
            dk=dk,
            dv=dv,
            lse=lse,
            **ctx.sizes,
        )
        return dq, dk, dv, None, None, None, None
