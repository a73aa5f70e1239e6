"""Compute in the last layer no more than the head reads: one token a pair.

Of the other tokens it needs keys and values. Query, attention, feed-forward and norms of the pooled
tokens alone are exact, and save most of the layer's products, forward and backward.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.engine.attention import attend, of_one_precision
from rerank_plugin.engine.boundaries import Boundaries, PooledTokens
from rerank_plugin.engine.cpu.rows import Angles
from rerank_plugin.model.families import family_of


class PooledLayer:
    """A layer that returns the pooled tokens of a packed row.

    A padded batch goes through the stock layer.
    """

    def forward(
        self, hidden_states: Tensor, *args: Any, boundaries: Boundaries | None = None, **kwargs: Any
    ) -> Tensor:
        """Apply the layer, `[1, tokens, hidden]` to `[1, pairs and filling, hidden]`."""
        if boundaries is None:
            stock: Any = super()
            out: Tensor = stock.forward(hidden_states, *args, **kwargs)
            return out
        angles = kwargs.get("position_embeddings")
        return self.pooled_forward(hidden_states[0], pooled_of(boundaries), angles)[None]

    def pooled_forward(self, row: Tensor, pooled: PooledTokens, angles: Angles | None) -> Tensor:
        """Apply the layer, `[tokens, hidden]` to `[pairs and filling, hidden]`.

        Args:
            row: The hidden states of all tokens.
            pooled: The tokens that are returned.
            angles: The rotary positions of all tokens, for models that have them.
        """
        raise NotImplementedError


class PooledBertLayer(PooledLayer):
    """The layer of BERT and its like."""

    attention: Any
    feed_forward_chunk: Any

    def pooled_forward(self, row: Tensor, pooled: PooledTokens, angles: Angles | None) -> Tensor:
        """Apply the layer."""
        own, x = self.attention.self, pooled.select(row)
        heads = -1, own.attention_head_size
        projected = own.query(x), own.key(row), own.value(row)
        parts = of_one_precision(*(tensor.unflatten(-1, heads) for tensor in projected))
        context = attend(pooled.boundaries, *parts, scale=own.scaling)
        out: Tensor = self.feed_forward_chunk(self.attention.output(context.flatten(1), x))
        return out


class PooledModernBertLayer(PooledLayer):
    """The layer of ModernBERT."""

    attn: Any
    attn_norm: Any
    mlp: Any
    mlp_norm: Any

    def pooled_forward(self, row: Tensor, pooled: PooledTokens, angles: Angles | None) -> Tensor:
        """Apply the layer."""
        assert angles is not None
        own, x = self.attn, pooled.select(row)
        # One linear layer, perhaps with an adapter, computes the queries of all tokens too.
        query, key, value = (
            own.Wqkv(self.attn_norm(row)).unflatten(-1, (3, -1, own.head_dim)).unbind(1)
        )
        query = rotated(pooled.select(query), pooled.select_angles(angles))
        key = rotated(key, angles)
        parts = of_one_precision(query, key, value)
        context = attend(pooled.boundaries, *parts, scale=own.head_dim**-0.5)
        x = x + own.out_drop(own.Wo(context.flatten(1)))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class PooledLlamaLayer(PooledLayer):
    """The layer of Llama, Mistral, Qwen2, Qwen3 and Gemma."""

    self_attn: Any
    input_layernorm: Any
    post_attention_layernorm: Any
    mlp: Any

    def pooled_forward(self, row: Tensor, pooled: PooledTokens, angles: Angles | None) -> Tensor:
        """Apply the layer."""
        assert angles is not None
        own, x, normed = self.self_attn, pooled.select(row), self.input_layernorm(row)
        projected = own.q_proj(pooled.select(normed)), own.k_proj(normed), own.v_proj(normed)
        query, key, value = (tensor.unflatten(-1, (-1, own.head_dim)) for tensor in projected)
        if hasattr(own, "q_norm"):
            query, key = own.q_norm(query), own.k_norm(key)
        query = rotated(query, pooled.select_angles(angles))
        key = rotated(key, angles)
        context = attend(
            pooled.boundaries,
            *of_one_precision(query, key, value),
            scale=own.scaling,
            window=sliding_window(own),
            causal=True,
        )
        x = x + own.o_proj(context.flatten(1))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


def pooled_of(boundaries: Boundaries) -> PooledTokens:
    """Return the pooled tokens of a packed row."""
    assert boundaries.pooled is not None
    return boundaries.pooled


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """Return rows `[tokens, heads, size]` with rotary positions (Su et al. 2021)."""
    cosine, sine = (table[0, :, None] for table in angles)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def sliding_window(attention: Any) -> int:
    """Return the window of a layer's attention; 0 if it has none."""
    window = getattr(attention, "sliding_window", None)
    if attention.config.model_type == "mistral":
        window = attention.config.sliding_window
    return int(window or 0)


POOLED = {"bert": PooledBertLayer, "modernbert": PooledModernBertLayer, "llama": PooledLlamaLayer}


def averages(model: PreTrainedModel) -> bool:
    """Return whether the head reads the mean of all tokens of a pair."""
    # The config of a modular reranker is that of its encoder, which may have had another head.
    default = getattr(model.config, "classifier_pooling", "cls")
    return bool(getattr(model, "pooling", default) == "mean")


def pools_in_last_layer(model: PreTrainedModel) -> bool:
    """Return whether the last layer of a model can compute the pooled tokens alone."""
    family = family_of(model.config)
    if family.layers is None or averages(model):
        return False
    # The first token of a pair in a window would need the boundaries of its keys.
    last = layer_lists(model)[0][-1]
    return family.causal or not (hasattr(last, "attn") and sliding_window(last.attn))


def pool_last_layer(model: PreTrainedModel) -> None:
    """Let the last layer of a model compute the pooled tokens alone, in place, if it can.

    The name of its class does not change: FSDP finds layers by it.
    """
    if pools_in_last_layer(model):
        last: Any = layer_lists(model)[0][-1]
        stock: Any = type(last)
        last.__class__ = pooled_class(stock, POOLED[str(family_of(model.config).layers)])


@cache
def pooled_class(stock: Any, pooled: Any) -> Any:
    """Return the class of a stock layer that returns pooled tokens."""
    return type(stock.__name__, (pooled, stock), {"__module__": stock.__module__})


def layer_lists(model: PreTrainedModel) -> list[nn.ModuleList]:
    """Return the lists of layers of a model's backbone."""
    return [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
