"""Products with packed weights: bias, activation and another tensor are part of a product."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rerank_plugin.model.adapters import ActiveAdapter, low_rank_factors

#: The number of rows that weights are packed for; any number can be multiplied.
PACKED_FOR = 4096

#: oneDNN compiles a product for every new number of rows. In the thousands that takes as long as
#: the product itself, unless the number is a multiple of this.
ROW_MULTIPLE = 32


@dataclass(frozen=True)
class Activation:
    """An activation as a function, and its name and variant in oneDNN."""

    function: Callable[[Tensor], Tensor]
    name: str
    variant: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the activation."""
        return self.function(x)


GELU_TANH = Activation(partial(nn.functional.gelu, approximate="tanh"), "gelu", "tanh")

#: The activations that a product can be followed by, by transformers' names.
ACTIVATIONS = {
    "gelu": Activation(nn.functional.gelu, "gelu", "none"),
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "silu": Activation(nn.functional.silu, "swish"),
    "swish": Activation(nn.functional.silu, "swish"),
}


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

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """Return the product, `[tokens, out]`, followed by an activation if one is given."""
        addition = self.addition(x)
        if addition is not None:
            out = self._binary(x, addition, "add")
            return activation(out) if activation else out
        name, variant = (activation.name, activation.variant) if activation else ("none", "")
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, name, [], variant
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
