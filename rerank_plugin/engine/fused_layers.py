"""Fuse layers for scoring on a CPU: packed weights, activation and residual in products.

A stock layer multiplies by query, key and value separately, writes every product to memory and
reads it again for its bias, activation or residual. Here oneDNN, through the operators that
torch's compiler uses, does all of it while a block of the product is still in the cache. A row of
a product does not depend on the number of rows, so that a pair's score does not depend on its
neighbours.
"""

import platform
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.engine.attention import attend
from rerank_plugin.engine.boundaries import Boundaries
from rerank_plugin.engine.cpu_rows import norm_and_rotate
from rerank_plugin.engine.packed_linear import ACTIVATIONS, Activation, PackedLinear
from rerank_plugin.model.adapters import ActiveAdapter, low_rank_factors
from rerank_plugin.model.device import onednn_takes
from rerank_plugin.model.families import family_of


class FusedBertLayer(nn.Module):
    """A layer of BERT, RoBERTa, XLM-R, ELECTRA …, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        active: The active adapter.
        activation: That of the feed-forward network.
    """

    def __init__(self, layer: Any, active: ActiveAdapter, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        attention = layer.attention
        self.scale = float(attention.self.scaling)
        self.head_size = int(attention.self.attention_head_size)
        self.qkv = PackedLinear(
            attention.self.query, attention.self.key, attention.self.value, active=active
        )
        self.attention_out = PackedLinear(attention.output.dense, active=active)
        self.attention_norm = attention.output.LayerNorm
        self.up = PackedLinear(layer.intermediate.dense, active=active)
        self.down = PackedLinear(layer.output.dense, active=active)
        self.norm = layer.output.LayerNorm

    def forward(self, hidden_states: Tensor, *_: Any, boundaries: Boundaries, **__: Any) -> Tensor:
        """Apply the layer, `[1, tokens, hidden]` to the same."""
        x = hidden_states[0]
        qkv = self.qkv(x).view(x.shape[0], 3, -1, self.head_size)
        context = attend(boundaries, *qkv.unbind(1), scale=self.scale).reshape(x.shape[0], -1)
        x = self.attention_norm(self.attention_out.combine(context, x, "add"))
        out: Tensor = self.norm(self.down.combine(self.up(x, self.activation), x, "add"))
        return out[None]


class FusedModernBertLayer(nn.Module):
    """A layer of ModernBERT, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        active: The active adapter.
        activation: That of the feed-forward network.
    """

    def __init__(self, layer: Any, active: ActiveAdapter, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.attention_type = layer.attention_type
        self.head_size = int(layer.attn.head_dim)
        self.window = int(layer.attn.sliding_window or 0)
        self.attention_norm = layer.attn_norm
        self.qkv = PackedLinear(layer.attn.Wqkv, active=active)
        self.attention_out = PackedLinear(layer.attn.Wo, active=active)
        self.norm = layer.mlp_norm
        half = layer.mlp.Wi.out_features // 2
        self.up = PackedLinear(layer.mlp.Wi, active=active, rows=slice(None, half))
        self.gate = PackedLinear(layer.mlp.Wi, active=active, rows=slice(half, None))
        self.down = PackedLinear(layer.mlp.Wo, active=active)

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor],
        boundaries: Boundaries,
        **__: Any,
    ) -> Tensor:
        """Apply the layer, `[1, tokens, hidden]` to the same."""
        x = hidden_states[0]
        qkv = self.qkv(self.attention_norm(x)).view(x.shape[0], 3, -1, self.head_size)
        rotated = norm_and_rotate(qkv[:, :2].flatten(1, 2), angles=position_embeddings)
        query, key = rotated.unflatten(1, (2, -1)).unbind(1)
        scale = self.head_size**-0.5
        context = attend(boundaries, query, key, qkv[:, 2], scale=scale, window=self.window)
        x = self.attention_out.combine(context.reshape(x.shape[0], -1), x, "add")
        y = self.norm(x)
        up = self.up(y, self.activation)
        x = self.down.combine(self.gate.combine(y, up, "mul"), x, "add")
        return x[None]


class FusedLlamaLayer(nn.Module):
    """A layer of Llama, Mistral, Qwen2, Qwen3 or Gemma, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        active: The active adapter.
        activation: That of the feed-forward network.
    """

    def __init__(self, layer: Any, active: ActiveAdapter, activation: Activation) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.activation = activation
        self.head_size = int(attention.head_dim)
        self.key_heads = attention.k_proj.out_features // self.head_size
        self.scale = float(attention.scaling)
        self.window = sliding_window(attention)
        self.attention_norm = RmsNorm(layer.input_layernorm)
        self.qkv = PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj, active=active)
        #: The weight and the epsilon of the norm of queries and keys.
        self.head_norm: tuple[Tensor | None, float] = (None, 0.0)
        if hasattr(attention, "q_norm"):
            heads = attention.q_proj.out_features // self.head_size
            norms = [attention.q_norm] * heads + [attention.k_norm] * self.key_heads
            norm = RmsNorm(*norms)
            self.head_norm = norm.weight, norm.epsilon
        self.attention_out = PackedLinear(attention.o_proj, active=active)
        self.norm = RmsNorm(layer.post_attention_layernorm)
        self.gate = PackedLinear(mlp.gate_proj, active=active)
        self.up = PackedLinear(mlp.up_proj, active=active)
        self.down = PackedLinear(mlp.down_proj, active=active)

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor],
        boundaries: Boundaries,
        **__: Any,
    ) -> Tensor:
        """Apply the layer, `[1, tokens, hidden]` to the same."""
        x = hidden_states[0]
        qkv = self.qkv(self.attention_norm(x)).view(x.shape[0], -1, self.head_size)
        rotated = norm_and_rotate(qkv[:, : -self.key_heads], *self.head_norm, position_embeddings)
        query, key = rotated[:, : -self.key_heads], rotated[:, -self.key_heads :]
        value = qkv[:, -self.key_heads :]
        context = attend(
            boundaries, query, key, value, scale=self.scale, window=self.window, causal=True
        )
        x = self.attention_out.combine(context.reshape(x.shape[0], -1), x, "add")
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
        return norm_and_rotate(x[:, None], self.weight, self.epsilon)[:, 0]


def sliding_window(attention: Any) -> int:
    """Return the window of a layer's attention; 0 if it has none."""
    window = getattr(attention, "sliding_window", None)
    if attention.config.model_type == "mistral":
        window = attention.config.sliding_window
    return int(window or 0)


FUSED = {"bert": FusedBertLayer, "modernbert": FusedModernBertLayer, "llama": FusedLlamaLayer}


def fuse_layers(model: PreTrainedModel, active: ActiveAdapter) -> bool:
    """Replace a model's layers by faster ones, in place, if its family has any; returns whether.

    For a model on the CPU that takes packed rows, is not trained any more and is not saved.
    """
    activation = activation_of(model)
    if activation is None or not takes_fused_layers(model):
        return False
    fused = FUSED[str(family_of(model.config).layers)]
    for layers in layer_lists(model):
        for index, layer in enumerate(layers):
            layers[index] = fused(layer, active, activation).eval()
    return True


def takes_fused_layers(model: PreTrainedModel) -> bool:
    """Return whether the layers of a model that takes packed rows can be fused on this CPU."""
    if family_of(model.config).layers is None or activation_of(model) is None:
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    lists = layer_lists(model)
    # The model's dtype may be that of its head, which is float32.
    precisions = {weight.dtype for layers in lists for weight in layers.parameters()}
    # An adapter may be more than a low-rank product.
    adapted = (low_rank_factors(layer) is not None for layer in linear_layers(lists))
    return all(map(onednn_takes, precisions)) and all(adapted)


def activation_of(model: PreTrainedModel) -> Activation | None:
    """Return the activation function of a model's layers, if fused layers have it."""
    config = model.config
    name = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    return ACTIVATIONS.get(str(name))


def layer_lists(model: PreTrainedModel) -> list[nn.ModuleList]:
    """Return the lists of layers of a model's backbone."""
    return [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]


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
