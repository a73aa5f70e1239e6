"""The scoring head (pooler, dense, classifier), in float32 whatever the backbone's precision.

A bfloat16 logit near 5 has steps of 0.03: documents with different logits would be tied.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, also under autocast.

    A last layer with one or two labels multiplies and sums row by row: a matrix product may give
    equal rows different results, depending on their position in the batch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to `[..., in_features]` of any precision; float32 out."""
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight.float()
            bias = None if self.bias is None else self.bias.float()
            if self.out_features > 2:
                return nn.functional.linear(input.float(), weight, bias)
            product = (input.float().unsqueeze(-2) * weight).sum(-1)
            return product if bias is None else product + bias


def head_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules after the backbone, and of the backbone's pooler."""
    backbone = model.base_model_prefix
    names = [name for name, _ in model.named_children() if name != backbone]
    if isinstance(getattr(model.base_model, "pooler", None), nn.Module):
        names.append(f"{backbone}.pooler")
    return names


def run_head_in_float32(model: PreTrainedModel) -> None:
    """Make every linear layer of the head a `Float32Linear`, in place; names do not change."""
    for name in head_names(model):
        head = model.get_submodule(name).float()
        for module in head.modules():
            if type(module) is nn.Linear:
                module.__class__ = Float32Linear


def last_layer(model: PreTrainedModel) -> Any:
    """Return the linear layer of the head that computes the logits.

    Raises:
        InputError: the head has no such layer.
    """
    labels = model.config.num_labels
    layers = [
        module
        for name in head_names(model)
        for module in model.get_submodule(name).modules()
        if isinstance(module, nn.Linear) and module.out_features == labels
    ]
    if not layers:
        raise InputError(
            f"{model.name_or_path}: the head of {type(model).__name__} has no linear layer of "
            f"{labels} labels"
        )
    return layers[-1]


def keep_one_label(model: PreTrainedModel) -> None:
    """Turn a head of two labels into one of their difference, in place; the logit is the same.

    Other libraries return two scores for two labels, and one for one.
    """
    if model.config.num_labels == 1:
        return
    last = last_layer(model)
    with torch.no_grad():
        last.weight = nn.Parameter(last.weight[1:] - last.weight[:1])
        if last.bias is not None:
            last.bias = nn.Parameter(last.bias[1:] - last.bias[:1])
    last.out_features = 1
    for module in model.modules():
        # Heads have the number besides the config.
        if getattr(module, "num_labels", None) == 2:
            setattr(module, "num_labels", 1)  # noqa: B010
    model.config.num_labels = 1


def cast_backbone(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the weights of the backbone, in place.

    Buffers are not cast: rotary frequencies need float32.
    """
    head = tuple(f"{name}." for name in head_names(model))
    for name, parameter in model.named_parameters():
        if not name.startswith(head):
            parameter.data = parameter.data.to(dtype)
