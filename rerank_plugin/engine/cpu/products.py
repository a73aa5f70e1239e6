"""Products with the weights of linear layers, by the fastest kernels for scoring on a CPU.

In bfloat16 that is oneDNN with packed weights: bias, activation and another tensor are part of a
product. In float32 it is torch's own product (MKL's on x86). Its kernels for AVX2 are faster than
oneDNN's, whose GELU is slow there, and it takes the weights as they are, without a packed copy.
"""

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rerank_plugin.model.adapters import ActiveAdapter, low_rank_factors
from rerank_plugin.model.device import onednn_takes

#: The number of rows that weights are packed for; any number can be multiplied.
PACKED_FOR = 4096

#: oneDNN compiles a product for every new number of rows. In the thousands that takes as long as
#: the product itself, unless the number is a multiple of this.
ROW_MULTIPLE = 32


@dataclass(frozen=True)
class Activation:
    """An activation that changes a tensor in place, and its name and variant in oneDNN."""

    function: Callable[[Tensor], Tensor]
    name: str
    variant: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the activation in place."""
        return self.function(x)


GELU_TANH = Activation(partial(torch.ops.aten.gelu_, approximate="tanh"), "gelu", "tanh")
SILU = Activation(partial(nn.functional.silu, inplace=True), "swish")

#: The activations that a product can be followed by, by transformers' names.
ACTIVATIONS = {
    "gelu": Activation(torch.ops.aten.gelu_, "gelu", "none"),
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "silu": SILU,
    "swish": SILU,
}


def takes_products(dtype: torch.dtype) -> bool:
    """Return whether there are fast products of a precision on this machine."""
    if dtype == torch.float32:
        return True
    return platform.machine() in ("x86_64", "AMD64") and onednn_takes(dtype)


def product_of(
    *layers: nn.Module,
    active: ActiveAdapter,
    kind: "type[LinearProduct] | None" = None,
    rows: slice = slice(None),
) -> "LinearProduct":
    """Return the product with the weights of linear layers of one input, side by side.

    Args:
        layers: Linear layers, with or without LoRA adapters.
        active: The active adapter.
        kind: How it is computed; default by the precision of the weights.
        rows: The outputs of the layers that are computed.
    """
    stock: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
    weights = [layer.weight.detach()[rows] for layer in stock]
    biases = [layer.bias.detach()[rows] for layer in stock if layer.bias is not None]
    if kind is None:
        kind = TorchProduct if weights[0].dtype == torch.float32 else OneDnnProduct
    return kind(
        torch.cat(weights) if len(weights) > 1 else weights[0],
        torch.cat(biases) if biases else None,
        active=active,
        additions=additions(layers, rows),
    )


class LinearProduct(ABC):
    """A product with weights, to which that of the active adapter is added.

    Args:
        weight: `[out, in]`.
        bias: `[out]`, if there is one.
        active: The active adapter.
        additions: The factors of each adapter by its name.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        active: ActiveAdapter,
        additions: "dict[str, tuple[Tensor, Tensor]]",
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.active = active
        self.additions = additions

    @abstractmethod
    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """Return the product, `[tokens, out]`, followed by an activation if one is given."""

    @abstractmethod
    def combine(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """Return the product plus (`add`) or times (`mul`) another tensor, `[tokens, out]`."""

    def add_and_norm(self, x: Tensor, other: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the layer norm of the product plus another tensor, `[tokens, out]`."""
        out: Tensor = norm(self.combine(x, other, "add"))
        return out

    def feed_forward(
        self, x: Tensor, activation: Activation, down: "LinearProduct", norm: nn.LayerNorm
    ) -> Tensor:
        """Return the layer norm of x plus a feed-forward network, whose first product this is."""
        return down.add_and_norm(self(x, activation), x, norm)

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return the factors of the active adapter, if it changes the product."""
        return self.additions.get(self.active.name) if self.active.name else None

    @property
    def is_adapted(self) -> bool:
        """Return whether the active adapter changes the product."""
        return self.factors is not None

    def addition(self, x: Tensor) -> Tensor | None:
        """Return the product of the active adapter, `[tokens, out]`, if it has one."""
        factors = self.factors
        return None if factors is None else x @ factors[0] @ factors[1]


class OneDnnProduct(LinearProduct):
    """The product of oneDNN, with weights in its layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None, **adapters: Any) -> None:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)
        super().__init__(packed, bias, **adapters)

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

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, operation
        )
        return out


class TorchProduct(LinearProduct):
    """The product of torch, with weights as they are."""

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """Return the product, `[tokens, out]`, followed by an activation if one is given."""
        out = nn.functional.linear(x, self.weight, self.bias)
        addition = self.addition(x)
        if addition is not None:
            out += addition
        return activation(out) if activation else out

    def combine(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """Return the product plus (`add`) or times (`mul`) another tensor, `[tokens, out]`."""
        if operation == "mul":
            return self(x).mul_(other)
        # The product is added to what is there already.
        out = other.clone() if self.bias is None else other + self.bias
        out.addmm_(x, self.weight.T)
        addition = self.addition(x)
        return out if addition is None else out.add_(addition)


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
