"""Fuse encoder layers for scoring on a CPU: packed weights, activation and residual in products.

A stock layer multiplies by query, key and value separately, writes every product to memory and
reads it again for its bias, activation or residual. Here oneDNN, through the operators that
torch's compiler uses, does all of it while a block of the product is still in the cache. A row of
a product does not depend on the number of rows, so that a pair's score does not depend on its
neighbours.
"""

import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.engine.attention import attend
from rerank_plugin.engine.boundaries import Boundaries
from rerank_plugin.model.adapters import ActiveAdapter, low_rank_factors
from rerank_plugin.model.device import onednn_takes
from rerank_plugin.model.families import family_of

#: The number of rows that weights are packed for; any number can be multiplied.
PACKED_FOR = 4096

#: oneDNN compiles a product for every new number of rows. In the thousands that takes as long as
#: the product itself, unless the number is a multiple of this.
ROW_MULTIPLE = 32


class PackedLinear:
    """The product with the weights of linear layers, side by side, in oneDNN's layout.

    The products of adapters are not part of it: that of the active one is added.

    Args:
        layers: Linear layers of one input, with or without LoRA adapters.
        active: The active adapter.
        rows: The outputs of the layers that are computed.
    """

    def __init__(
        self, *layers: nn.Module, active: ActiveAdapter, rows: slice = slice(None)
    ) -> None:
        stock: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        weight = torch.cat([layer.weight.detach()[rows] for layer in stock])
        biases = [layer.bias.detach()[rows] for layer in stock if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)
        self.active = active
        self.additions = additions(layers, rows)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """Return the product, `[tokens, out]`, followed by an exact `gelu` if chosen."""
        addition = self.addition(x)
        if addition is not None:
            out = self._binary(x, addition, "add")
            return nn.functional.gelu(out) if activation == "gelu" else out
        algorithm = "none" if activation == "gelu" else ""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, activation, [], algorithm
        )
        return product

    def combine(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """Return the product plus (`add`) or times (`mul`) another tensor, `[tokens, out]`."""
        addition = self.addition(x)
        if addition is None:
            return self._binary(x, other, operation)
        if operation == "add":
            return self._binary(x, addition + other, operation)
        return self._binary(x, addition, "add") * other

    def addition(self, x: Tensor) -> Tensor | None:
        """Return the product of the active adapter, `[tokens, out]`, if it has one."""
        factors = self.additions.get(self.active.name) if self.active.name else None
        return None if factors is None else x @ factors[0] @ factors[1]

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, operation
        )
        return out


def additions(layers: Sequence[nn.Module], rows: slice) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors of each adapter for layers side by side, by PEFT's names of adapters.

    The first factor is `[in, ranks]`, those of all layers side by side, the second `[ranks, out]`,
    zero between the ranks of one layer and the outputs of another.
    """
    by_layer = [low_rank_factors(layer) or {} for layer in layers]
    counts: list[Any] = [layer.out_features for layer in layers]
    widths = [len(range(count)[rows]) for count in counts]
    factors = {}
    for name in dict.fromkeys(name for layer_factors in by_layer for name in layer_factors):
        adapter = [layer_factors.get(name) for layer_factors in by_layer]
        downs = [pair[0] for pair in adapter if pair]
        ups = [
            pair[1][rows] if pair else downs[0].new_zeros(width, 0)
            for pair, width in zip(adapter, widths, strict=True)
        ]
        first = torch.cat(downs).detach().T.contiguous()
        second = torch.block_diag(*ups).detach().T.contiguous()
        factors[name] = first, second.to(first.dtype)
    return factors


class FusedBertLayer(nn.Module):
    """A layer of BERT, RoBERTa, XLM-R, ELECTRA …, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        active: The active adapter.
    """

    def __init__(self, layer: Any, active: ActiveAdapter) -> None:
        super().__init__()
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
        out: Tensor = self.norm(self.down.combine(self.up(x, "gelu"), x, "add"))
        return out[None]


class FusedModernBertLayer(nn.Module):
    """A layer of ModernBERT, for packed rows alone.

    Args:
        layer: The stock layer with the weights.
        active: The active adapter.
    """

    def __init__(self, layer: Any, active: ActiveAdapter) -> None:
        super().__init__()
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
        query, key = rotate(qkv[:, :2], *position_embeddings).unbind(1)
        scale = self.head_size**-0.5
        context = attend(boundaries, query, key, qkv[:, 2], scale=scale, window=self.window)
        x = self.attention_out.combine(context.reshape(x.shape[0], -1), x, "add")
        y = self.norm(x)
        x = self.down.combine(self.gate.combine(y, self.up(y, "gelu"), "mul"), x, "add")
        return x[None]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary positions (Su et al. 2021, arXiv:2104.09864) to `[tokens, 2, heads, head size]`.

    Computed in float32, as in the stock layer; cosine and sine are `[1, tokens, head size]`.
    """
    half = x.shape[-1] // 2
    cosine, sine = (table[0, :, None, None, :half].float() for table in (cosine, sine))
    first, second = x[..., :half].float(), x[..., half:].float()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[..., :half] = first * cosine - second * sine
    out[..., half:] = second * cosine + first * sine
    return out


FUSED = {"bert": FusedBertLayer, "modernbert": FusedModernBertLayer}


def fuse_layers(model: PreTrainedModel, active: ActiveAdapter) -> bool:
    """Replace a model's layers by faster ones, in place, if its family has any; returns whether.

    For a model on the CPU that takes packed rows, is not trained any more and is not saved.
    """
    config = model.config
    kind = family_of(config).layers
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if kind is None or activation != "gelu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    # The model's dtype may be that of its head, which is float32.
    precisions = {weight.dtype for layers in lists for weight in layers.parameters()}
    if not all(map(onednn_takes, precisions)):
        return False
    if any(low_rank_factors(layer) is None for layer in linear_layers(lists)):
        # The adapter is more than a low-rank product.
        return False
    for layers in lists:
        for index, layer in enumerate(layers):
            layers[index] = FUSED[kind](layer, active).eval()
    return True


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
