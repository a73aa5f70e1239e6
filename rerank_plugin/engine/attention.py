"""Attention inside the pairs of a packed row, as transformers calls it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rerank_plugin.engine.cpu_attention import CpuAttention, is_supported

#: The name under which transformers knows it. No mask function goes by this name, so that models
#: build no mask.
NAME = "rerank_packed"


@dataclass(frozen=True)
class Boundaries:
    """Where the pairs of a packed row begin and end; goes through a model as one keyword."""

    #: Where pairs begin, and the end: int32 `[pairs + 1]`, on the CPU and on the model's device.
    offsets: Tensor
    on_device: Tensor
    #: The same in int64. Nested tensors are alike only if theirs are this very tensor, also when a
    #: layer is computed once more for its gradient.
    places: Tensor
    lengths: tuple[int, ...]
    longest: int
    #: Of all pairs; what a row has behind them belongs to none.
    tokens: int

    @classmethod
    def of(cls, lengths: list[int]) -> "Boundaries":
        """The boundaries of pairs that stand one behind the other, on the CPU."""
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(lengths), 0, dtype=torch.int32, out=offsets[1:])
        places = offsets.long()
        return cls(offsets, offsets, places, tuple(lengths), max(lengths), sum(lengths))

    def to(self, device: torch.device) -> "Boundaries":
        """The same for a model on a device."""
        on_device = self.offsets.to(device, non_blocking=True)
        return replace(self, on_device=on_device, places=on_device.long())


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
    """Attention inside each pair, without dropout of its weights on any device.

    Args:
        _module: The layer that asks.
        query: As `key` and `value` `[1, heads, tokens, head size]`.
        key: See above.
        value: See above.
        _attention_mask: None: the boundaries say what a token sees.
        boundaries: Where the pairs of the row begin and end.
        scaling: The factor of the scores; default one over the root of the head size.
        sliding_window: A token sees those less than so many places away; all by default.

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
    """Attention inside each pair by the fastest kernel that is there, `[tokens, heads, head size]`.

    A token sees those less than `window` places away, all where that is 0; of what a row has behind
    its pairs the output is 0.
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
    """Whether CUDA's kernels take a tensor; ROCm's have limits of their own."""
    size = query.shape[-1]
    return query.is_cuda and not torch.version.hip and size % 8 == 0 and size <= 256


def has_flash(query: Tensor) -> bool:
    """Whether FlashAttention takes a tensor on a GPU: half precision, from Ampere on."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return half and torch.cuda.get_device_capability(query.device) >= (8, 0)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Boundaries, window: int, scale: float
) -> Tensor:
    """Attention by FlashAttention for rows of pairs, `[tokens, heads, head size]`."""
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
        # Splitting keys by how many pairs there are would let a score move with its neighbours.
        num_splits=1,
    )
    assert isinstance(out, Tensor)
    return out


def nested(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Boundaries, scale: float
) -> Tensor:
    """Attention by torch's kernels for nested tensors, `[tokens, heads, head size]`.

    They take float32 too, and run on GPUs that have no FlashAttention.
    """
    tokens, offsets = boundaries.tokens, boundaries.places
    shortest, longest = min(boundaries.lengths), boundaries.longest
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            tensor[:tokens], offsets, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)
        for tensor in (query, key, value)
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return filled(out.transpose(1, 2).values(), query.shape[0])


def pair_by_pair(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Boundaries, window: int, scale: float
) -> Tensor:
    """Attention by torch's fused kernel, one pair at a time, `[tokens, heads, head size]`.

    Pairs are split off and not sliced out: the gradient of a slice is a row full of zeros.
    """
    tokens = boundaries.tokens
    rows = [tensor[:tokens].transpose(0, 1)[None] for tensor in (query, key, value)]
    parts = zip(*(row.split(boundaries.lengths, dim=2) for row in rows), strict=True)
    outputs = []
    for q, k, v in parts:
        mask = window_mask(q.shape[2], window, q.device) if 0 < window < q.shape[2] else None
        outputs.append(
            nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        )
    return filled(torch.cat(outputs, dim=2)[0].transpose(0, 1), query.shape[0])


def filled(out: Tensor, tokens: int) -> Tensor:
    """The outputs of all pairs and zeros behind them, `[tokens, heads, head size]`."""
    return nn.functional.pad(out, (0, 0, 0, 0, 0, tokens - out.shape[0]))


def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Which tokens see each other: those less than `window` places apart; `[length, length]`."""
    places = torch.arange(length, device=device)
    return (places[:, None] - places[None, :]).abs() < window


AttentionInterface.register(NAME, packed_attention)
