"""Packed batches: one row of consecutive pairs, without padding."""

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rerank_plugin.engine.attention import ATTENTION
from rerank_plugin.engine.boundaries import Boundaries
from rerank_plugin.engine.last_layer import averages, pool_last_layer, pools_in_last_layer
from rerank_plugin.engine.layout import Layout, by_prefix
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.model.causal import LastTokenClassifier
from rerank_plugin.model.families import family_of

Inputs = dict[str, Any]

#: The cost of a floating-point operation in attention, relative to one in a product of weights.
ATTENTION_RATE = 2.5


def pair_costs(
    lengths: Sequence[int], hidden_size: int, *, before: Sequence[int] | int = 0
) -> "np.typing.NDArray[np.float64]":
    """Return the costs of pairs, in tokens of a very short pair, float64 `[pairs]`.

    A layer multiplies each token with 12 H^2 weights (24 H^2 operations), and with the L tokens of
    its pair, and those of a shared prefix before them, twice (4 L H operations).
    """
    tokens, prefix = np.asarray(lengths, np.float64), np.asarray(before, np.float64)
    return tokens * (1 + ATTENTION_RATE * (tokens + prefix) / (6 * hidden_size))


def row_cost(layout: Layout, hidden_size: int) -> float:
    """Return the cost of a packed row, in the same tokens."""
    lengths = [len(segment) for segment in layout.segments]
    before = [segment.position for segment in layout.segments]
    return float(pair_costs(lengths, hidden_size, before=before).sum())


def equal_batches(costs: Sequence[float], budget: float) -> list[list[int]]:
    """Return indices in as few batches as the budget allows, of about equal cost.

    The most expensive item goes first, each into the cheapest batch so far (Graham 1969); equal
    costs go by index. A batch above the budget has a single item. The most expensive batch comes
    first, so that memory use peaks at the start.
    """
    total, order = float(sum(costs)), sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    count = max(1, ceil(total / budget))
    while True:
        batches: list[list[int]] = [[] for _ in range(min(count, len(order)))]
        heap = [(0.0, number) for number in range(len(batches))]
        for index in order:
            cost, number = heapq.heappop(heap)
            batches[number].append(index)
            heapq.heappush(heap, (cost + costs[index], number))
        fits = all(cost <= budget or len(batches[number]) == 1 for cost, number in heap)
        if fits or count >= len(order):
            sums = dict((number, cost) for cost, number in heap)
            return [batches[n] for n in sorted(sums, key=lambda n: (-sums[n], n))]
        count += ceil(count / 50)


def prefix_batches(
    pairs: Sequence[EncodedPair], budget: float, hidden_size: int
) -> list[list[int]]:
    """Return indices of pairs as `equal_batches` does, those of a prefix together if they fit.

    A batch above the budget has a single pair.
    """
    pieces: list[list[int]] = []
    for shared, indices in by_prefix(pairs):
        rests = [len(pairs[index]) - shared for index in indices]
        costs = pair_costs(rests, hidden_size, before=shared).tolist()
        room = budget - float(pair_costs([shared], hidden_size)[0])
        batches = equal_batches(costs, max(room, 1)) if shared else [[i] for i in range(len(rests))]
        pieces += [[indices[i] for i in batch] for batch in batches]
    layouts = (Layout.with_shared_prefixes([pairs[i] for i in piece]) for piece in pieces)
    costs = [row_cost(layout, hidden_size) for layout in layouts]
    batches = equal_batches(costs, budget)
    return [[index for piece in batch for index in pieces[piece]] for batch in batches]


def pack(
    pairs: Sequence[EncodedPair],
    *,
    first_position: int,
    with_types: bool,
    causal: bool = False,
    multiple: int = 1,
) -> Inputs:
    """Pack pairs into one row, for a model prepared by `prepare_packing`.

    Args:
        pairs: At least one.
        first_position: The position of the first token of every pair.
        with_types: Whether the model is given token types.
        causal: Whether the model is causal, so that pairs share their prefixes.
        multiple: The row is filled up to a multiple of this many tokens.

    Returns:
        `input_ids`, `position_ids` and `token_type_ids` (if any), int64 `[1, tokens]`, and the
        `boundaries` of the pairs.
    """
    layout = Layout.with_shared_prefixes(pairs) if causal else Layout.from_pairs(pairs)
    segments, boundaries = layout.segments, layout.boundaries(causal=causal, multiple=multiple)
    starts = [first_position + segment.position for segment in segments]
    positions = [
        np.arange(start, start + len(segment))
        for start, segment in zip(starts, segments, strict=True)
    ]
    rest = np.zeros(-boundaries.tokens % multiple, np.int64)
    inputs: Inputs = {
        "input_ids": one_row([*(segment.ids for segment in segments), rest]),
        "position_ids": one_row([*positions, rest]),
        "boundaries": boundaries,
    }
    if with_types:
        inputs["token_type_ids"] = one_row([*(segment.types for segment in segments), rest])
    return inputs


def one_row(arrays: Sequence["np.typing.NDArray[Any]"]) -> Tensor:
    """Return arrays as one row, int64 `[1, tokens]`."""
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))[None]


def prepare_packing(model: PreTrainedModel) -> bool:
    """Let a model take packed rows, in place, if its family can; returns whether it does.

    Its attention is restricted to pairs, its last layer computes the pooled tokens alone if it can,
    and a forward hook keeps one token a pair, `[1, tokens, hidden]` to `[pairs, 1, hidden]`: pooler
    and head get the same input as from a padded batch. Everything else, and so the saved model, is
    the stock model.
    """
    config = model.config
    if not takes_packed_rows(model):
        return False
    if config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
        if config._attn_implementation != ATTENTION:
            # Some versions of transformers refuse it for some families, in a warning.
            return False
        pool_last_layer(model)
        module = model.base_model.get_submodule(family_of(config).last_module or "")
        module.register_forward_hook(partial(keep_one_token, pool=pooling(model)), with_kwargs=True)
    return True


def takes_packed_rows(model: PreTrainedModel) -> bool:
    """Return whether a model can take packed rows."""
    family = family_of(model.config)
    backbone: Any = model.base_model
    # Code that comes with a model may do anything with a mask, and older versions of transformers
    # have families whose attention is their own.
    stock = type(backbone).__module__.startswith("transformers.models.")
    if family.last_module is None or not stock or not backbone.is_backend_compatible():
        return False
    if family.causal:
        # The stock forward pass looks for the last token of padded pairs.
        return isinstance(model, LastTokenClassifier) and not rotates_by_length(model.config)
    return not getattr(model.config, "is_decoder", False)


def rotates_by_length(config: PreTrainedConfig) -> bool:
    """Return whether rotary positions depend on the longest pair of a batch."""
    rotary = getattr(config, "rope_parameters", None) or {}
    return rotary.get("rope_type") in ("dynamic", "longrope")


def pooling(model: PreTrainedModel) -> Callable[[Tensor, Boundaries], Tensor]:
    """Return the function that reduces the tokens of a packed row to one for each pair."""
    if averages(model):
        return means
    return without_filling if pools_in_last_layer(model) else pooled_tokens


def keep_one_token(
    _module: nn.Module,
    _arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    output: Any,
    *,
    pool: Callable[[Tensor, Boundaries], Tensor],
) -> Any:
    """Replace the tokens of a packed row by one for each pair; a forward hook."""
    boundaries = keywords.get("boundaries")
    if boundaries is not None:
        output.last_hidden_state = pool(output.last_hidden_state[0], boundaries)[:, None]
    return output


def pooled_tokens(hidden: Tensor, boundaries: Boundaries) -> Tensor:
    """Return the pooled token of every pair, `[tokens, hidden]` to `[pairs, hidden]`."""
    assert boundaries.pooled is not None
    return without_filling(boundaries.pooled.select(hidden), boundaries)


def without_filling(hidden: Tensor, boundaries: Boundaries) -> Tensor:
    """Return the tokens that the last layer has pooled, `[pairs, hidden]`."""
    assert boundaries.pooled is not None
    return hidden[: boundaries.pooled.pairs]


def means(hidden: Tensor, boundaries: Boundaries) -> Tensor:
    """Return the mean of every pair, in float32, `[tokens, hidden]` to `[pairs, hidden]`."""
    tokens = hidden[: boundaries.tokens].float()
    lengths = boundaries.offsets64.diff()
    pairs = torch.arange(len(lengths), device=tokens.device)
    owner = pairs.repeat_interleave(lengths, output_size=tokens.shape[0])
    sums = tokens.new_zeros(len(lengths), tokens.shape[1]).index_add(0, owner, tokens)
    return (sums / lengths[:, None]).to(hidden.dtype)
