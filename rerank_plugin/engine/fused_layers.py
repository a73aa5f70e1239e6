"""Fuse layers for scoring on a CPU: one product for queries, keys and values, and fewer passes.

A stock layer multiplies by query, key and value separately, writes every product to memory and
reads it again for its bias, activation or residual. Here they are part of a product, or are done in
place.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.engine.attention import attend
from rerank_plugin.engine.boundaries import Boundaries
from rerank_plugin.engine.cpu.int8_products import SIZE_MULTIPLE, Int8Product, is_int8_supported
from rerank_plugin.engine.cpu.products import (
    ACTIVATIONS,
    Activation,
    LinearProduct,
    product_of,
    takes_products,
)
from rerank_plugin.engine.cpu.rows import norm_and_rotate
from rerank_plugin.engine.last_layer import (
    layer_lists,
    pooled_of,
    pools_in_last_layer,
    sliding_window,
)
from rerank_plugin.engine.packing import takes_packed_rows
from rerank_plugin.errors import OptionError
from rerank_plugin.model.adapters import ActiveAdapter, low_rank_factors
from rerank_plugin.model.families import family_of

#: Returns the product with the weights of linear layers, as `product_of` does.
MakeProduct = Callable[..., LinearProduct]


class FusedBertLayer(nn.Module):
    """A layer of BERT, RoBERTa, XLM-R, ELECTRA …, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        product: Returns the product with the weights of linear layers.
        activation: That of the feed-forward network.
        pools: Whether it is the last layer, which returns the pooled tokens alone.
    """

    def __init__(
        self, layer: Any, product: MakeProduct, activation: Activation, *, pools: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        attention = layer.attention
        self.scale = float(attention.self.scaling)
        self.head_size = int(attention.self.attention_head_size)
        own = attention.self
        self.query = product(own.query) if pools else None
        products = (own.key, own.value) if pools else (own.query, own.key, own.value)
        self.qkv = product(*products)
        self.attention_out = product(attention.output.dense)
        self.attention_norm = attention.output.LayerNorm
        self.up = product(layer.intermediate.dense)
        self.down = product(layer.output.dense)
        self.norm = layer.output.LayerNorm

    def forward(self, hidden_states: Tensor, *_: Any, boundaries: Boundaries, **__: Any) -> Tensor:
        """Apply the layer, `[1, tokens, hidden]` to the same, or to `[1, pooled, hidden]`."""
        x = hidden_states[0]
        qkv = self.qkv(x).unflatten(1, (-1, self.head_size))
        if self.query is None:
            query, key, value = qkv.chunk(3, dim=1)
        else:
            key, value = qkv.chunk(2, dim=1)
            pooled = pooled_of(boundaries)
            x, boundaries = pooled.select(x), pooled.boundaries
            query = self.query(x).unflatten(1, (-1, self.head_size))
        context = attend(boundaries, query, key, value, scale=self.scale).flatten(1)
        x = self.attention_out.add_and_norm(context, x, self.attention_norm)
        return self.up.feed_forward(x, self.activation, self.down, self.norm)[None]


class FusedModernBertLayer(nn.Module):
    """A layer of ModernBERT, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        product: Returns the product with the weights of linear layers.
        activation: That of the feed-forward network.
        pools: Whether it is the last layer, which returns the pooled tokens alone.
    """

    def __init__(
        self, layer: Any, product: MakeProduct, activation: Activation, *, pools: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        self.attention_type = layer.attention_type
        self.head_size = int(layer.attn.head_dim)
        self.window = int(layer.attn.sliding_window or 0)
        self.attention_norm = layer.attn_norm
        joint, size = layer.attn.Wqkv, layer.attn.Wqkv.out_features // 3
        self.heads = size // self.head_size
        self.query = product(joint, rows=slice(size)) if pools else None
        rows = slice(size if pools else 0, None)
        self.qkv = product(joint, rows=rows)
        self.attention_out = product(layer.attn.Wo)
        self.norm = layer.mlp_norm
        half = layer.mlp.Wi.out_features // 2
        self.up = product(layer.mlp.Wi, rows=slice(None, half))
        self.gate = product(layer.mlp.Wi, rows=slice(half, None))
        self.down = product(layer.mlp.Wo)

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor],
        boundaries: Boundaries,
        **__: Any,
    ) -> Tensor:
        """Apply the layer, `[1, tokens, hidden]` to the same, or to `[1, pooled, hidden]`."""
        x = hidden_states[0]
        y = self.attention_norm(x)
        qkv = self.qkv(y).unflatten(1, (-1, self.head_size))
        rotated, value = qkv[:, : -self.heads], qkv[:, -self.heads :]
        rotated = norm_and_rotate(rotated, angles=position_embeddings)
        if self.query is None:
            query, key = rotated.chunk(2, dim=1)
        else:
            key, pooled = rotated, pooled_of(boundaries)
            x, boundaries = pooled.select(x), pooled.boundaries
            query = self.query(pooled.select(y)).unflatten(1, (-1, self.head_size))
            query = norm_and_rotate(query, angles=pooled.select_angles(position_embeddings))
        scale = self.head_size**-0.5
        context = attend(boundaries, query, key, value, scale=scale, window=self.window)
        x = self.attention_out.combine(context.flatten(1), x, "add")
        y = self.norm(x)
        up = self.up(y, self.activation)
        x = self.down.combine(self.gate.combine(y, up, "mul"), x, "add")
        return x[None]


class FusedLlamaLayer(nn.Module):
    """A layer of Llama, Mistral, Qwen2, Qwen3 or Gemma, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        product: Returns the product with the weights of linear layers.
        activation: That of the feed-forward network.
        pools: Whether it is the last layer, which returns the pooled tokens alone.
    """

    def __init__(
        self, layer: Any, product: MakeProduct, activation: Activation, *, pools: bool
    ) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        #: Older versions of transformers choose a mask by it.
        self.attention_type = getattr(layer, "attention_type", None)
        self.activation = activation
        self.head_size = int(attention.head_dim)
        self.key_heads = attention.k_proj.out_features // self.head_size
        self.scale = float(attention.scaling)
        self.window = sliding_window(attention)
        self.attention_norm = RmsNorm(layer.input_layernorm)
        products = attention.q_proj, attention.k_proj, attention.v_proj
        self.query = product(products[0]) if pools else None
        self.qkv = product(*products[1 if pools else 0 :])
        #: The weights and the epsilons of the norms of the heads in front of the values, and of
        #: pooled queries.
        self.head_norm: tuple[Tensor | None, float] = (None, 0.0)
        self.query_norm: tuple[Tensor | None, float] = (None, 0.0)
        if hasattr(attention, "q_norm"):
            heads = attention.q_proj.out_features // self.head_size
            norms = [attention.q_norm] * heads, [attention.k_norm] * self.key_heads
            self.query_norm = RmsNorm(*norms[0]).settings
            self.head_norm = RmsNorm(*([] if pools else norms[0]), *norms[1]).settings
        self.attention_out = product(attention.o_proj)
        self.norm = RmsNorm(layer.post_attention_layernorm)
        self.gate = product(mlp.gate_proj)
        self.up = product(mlp.up_proj)
        self.down = product(mlp.down_proj)

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor],
        boundaries: Boundaries,
        **__: Any,
    ) -> Tensor:
        """Apply the layer, `[1, tokens, hidden]` to the same, or to `[1, pooled, hidden]`."""
        x = hidden_states[0]
        y = self.attention_norm(x)
        qkv = self.qkv(y).unflatten(1, (-1, self.head_size))
        rotated, value = qkv[:, : -self.key_heads], qkv[:, -self.key_heads :]
        rotated = norm_and_rotate(rotated, *self.head_norm, position_embeddings)
        if self.query is None:
            query, key = rotated[:, : -self.key_heads], rotated[:, -self.key_heads :]
        else:
            key, pooled = rotated, pooled_of(boundaries)
            x, boundaries = pooled.select(x), pooled.boundaries
            query = self.query(pooled.select(y)).unflatten(1, (-1, self.head_size))
            angles = pooled.select_angles(position_embeddings)
            query = norm_and_rotate(query, *self.query_norm, angles)
        context = attend(
            boundaries, query, key, value, scale=self.scale, window=self.window, causal=True
        )
        x = self.attention_out.combine(context.flatten(1), x, "add")
        y = self.norm(x)
        gate = self.gate(y, self.activation)
        x = self.down.combine(self.up.combine(y, gate, "mul"), x, "add")
        return x[None]


class RmsNorm(nn.Module):
    """The norm of the root mean square.

    Args:
        norms: The stock norm with the weight, or that of each head; Gemma adds 1 to it.
    """

    def __init__(self, *norms: Any) -> None:
        super().__init__()
        weight = torch.stack([norm.weight.detach().float() for norm in norms])
        self.weight = weight + 1 if type(norms[0]).__name__.startswith("Gemma") else weight
        self.epsilon = float(getattr(norms[0], "variance_epsilon", getattr(norms[0], "eps", 0.0)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the norm, `[tokens, size]` to the same."""
        return norm_and_rotate(x[:, None], *self.settings)[:, 0]

    @property
    def settings(self) -> tuple[Tensor, float]:
        """Return the weights and the epsilon, as `norm_and_rotate` takes them."""
        return self.weight, self.epsilon


FUSED = {"bert": FusedBertLayer, "modernbert": FusedModernBertLayer, "llama": FusedLlamaLayer}


def fuse_layers(model: PreTrainedModel, active: ActiveAdapter, *, int8: bool = False) -> bool:
    """Replace a model's layers by faster ones, in place, if its family has any; returns whether.

    For a model on the CPU that takes packed rows, is not trained any more and is not saved.

    Args:
        model: The model.
        active: The active adapter.
        int8: Whether products have weights of 8 bits.
    """
    product = partial(product_of, active=active, kind=Int8Product if int8 else None)
    activation = activation_of(model)
    if activation is None or not takes_fused_layers(model):
        return False
    fused = FUSED[str(family_of(model.config).layers)]
    for layers in layer_lists(model):
        for index, layer in enumerate(layers):
            is_last = index == len(layers) - 1
            pools = is_last and pools_in_last_layer(model)
            layers[index] = fused(layer, product, activation, pools=pools).eval()
    return True


def takes_fused_layers(model: PreTrainedModel) -> bool:
    """Return whether the layers of a model that takes packed rows can be fused on this CPU."""
    if family_of(model.config).layers is None or activation_of(model) is None:
        return False
    lists = layer_lists(model)
    # The model's dtype may be that of its head, which is float32.
    precisions = {weight.dtype for layers in lists for weight in layers.parameters()}
    # An adapter may be more than a low-rank product.
    adapted = (low_rank_factors(layer) is not None for layer in linear_layers(lists))
    return all(map(takes_products, precisions)) and all(adapted)


def check_int8(model: PreTrainedModel) -> None:
    """Check that the layers of a model can be fused with weights of 8 bits on this machine.

    Raises:
        OptionError: they cannot; the reason is given.
    """
    problem = int8_problem(model)
    if problem is not None:
        raise OptionError("dtype", f"{problem}; use auto")


def int8_problem(model: PreTrainedModel) -> str | None:
    """Return why the layers of a model cannot be fused with weights of 8 bits on this machine."""
    if not is_int8_supported():
        return "int8 needs an x86 CPU with AVX2 and the compiled part of this package"
    if not takes_packed_rows(model) or not takes_fused_layers(model):
        return f"int8 is not supported for this {model.config.model_type} model"
    for layer in linear_layers(layer_lists(model)):
        stock: Any = getattr(layer, "base_layer", layer)
        if stock.out_features % SIZE_MULTIPLE or stock.in_features % SIZE_MULTIPLE:
            sizes = f"{stock.out_features}×{stock.in_features}"
            return f"int8 needs weights whose sizes are multiples of {SIZE_MULTIPLE}, not {sizes}"
    return None


def activation_of(model: PreTrainedModel) -> Activation | None:
    """Return the activation function of a model's layers, if fused layers have it."""
    config = model.config
    name = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    return ACTIVATIONS.get(str(name))


def linear_layers(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the linear layers of modules, those with adapters together with their wrapper.

    A module that adapters have copies of (PEFT's `modules_to_save`) counts as one, too.
    """
    for module in modules:
        wrapped = hasattr(module, "base_layer") or hasattr(module, "original_module")
        if isinstance(module, nn.Linear) or wrapped:
            yield module
        else:
            yield from linear_layers(module.children())
