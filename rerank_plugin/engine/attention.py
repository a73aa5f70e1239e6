"""Attention inside the pairs of a packed row, with the interface of transformers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rerank_plugin.engine.cpu_attention import CpuAttention, is_supported

#: Its name in transformers. No mask function has this name, so that models build no mask.
ATTENTION = "rerank_packed"


@dataclass(frozen=True)
class Boundaries:
    """The boundaries of the pairs in a packed row; passed through a model as one keyword."""

    #: The start of each pair, and the end: int32 `[pairs + 1]`, on the CPU and on the model's
    #: device.
    offsets: Tensor
    on_device: Tensor
    #: The same in int64. Nested tensors match only if their offsets are the same tensor object,
    #: also when a layer is computed once more for its gradient.
    offsets64: Tensor
    lengths: tuple[int, ...]
    longest: int
    #: The number of tokens of all pairs; the row may be longer.
    tokens: int

    @classmethod
    def from_lengths(cls, lengths: list[int]) -> "Boundaries":
        """Return the boundaries of consecutive pairs, on the CPU."""
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(lengths), 0, dtype=torch.int32, out=offsets[1:])
        return cls(offsets, offsets, offsets.long(), tuple(lengths), max(lengths), sum(lengths))

    def to(self, device: torch.device) -> "Boundaries":
        """Return the same boundaries for a model on a device."""
        on_device = self.offsets.to(device, non_blocking=True)
        return replace(self, on_device=on_device, offsets64=on_device.long())


def packed_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None = None,
    *,
    boundaries: Boundaries,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention inside each pair, without dropout of its weights on any device.

    Args:
        _module: The layer.
        query: As `key` and `value` `[1, heads, tokens, head size]`.
        key: See above.
        value: See above.
        _attention_mask: None: the boundaries decide which tokens see each other.
        boundaries: The boundaries of the pairs in the row.
        scaling: The factor of the scores; default one over the root of the head size.
        sliding_window: A token sees tokens less than this distance away; all by default.

    Returns:
        `[1, tokens, heads, head size]`, and no weights.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    dtype, device = value.dtype, value.device.type
    if torch.is_autocast_enabled(device):
        # As torch's own attention does: rotary embeddings and 4-bit products leave float32.
        dtype = torch.get_autocast_dtype(device)
    rows = [tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value)]
    return attend(boundaries, *rows, scale=scale, window=sliding_window or 0)[None], None


def attend(
    boundaries: Boundaries,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Compute attention by the fastest kernel available, `[tokens, heads, head size]`.

    A token sees the tokens of its pair less than `window` away, all of them if that is 0. Of tokens
    after the last pair the output is 0.
    """
    if window >= boundaries.longest:
        window = 0
    if is_supported(query):
        offsets, longest = boundaries.offsets, boundaries.longest
        apply: Callable[..., Tensor] = CpuAttention.apply
        return apply(query, key, value, offsets, longest, window, scale)
    if takes_rows_of_pairs(query):
        if has_flash(query):
            return varlen(query, key, value, boundaries, window, scale)
        if not window:
            return nested(query, key, value, boundaries, scale)
    return pair_by_pair(query, key, value, boundaries, window, scale)


def takes_rows_of_pairs(query: Tensor) -> bool:
    """Return whether CUDA's kernels take a tensor; ROCm's have other limits."""
    size = query.shape[-1]
    return query.is_cuda and not torch.version.hip and size % 8 == 0 and size <= 256


def has_flash(query: Tensor) -> bool:
    """Return whether FlashAttention takes a tensor: half precision, on Ampere or newer."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    capable = half and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return capable and has_varlen()


@cache
def has_varlen() -> bool:
    """Return whether this torch calls FlashAttention for rows of pairs, without splitting keys."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return "num_splits" in signature(varlen_attn).parameters


def varlen(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Boundaries, window: int, scale: float
) -> Tensor:
    """Compute attention by FlashAttention for packed rows, `[tokens, heads, head size]`."""
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = boundaries.on_device, boundaries.longest
    out = varlen_attn(
        query,
        key,
        value,
        offsets,
        offsets,
        longest,
        longest,
        scale=scale,
        window_size=(window - 1, window - 1) if window else (-1, -1),
        # Splits that depend on the number of pairs would let a score depend on its neighbours.
        num_splits=1,
    )
    assert isinstance(out, Tensor)
    return out


def nested(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Boundaries, scale: float
) -> Tensor:
    """Compute attention by torch's kernels for nested tensors, `[tokens, heads, head size]`.

    They take float32 too, and run on GPUs without FlashAttention.
    """
    tokens, offsets = boundaries.tokens, boundaries.offsets64
    shortest, longest = min(boundaries.lengths), boundaries.longest
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            tensor[:tokens], offsets, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)
        for tensor in (query, key, value)
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return padded(out.transpose(1, 2).values(), query.shape[0])


def pair_by_pair(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Boundaries, window: int, scale: float
) -> Tensor:
    """Compute attention by torch's fused kernel pair by pair, `[tokens, heads, head size]`.

    The row is split, not sliced: the gradient of a slice is a row full of zeros.
    """
    tokens = boundaries.tokens
    rows = [tensor[:tokens].transpose(0, 1)[None] for tensor in (query, key, value)]
    pairs = zip(*(row.split(boundaries.lengths, dim=2) for row in rows), strict=True)
    outputs = []
    for q, k, v in pairs:
        mask = window_mask(q.shape[2], window, q.device) if 0 < window < q.shape[2] else None
        outputs.append(
            nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        )
    return padded(torch.cat(outputs, dim=2)[0].transpose(0, 1), query.shape[0])


def padded(out: Tensor, tokens: int) -> Tensor:
    """Return the outputs of all pairs, followed by zeros, `[tokens, heads, head size]`."""
    return nn.functional.pad(out, (0, 0, 0, 0, 0, tokens - out.shape[0]))


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Return which tokens see each other, those less than `window` apart, `[length, length]`."""
    positions = torch.arange(length, device=device)
    return (positions[:, None] - positions[None, :]).abs() < window


AttentionInterface.register(ATTENTION, packed_attention)
