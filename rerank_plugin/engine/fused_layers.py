"""Encoder layers for scoring on a CPU: weights packed once, activation and residual in the product.

A stock layer multiplies by query, key and value apart, writes every product to memory and reads it
again for its bias, activation or residual. Here oneDNN, through the operators that torch's own
compiler uses, does all of it while a block of the product is still in the cache. A row of a
product does not depend on how many rows there are, so that a pair's score does not depend on its
neighbours.
"""

import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.engine.attention import Boundaries, attend
from rerank_plugin.model.adapters import InUse, low_rank_parts
from rerank_plugin.model.device import onednn_takes
from rerank_plugin.model.families import family_of

#: Rows for which weights are packed; any number can be multiplied.
PACKED_FOR = 4096

#: oneDNN compiles a product for every number of rows that it has not seen yet; in the thousands it
#: takes as long as the product itself, unless they are a multiple of this.
ROW_MULTIPLE = 32


class PackedLinear:
    """The product with one or several linear layers' weights, side by side, in oneDNN's layout.

    What adapters add to the layers is not part of it: it is added for the one that is in use.

    Args:
        layers: Linear layers of one input, with or without LoRA adapters.
        in_use: Says which adapter is in use.
        rows: Which of the layers' outputs are wanted.
    """

    def __init__(self, *layers: nn.Module, in_use: InUse, rows: slice = slice(None)) -> None:
        stock: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        weight = torch.cat([layer.weight.detach()[rows] for layer in stock])
        biases = [layer.bias.detach()[rows] for layer in stock if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)
        self.in_use = in_use
        self.additions = additions(layers, rows)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """`[tokens, out]`, with `gelu` (by its error function) behind it if asked for."""
        addition = self.addition(x)
        if addition is not None:
            out = self._binary(x, addition, "add")
            return nn.functional.gelu(out) if activation == "gelu" else out
        algorithm = "none" if activation == "gelu" else ""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, activation, [], algorithm
        )
        return product

    def combine(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        """The product plus (`add`) or times (`mul`) another tensor, `[tokens, out]`."""
        addition = self.addition(x)
        if addition is None:
            return self._binary(x, other, how)
        if how == "add":
            return self._binary(x, addition + other, how)
        return self._binary(x, addition, "add") * other

    def addition(self, x: Tensor) -> Tensor | None:
        """What the adapter in use adds, `[tokens, out]`; None if there is nothing."""
        parts = self.additions.get(self.in_use.place) if self.in_use.place else None
        return None if parts is None else x @ parts[0] @ parts[1]

    def _binary(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, how
        )
        return out


def additions(layers: Sequence[nn.Module], rows: slice) -> dict[str, tuple[Tensor, Tensor]]:
    """What adapters add to layers side by side, as two factors for each adapter's place.

    The first factor is `[in, ranks]`, that of all layers one beside the other, the second
    `[ranks, out]`, zero where a layer's ranks meet another layer's outputs.
    """
    parts = [low_rank_parts(layer) or {} for layer in layers]
    counts: list[Any] = [layer.out_features for layer in layers]
    widths = [len(range(count)[rows]) for count in counts]
    found = {}
    for place in dict.fromkeys(place for part in parts for place in part):
        own = [part.get(place) for part in parts]
        downs = [factors[0] for factors in own if factors]
        ups = [
            factors[1][rows] if factors else downs[0].new_zeros(width, 0)
            for factors, width in zip(own, widths, strict=True)
        ]
        first = torch.cat(downs).detach().T.contiguous()
        second = torch.block_diag(*ups).detach().T.contiguous()
        found[place] = first, second.to(first.dtype)
    return found


class FusedBertLayer(nn.Module):
    """A layer of BERT, RoBERTa, XLM-R, ELECTRA …, for packed rows alone.

    Args:
        layer: The stock layer whose weights are taken.
        in_use: Says which adapter is in use.
    """

    def __init__(self, layer: Any, in_use: InUse) -> None:
        super().__init__()
        attention = layer.attention
        self.scale = float(attention.self.scaling)
        self.head_size = int(attention.self.attention_head_size)
        own = attention.self
        self.qkv = PackedLinear(own.query, own.key, own.value, in_use=in_use)
        self.attention_out = PackedLinear(attention.output.dense, in_use=in_use)
        self.attention_norm = attention.output.LayerNorm
        self.up = PackedLinear(layer.intermediate.dense, in_use=in_use)
        self.down = PackedLinear(layer.output.dense, in_use=in_use)
        self.norm = layer.output.LayerNorm

    def forward(self, hidden_states: Tensor, *_: Any, boundaries: Boundaries, **__: Any) -> Tensor:
        """`[1, tokens, hidden]` to the same."""
        x = hidden_states[0]
        qkv = self.qkv(x).view(x.shape[0], 3, -1, self.head_size)
        context = attend(boundaries, *qkv.unbind(1), scale=self.scale).reshape(x.shape[0], -1)
        x = self.attention_norm(self.attention_out.combine(context, x, "add"))
        out: Tensor = self.norm(self.down.combine(self.up(x, "gelu"), x, "add"))
        return out[None]


class FusedModernBertLayer(nn.Module):
    """A layer of ModernBERT, for packed rows alone.

    Args:
        layer: The stock layer whose weights are taken.
        in_use: Says which adapter is in use.
    """

    def __init__(self, layer: Any, in_use: InUse) -> None:
        super().__init__()
        self.attention_type = layer.attention_type
        self.head_size = int(layer.attn.head_dim)
        self.window = int(layer.attn.sliding_window or 0)
        self.attention_norm = layer.attn_norm
        self.qkv = PackedLinear(layer.attn.Wqkv, in_use=in_use)
        self.attention_out = PackedLinear(layer.attn.Wo, in_use=in_use)
        self.norm = layer.mlp_norm
        half = layer.mlp.Wi.out_features // 2
        self.up = PackedLinear(layer.mlp.Wi, in_use=in_use, rows=slice(None, half))
        self.gate = PackedLinear(layer.mlp.Wi, in_use=in_use, rows=slice(half, None))
        self.down = PackedLinear(layer.mlp.Wo, in_use=in_use)

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor],
        boundaries: Boundaries,
        **__: Any,
    ) -> Tensor:
        """`[1, tokens, hidden]` to the same."""
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
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) on `[tokens, 2, heads, head size]`.

    Computed in float32, as the stock layer does; cosine and sine are `[1, tokens, head size]`.
    """
    half = x.shape[-1] // 2
    cosine, sine = (part[0, :, None, None, :half].float() for part in (cosine, sine))
    first, second = x[..., :half].float(), x[..., half:].float()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[..., :half] = first * cosine - second * sine
    out[..., half:] = second * cosine + first * sine
    return out


FUSED = {"bert": FusedBertLayer, "modernbert": FusedModernBertLayer}


def fuse_layers(model: PreTrainedModel, in_use: InUse) -> bool:
    """Swap a model's layers for fused ones, in place, where there are faster ones; says if so.

    For a model on the CPU that takes packed rows, is not trained any more and is not saved.
    """
    config = model.config
    kind = family_of(config).layers
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if kind is None or activation != "gelu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    # The model's own dtype may be that of its head, which is float32.
    precisions = {weight.dtype for layers in lists for weight in layers.parameters()}
    if not all(map(onednn_takes, precisions)):
        return False
    if any(low_rank_parts(layer) is None for layer in linear_layers(lists)):
        # Of a kind that is more than a product beside the layer's own.
        return False
    for layers in lists:
        for place, layer in enumerate(layers):
            layers[place] = FUSED[kind](layer, in_use).eval()
    return True


def linear_layers(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The linear layers of modules, those with adapters as what they are wrapped in.

    So is a module of which adapters have copies, whatever is in it (PEFT's `modules_to_save`).
    """
    for module in modules:
        wrapped = hasattr(module, "base_layer") or hasattr(module, "original_module")
        if isinstance(module, nn.Linear) or wrapped:
            yield module
        else:
            yield from linear_layers(module.children())
