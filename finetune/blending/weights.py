"""The weights between a base model and the model that was fine-tuned from it."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: The names of trained weights in a PEFT model: the module, their kind, and the rest.
ADAPTER_WEIGHT = re.compile(
    r"base_model\.model\.(?P<module>.+)\."
    r"(?P<kind>lora_A|lora_B|lora_magnitude_vector|modules_to_save)\.default\.(?P<rest>.+)"
)


def interpolate(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """Return alpha * tuned + (1 - alpha) * base, in the precision of `tuned`.

    At 1 these are the bits of `tuned`, at 0 those of `base`, and where both are equal, theirs.
    """
    mixed = torch.lerp(base.to(tuned.device, torch.float32), tuned.float(), alpha)
    return mixed.to(tuned.dtype)


def blend_weights(model: nn.Module, base: Mapping[str, Tensor], alpha: float) -> None:
    """Move the trained weights of a model towards the base, in place and one at a time.

    This is LM-Cocktail with two models (Xiao et al. 2023, arXiv:2311.13534), or WiSE-FT (Wortsman
    et al. 2022, arXiv:2109.01903). Of an adapter, what it adds to the base is multiplied by alpha;
    the modules that are saved whole are blended. Weights that were not trained and buffers keep
    their values.

    Args:
        model: The fine-tuned model, or the PEFT model around it.
        base: The weights of the base by their names, as they were before training.
        alpha: The share of the fine-tuned weights.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                start = weight_before_training(name, weight, base)
                weight.copy_(interpolate(start, weight, alpha))


def weight_before_training(name: str, weight: Tensor, base: Mapping[str, Tensor]) -> Tensor:
    """Return the value from which a weight was trained.

    An adapter's first factor is drawn at random and keeps its value: the second one starts at 0, so
    that their product does, too. The magnitudes of DoRA start as the norms of the base's rows.
    """
    adapter = ADAPTER_WEIGHT.fullmatch(name)
    if adapter is None:
        return base[name]
    module, kind = adapter["module"], adapter["kind"]
    if kind == "lora_A":
        return weight
    if kind == "lora_B":
        return torch.zeros_like(weight)
    if kind == "modules_to_save":
        return base[f"{module}.{adapter['rest']}"]
    norms: Tensor = torch.linalg.norm(base[f"{module}.weight"], dim=1)
    return norms
