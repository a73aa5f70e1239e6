"""Encoder layers for scoring on a CPU: weights packed once, activation and residual in the product.

A stock layer multiplies by query, key and value apart, writes every product to memory and reads it
again for its bias, activation or residual. Here oneDNN, through the operators that torch's own
compiler uses, does all of it while a block of the product is still in the cache. A row of a
product does not depend on how many rows there are, so that a pair's score does not depend on its
neighbours.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.attention import Boundaries, attend
from rerank_plugin.families import family_of

#: Rows for which weights are packed; any number can be multiplied.
PACKED_FOR = 4096

#: oneDNN compiles a product for every number of rows that it has not seen yet; in the thousands it
#: takes as long as the product itself, unless they are a multiple of this.
ROW_MULTIPLE = 32


class PackedLinear:
    """The product with one or several linear layers' weights, side by side, in oneDNN's layout."""

    def __init__(self, *layers: nn.Linear, rows: slice = slice(None)) -> None:
        weight = torch.cat([layer.weight.detach()[rows] for layer in layers])
        biases = [layer.bias.detach()[rows] for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """`[tokens, out]`, with `gelu` (by its error function) behind it if asked for."""
        algorithm = "none" if activation == "gelu" else ""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, activation, [], algorithm
        )
        return out

    def combine(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        """The product plus (`add`) or times (`mul`) another tensor, `[tokens, out]`."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, how
        )
        return out


class FusedBertLayer(nn.Module):
    """A layer of BERT, RoBERTa, XLM-R, ELECTRA …, for packed rows alone.

    Args:
        layer: The stock layer whose weights are taken.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention
        self.scale = float(attention.self.scaling)
        self.head_size = int(attention.self.attention_head_size)
        self.qkv = PackedLinear(attention.self.query, attention.self.key, attention.self.value)
        self.attention_out = PackedLinear(attention.output.dense)
        self.attention_norm = attention.output.LayerNorm
        self.up = PackedLinear(layer.intermediate.dense)
        self.down = PackedLinear(layer.output.dense)
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
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention_type = layer.attention_type
        self.head_size = int(layer.attn.head_dim)
        self.window = int(layer.attn.sliding_window or 0)
        self.attention_norm = layer.attn_norm
        self.qkv = PackedLinear(layer.attn.Wqkv)
        self.attention_out = PackedLinear(layer.attn.Wo)
        self.norm = layer.mlp_norm
        half = layer.mlp.Wi.out_features // 2
        self.up = PackedLinear(layer.mlp.Wi, rows=slice(None, half))
        self.gate = PackedLinear(layer.mlp.Wi, rows=slice(half, None))
        self.down = PackedLinear(layer.mlp.Wo)

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


def fuse_layers(model: PreTrainedModel) -> bool:
    """Swap a model's layers for fused ones, in place, where there are faster ones; says if so.

    For a model on the CPU that takes packed rows, is not trained any more and is not saved.
    """
    config = model.config
    kind = family_of(config).layers
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    fits = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    if kind is None or activation != "gelu" or not fits:
        return False
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList):
            for place, layer in enumerate(module):
                module[place] = FUSED[kind](layer).eval()
    return True
