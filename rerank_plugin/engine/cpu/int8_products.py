"""Products with weights of 8 bits on a CPU: `int8_products.c`, for scoring with `dtype="int8"`.

The rows of a tensor are quantised to 8 bits on the way, each with a scale and a zero point of its
own, so that a score does not depend on the other pairs of a batch. Weights have 7 bits and a scale
for each output. Sums are integers, which are the same on every processor.
"""

import ctypes
import os
from enum import IntEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rerank_plugin.engine.cpu.compiled import Function, address, compiled_function, run
from rerank_plugin.engine.cpu.instructions import AMX_INT8, AVX2, can_run
from rerank_plugin.engine.cpu.products import Activation, LinearProduct
from rerank_plugin.model.device import cpu_has, torch_uses_avx512

#: The largest weight: with it two products of a weight and a byte fit 16 bits, as AVX2 adds them.
LARGEST_WEIGHT = 63

#: Packed weights have zeros up to a multiple of this, in both directions.
PACKED_MULTIPLE = 64

#: Both sizes of weights have to be a multiple of this.
SIZE_MULTIPLE = 8

#: The activations of the C file, by their names and variants in oneDNN.
ACTIVATION_CODES = {("gelu", "none"): 1, ("gelu", "tanh"): 2, ("swish", ""): 3}

#: What the C file does with another tensor.
OPERATION_CODES = {"add": 1, "mul": 2}


class Instructions(IntEnum):
    """The instructions that multiply bytes, by their numbers in the C file, slowest first."""

    AVX2 = 1
    AVX_VNNI = 2
    AVX512_VNNI = 3
    AMX = 4


class Weights(ctypes.Structure):
    """The weights of a product, with the layout of `Weights` in the C file."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "total", "bias")),
        *((name, ctypes.c_int32) for name in ("inner", "columns")),
    )


class ProductWork(ctypes.Structure):
    """The arguments of `int8_products`, with the layout of `ProductWork` in the C file."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "other", "out")),
        *((name, ctypes.c_int64) for name in ("x_row", "other_row", "out_row")),
        *((name, Weights) for name in ("first", "second")),
        *((name, ctypes.c_void_p) for name in ("norm_weight", "norm_bias")),
        ("epsilon", ctypes.c_float),
        *(
            (name, ctypes.c_int32)
            for name in ("rows", "is_bfloat16", "activation", "operation", "kernel", "failed")
        ),
        ("next", ctypes.c_int64),
        ("size", ctypes.c_int64),
    )


@cache
def int8_kernel() -> Function | None:
    """Return the compiled product; None if there is none, or this CPU has no AVX2."""
    if not can_run(AVX2):
        return None
    return compiled_function("int8_products", ProductWork, "int8_products_work_size")


@cache
def usable_instructions() -> list[Instructions]:
    """Return the instructions for bytes that this CPU has, slowest first.

    Those that `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` keep torch from using are left out.
    """
    usable = [Instructions.AVX2]
    if cpu_has("avx_vnni") and os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2":
        usable.append(Instructions.AVX_VNNI)
    if torch_uses_avx512() and cpu_has("avx512_vnni"):
        usable.append(Instructions.AVX512_VNNI)
    if can_run(AMX_INT8):
        usable.append(Instructions.AMX)
    return usable


def is_int8_supported() -> bool:
    """Return whether this machine multiplies bytes: on x86 with AVX2, and a compiled library."""
    return int8_kernel() is not None


class Int8Product(LinearProduct):
    """The product with weights of 8 bits, whose sizes are multiples of `SIZE_MULTIPLE`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, **adapters: Any) -> None:
        self.columns, self.inner = weight.shape
        quantized, self.scale = quantize_weight(weight)
        self.total = quantized.sum(1, dtype=torch.int32)
        bias = None if bias is None else bias.float().contiguous()
        super().__init__(pack(quantized), bias, **adapters)

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """Return the product, `[tokens, out]`, followed by an activation if one is given."""
        addition = self.addition(x)
        if addition is None:
            return multiply(self, x, activation)
        out = multiply(self, x, other=addition, operation="add")
        return activation(out) if activation else out

    def combine(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """Return the product plus (`add`) or times (`mul`) another tensor, `[tokens, out]`."""
        addition = self.addition(x)
        if addition is None:
            return multiply(self, x, other=other, operation=operation)
        if operation == "add":
            return multiply(self, x, other=addition + other, operation=operation)
        return multiply(self, x, other=addition, operation="add").mul_(other)

    def add_and_norm(self, x: Tensor, other: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the layer norm of the product plus another tensor, `[tokens, out]`."""
        if self.is_adapted:
            return super().add_and_norm(x, other, norm)
        return multiply(self, x, other=other, operation="add", norm=norm)

    def feed_forward(
        self, x: Tensor, activation: Activation, down: LinearProduct, norm: nn.LayerNorm
    ) -> Tensor:
        """Return the layer norm of x plus a feed-forward network, whose first product this is."""
        if self.is_adapted or down.is_adapted or not isinstance(down, Int8Product):
            return super().feed_forward(x, activation, down, norm)
        return multiply(self, x, activation, down, other=x, operation="add", norm=norm)

    @property
    def work(self) -> Weights:
        """Return the weights as the C file takes them."""
        return Weights(
            weight=self.weight.data_ptr(),
            scale=self.scale.data_ptr(),
            total=self.total.data_ptr(),
            bias=address(self.bias),
            inner=self.inner,
            columns=self.columns,
        )


def multiply(
    first: Int8Product,
    x: Tensor,
    activation: Activation | None = None,
    second: Int8Product | None = None,
    *,
    other: Tensor | None = None,
    operation: str = "",
    norm: nn.LayerNorm | None = None,
) -> Tensor:
    """Return a product, or two in sequence, `[tokens, out]`, without the adapter.

    Args:
        first: The weights of the first product.
        x: `[tokens, in]`.
        activation: Follows the first product.
        second: The weights of the second one, if there is one.
        other: `[tokens, out]`, added to the last product or multiplied with it.
        operation: `add` or `mul`, if there is another tensor.
        norm: Follows at the end.
    """
    kernel = int8_kernel()
    assert kernel is not None
    columns = first.columns if second is None else second.columns
    x = x if x.stride(-1) == 1 else x.contiguous()
    other = None if other is None else other.to(x.dtype).contiguous()
    out = torch.empty(len(x), columns, dtype=x.dtype)
    # Kept in variables, so that the memory is not freed before the end.
    norm_weight = None if norm is None else float32_of(norm.weight)
    norm_bias = None if norm is None else float32_of(norm.bias)
    work = ProductWork(
        x=x.data_ptr(),
        other=address(other),
        out=out.data_ptr(),
        x_row=x.stride(0),
        other_row=columns,
        out_row=columns,
        first=first.work,
        second=Weights() if second is None else second.work,
        norm_weight=address(norm_weight),
        norm_bias=address(norm_bias),
        epsilon=0.0 if norm is None else norm.eps,
        rows=len(x),
        is_bfloat16=x.dtype == torch.bfloat16,
        activation=ACTIVATION_CODES[activation.name, activation.variant] if activation else 0,
        operation=OPERATION_CODES.get(operation, 0),
        kernel=usable_instructions()[-1],
    )
    run(kernel, work)
    return out


def float32_of(tensor: Tensor | None) -> Tensor | None:
    """Return a parameter as contiguous float32, if there is one."""
    return None if tensor is None else tensor.detach().float().contiguous()


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights `[out, in]` as int8, and the scale of each output, float32 `[out]`."""
    weight = weight.float()
    largest = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest / LARGEST_WEIGHT
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def pack(weight: Tensor) -> Tensor:
    """Return int8 weights `[out, in]` in panels of 16 outputs, as the C file describes them."""
    columns, inner = (-(-size // PACKED_MULTIPLE) * PACKED_MULTIPLE for size in weight.shape)
    padded = weight.new_zeros(columns, inner)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded.reshape(columns // 16, 16, inner // 4, 4).transpose(1, 2).contiguous()
