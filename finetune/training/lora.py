"""LoRA adapters for training: their layers, and the modules trained and saved beside them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.extras import require
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.head import head_names
from rerank_plugin.model.loaded import LoadedModel, quiet_transformers


def add_adapter(
    loaded: LoadedModel,
    *,
    base: str,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: str | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    dtype: torch.dtype = torch.float32,
    in_4bit: bool = False,
) -> Any:
    """Wrap a model in a PEFT model with adapters on its attention and feed-forward layers.

    The classifier (by PEFT) and every module whose weights the base did not have are trained and
    saved whole: a newly initialised pooler or ModernBERT's head would otherwise be lost on reload.

    Args:
        loaded: The model; the adapters are added in place.
        base: The hub id or folder that it was loaded from, which the adapter's folder names.
        r: The rank of the adapters (Hu et al. 2021, arXiv:2106.09685).
        alpha: Their scale, times r.
        dropout: The dropout before them.
        target_modules: The ends of the names of their layers, separated by commas; default: every
            linear layer in the backbone's layers.
        use_rslora: Whether the scale is alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732).
        use_dora: Whether magnitude and direction of weights are trained apart (Liu et al. 2024,
            arXiv:2402.09353).
        dtype: The precision of matrix products; the frozen weights are stored in it.
        in_4bit: Whether the frozen weights are stored in 4 bits instead, once the model is moved to
            its device (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

    Raises:
        InputError: the backbone has no linear layer.
        OptionError: a target is none of the backbone's linear layers.
    """
    model = loaded.model
    products = backbone_products(model)
    if not products:
        raise InputError(f"--lora: {base} has no linear layer in its backbone")
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=products if target_modules is None else named_targets(model, target_modules),
        modules_to_save=modules_to_save(model, loaded.new_weights),
        use_rslora=use_rslora,
        use_dora=use_dora,
    )
    # The name that a reload needs: a folder by its full path, for any working directory.
    folder = expanded(base)
    model.name_or_path = str(folder.resolve()) if folder.is_dir() else base
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    keep_frozen_in(adapted, dtype)
    if in_4bit:
        quantize_frozen(adapted, dtype)
    return adapted


def keep_frozen_in(adapted: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen weights beside adapters in the precision to which autocast casts them.

    The products are the same to the last bit, with half the memory or less: no cast is kept for the
    backward pass. Nor are the adapters' inputs, which PEFT would cast to float32 and autocast back,
    a copy for each layer.
    """
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for parameter in module.get_base_layer().parameters():
                parameter.data = parameter.data.to(dtype)
    for parameter in adapted.parameters():
        # A weight in the mapped file of the checkpoint would keep all of the file in memory.
        parameter.data = parameter.data.clone()


def quantize_frozen(adapted: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers beside adapters by layers with 4-bit weights (NF4).

    The weights are quantized when the model is moved to a device, the CPU included.
    """
    from bitsandbytes.nn import Linear4bit

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            layer = module.get_base_layer()
            narrow = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=dtype,
                quant_type="nf4",
            )
            narrow.load_state_dict(layer.state_dict())
            module.base_layer = narrow.requires_grad_(False)


def check_4bit(device: torch.device, *, sharded: bool) -> None:
    """Check that the base can be kept in 4 bits.

    Args:
        device: The device of the run.
        sharded: Whether each process holds a shard of the weights.

    Raises:
        OptionError: the device or the kind of distribution does not support it.
        MissingPackageError: bitsandbytes is not installed.
    """
    if device.type != "cuda":
        raise OptionError("load_in_4bit", f"requires a CUDA GPU, not {device.type}")
    if sharded:
        raise OptionError("load_in_4bit", "not supported with FSDP or DeepSpeed")
    require("bitsandbytes")


def named_targets(model: PreTrainedModel, targets: str) -> list[str]:
    """Return the named targets; each is the end of the name of a linear layer."""
    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    layers = [
        name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)
    ]
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            problem = f"no linear layer is called {target!r} (choose from {known})"
            raise OptionError("lora_target_modules", problem)
    if not wanted:
        raise OptionError("lora_target_modules", f"{targets!r} names no layer")
    return wanted


def backbone_products(model: PreTrainedModel) -> str:
    """Return a pattern for the names of the linear layers in each layer of the backbone.

    For BERT these are the query, key, value and dense layers of `bert.encoder.layer.0`, `.1` …, and
    neither the pooler nor the head.
    """
    backbone = f"{model.base_model_prefix}."
    layers: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        stem, *leaves = re.split(r"\.\d+\.", name, maxsplit=1)
        if isinstance(module, nn.Linear) and name.startswith(backbone) and leaves:
            layers.setdefault(stem, set()).update(leaves)
    patterns = []
    for stem, names in layers.items():
        leaves = [re.escape(leaf) for leaf in sorted(names)]
        patterns.append(rf"{re.escape(stem)}\.\d+\.({'|'.join(leaves)})")
    return "|".join(patterns)


def modules_to_save(model: PreTrainedModel, new_weights: Sequence[str]) -> list[str] | None:
    """Return the newly initialised modules of the head, except those that PEFT always saves."""
    new = [
        name for name in head_names(model) if any(key.startswith(f"{name}.") for key in new_weights)
    ]
    return sorted({name.rpartition(".")[2] for name in new} - set(SEQ_CLS_HEAD_NAMES)) or None
