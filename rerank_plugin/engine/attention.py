"""Attention inside the pairs of a packed row, with the interface of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rerank_plugin.engine.boundaries import Boundaries, Segments
from rerank_plugin.engine.cpu.attention import CpuAttention, Sizes, is_supported

#: Its name in transformers. No mask function has this name, so that models build no mask.
ATTENTION = "rerank_packed"


def packed_attention(
    module: nn.Module,
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
        module: The layer, which may be causal.
        query: `[1, heads, tokens, head size]`.
        key: `[1, key heads, tokens, head size]`; so is `value`.
        value: See above.
        _attention_mask: None: the boundaries decide which tokens see each other.
        boundaries: The boundaries of the pairs in the row.
        scaling: The factor of the scores; default one over the root of the head size.
        sliding_window: A token sees tokens less than this distance away; all by default.

    Returns:
        `[1, tokens, heads, head size]`, and no weights.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rows = of_one_precision(*(tensor[0].transpose(0, 1) for tensor in (query, key, value)))
    window, causal = sliding_window or 0, bool(getattr(module, "is_causal", False))
    return attend(boundaries, *rows, scale=scale, window=window, causal=causal)[None], None


def of_one_precision(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values in the precision of attention.

    As in torch's own attention: rotary embeddings and 4-bit products leave float32.
    """
    dtype, device = value.dtype, value.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype)


@dataclass(frozen=True)
class Scores:
    """The settings of the scores of a query and the keys of its segment."""

    scale: float
    #: Keys less than this distance away are seen; all if it is 0.
    window: int
    #: Whether later keys are not seen. The last query of a segment is at the last of its keys.
    causal: bool


def attend(
    boundaries: Boundaries,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int = 0,
    causal: bool = False,
) -> Tensor:
    """Compute attention by the fastest kernel available, `[tokens, heads, head size]`.

    A token sees the tokens of its pair less than `window` away, all of them if that is 0, and none
    after itself if attention is causal. Of tokens after the last pair the output is 0.

    Args:
        boundaries: The boundaries of the pairs.
        query: `[tokens, heads, head size]`.
        key: `[tokens, key heads, head size]`, as is `value`: each for several heads of queries
            in a row, or for one.
        value: See above.
        scale: The factor of the scores.
        window: The sliding window.
        causal: Whether attention is causal.
    """
    keys: Segments = boundaries
    if boundaries.keys is not None:
        keys = boundaries.keys
        key, value = boundaries.keys.select(key), boundaries.keys.select(value)
    scores = Scores(scale, window if window < keys.longest else 0, causal)
    if is_supported(query):
        sizes = Sizes(boundaries.offsets, keys.offsets, keys.longest, scores.window, causal, scale)
        apply: Callable[..., Tensor] = CpuAttention.apply
        return apply(query, key, value, sizes)
    if takes_rows_of_pairs(query):
        if has_flash(query):
            return varlen(query, key, value, boundaries, keys, scores)
        if not scores.window and boundaries.keys is None and not causal:
            return nested(query, key, value, boundaries, scale)
    return pair_by_pair(query, key, value, boundaries, keys, scores)


def takes_rows_of_pairs(query: Tensor) -> bool:
    """Return whether CUDA's kernels take a tensor; ROCm's have other limits."""
    size = query.shape[-1]
    return query.is_cuda and not torch.version.hip and size % 8 == 0 and size <= 256


def has_flash(query: Tensor) -> bool:
    """Return whether FlashAttention takes a tensor: half precision, on Ampere or newer."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    capable = half and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return capable and torch.backends.cuda.is_flash_attention_available()


@cache
def has_varlen() -> bool:
    """Return whether this torch has a public function for rows of pairs that splits no keys."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"num_splits", "enable_gqa"} <= signature(varlen_attn).parameters.keys()


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    keys: Segments,
    scores: Scores,
) -> Tensor:
    """Compute attention by FlashAttention for packed rows, `[tokens, heads, head size]`.

    No version splits keys by the number of pairs: a score would depend on its neighbours.
    """
    before = scores.window - 1 if scores.window else -1
    after = 0 if scores.causal else before
    groups = query.shape[1] // key.shape[1]
    where = (segments.on_device, keys.on_device, segments.longest, keys.longest)
    if has_varlen():
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            *(query, key, value, *where),
            scale=scores.scale,
            window_size=(before, after),
            enable_gqa=groups > 1,
            num_splits=1,
        )
        assert isinstance(out, Tensor)
        return out
    if groups > 1:
        # For heads that share keys, this function does split them where a segment has one query.
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    flash: Callable[..., tuple[Tensor, ...]] = torch.ops.aten._flash_attention_forward
    return flash(
        *(query, key, value, *where, 0.0, scores.causal, False),
        scale=scores.scale,
        window_size_left=before,
        window_size_right=after,
    )[0]


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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    keys: Segments,
    scores: Scores,
) -> Tensor:
    """Compute attention by torch's fused kernel pair by pair, `[tokens, heads, head size]`.

    The row is split, not sliced: the gradient of a slice is a row full of zeros.
    """
    outputs = []
    for q, k, v in zip(split(query, segments), split(key, keys), split(value, keys), strict=True):
        mask = mask_of(q.shape[2], k.shape[2], scores, q.device)
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                *(q, k, v),
                attn_mask=mask,
                is_causal=scores.causal and mask is None,
                scale=scores.scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return padded(torch.cat(outputs, dim=2)[0].transpose(0, 1), query.shape[0])


def split(tensor: Tensor, segments: Segments) -> tuple[Tensor, ...]:
    """Return the segments of a row `[tokens, heads, size]`, `[1, heads, segment tokens, size]`."""
    row = tensor[: segments.tokens].transpose(0, 1)[None]
    return torch.split(row, list(segments.lengths), dim=2)


def padded(out: Tensor, tokens: int) -> Tensor:
    """Return the outputs of all pairs, followed by zeros, `[tokens, heads, head size]`."""
    return nn.functional.pad(out, (0, 0, 0, 0, 0, tokens - out.shape[0]))


def mask_of(queries: int, keys: int, scores: Scores, device: torch.device) -> Tensor | None:
    """Return which keys each query of a segment sees, `[queries, keys]`.

    None if that is all of them, or those of torch's causal mask.
    """
    windowed = 0 < scores.window < keys
    if not windowed and (not scores.causal or queries == keys):
        return None
    last = torch.arange(keys - queries, keys, device=device)[:, None]
    distance = last - torch.arange(keys, device=device)
    if not scores.causal:
        return distance.abs() < scores.window
    seen = distance >= 0
    return seen & (distance < scores.window) if windowed else seen


AttentionInterface.register(ATTENTION, packed_attention)
