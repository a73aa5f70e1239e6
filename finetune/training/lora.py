"""LoRA adapters: which layers of any encoder get one, and what is trained and saved beside them."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.head import head_names
from rerank_plugin.model.loaded import LoadedModel, quiet_transformers


def add_adapter(
    loaded: LoadedModel,
    *,
    base: str,
    rank: int,
    alpha: int,
    dropout: float,
    targets: str | None = None,
    rslora: bool = False,
    dora: bool = False,
    dtype: torch.dtype = torch.float32,
    in_4bit: bool = False,
) -> Any:
    """Wrap a model in a PEFT model with adapters on its attention and feed-forward products.

    Trained and saved whole are the classifier (by PEFT) and every module whose weights the base
    did not have: a fresh pooler or ModernBERT's head would otherwise be lost on reload.

    Args:
        loaded: The model; it gets the adapters, in place.
        base: What it was loaded by, which the adapter's folder names.
        rank: Rank r of the adapters (Hu et al. 2021, arXiv:2106.09685).
        alpha: Their scale, times r.
        dropout: In front of them.
        targets: The ends of the names of the layers that get one, separated by commas; default
            every linear layer in the backbone's layers.
        rslora: Whether the scale is alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732).
        dora: Whether lengths and directions of weights are apart (Liu et al. 2024,
            arXiv:2402.09353).
        dtype: The precision that products are computed in; the frozen weights are kept in it.
        in_4bit: Whether the frozen weights are kept in 4 bits instead, once the model is moved to
            its device (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

    Raises:
        InputError: there is no layer to put an adapter on.
        OptionError: a target is none of the backbone's linear layers.
    """
    model = loaded.model
    products = backbone_products(model)
    if not products:
        raise InputError(f"--lora: {base} has no linear layer in its backbone")
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=products if targets is None else named_targets(model, targets),
        modules_to_save=modules_to_save(model, loaded.new_weights),
        use_rslora=rslora,
        use_dora=dora,
    )
    # The name that a reload needs; a folder by its full path, wherever it is loaded from.
    folder = expanded(base)
    model.name_or_path = str(folder.resolve()) if folder.is_dir() else base
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    keep_frozen_in(adapted, dtype)
    if in_4bit:
        quantize_frozen(adapted, dtype)
    return adapted


def keep_frozen_in(adapted: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights beside adapters as autocast would cast them in every pass.

    The products stay the same to the last bit, with half the memory, or less: no cast is kept for
    a backward pass. Nor are the adapters' inputs, which PEFT would cast to float32 and autocast
    back, a copy for each layer.
    """
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for parameter in module.get_base_layer().parameters():
                parameter.data = parameter.data.to(dtype)
    for parameter in adapted.parameters():
        # A weight that lies in the mapped file of the checkpoint keeps all of it in memory.
        parameter.data = parameter.data.clone()


def quantize_frozen(adapted: nn.Module, dtype: torch.dtype) -> None:
    """Swap the layers beside adapters for those that keep their weights in 4 bits (NF4).

    Weights become 4 bits wide when the model is moved to a device, the CPU included.
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
    """Check that a base can be kept in 4 bits here.

    Args:
        device: Where it is trained.
        sharded: Whether each process will hold a part of it only.

    Raises:
        OptionError: it cannot.
    """
    if device.type != "cuda":
        raise OptionError("lora_4bit", f"is for CUDA GPUs, this run is on {device.type}")
    if sharded:
        raise OptionError(
            "lora_4bit", "is not for FSDP or DeepSpeed, which cut weights on their own"
        )
    if find_spec("bitsandbytes") is None:
        raise OptionError("lora_4bit", "needs bitsandbytes: pip install 'rerank-plugin[qlora]'")


def named_targets(model: PreTrainedModel, targets: str) -> list[str]:
    """The targets that a user names, each of which is the end of a linear layer's name."""
    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    layers = [
        name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)
    ]
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise OptionError(
                "lora_targets", f"the model has no linear layer called {target!r}, it has {known}"
            )
    if not wanted:
        raise OptionError("lora_targets", f"{targets!r} names no layer")
    return wanted


def backbone_products(model: PreTrainedModel) -> str:
    """A pattern of the names of the linear layers that every layer of the backbone has.

    For BERT the query, key, value and dense products of `bert.encoder.layer.0`, `.1` …; neither
    the pooler nor the head is among them.
    """
    backbone = f"{model.base_model_prefix}."
    layers: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        stem, *leaves = re.split(r"\.\d+\.", name, maxsplit=1)
        if isinstance(module, nn.Linear) and name.startswith(backbone) and leaves:
            layers.setdefault(stem, set()).update(leaves)
    patterns = []
    for stem, found in layers.items():
        leaves = [re.escape(leaf) for leaf in sorted(found)]
        patterns.append(rf"{re.escape(stem)}\.\d+\.({'|'.join(leaves)})")
    return "|".join(patterns)


def modules_to_save(model: PreTrainedModel, new_weights: Sequence[str]) -> list[str] | None:
    """The head modules with fresh weights, but for those that PEFT always saves."""
    fresh = [
        name for name in head_names(model) if any(key.startswith(f"{name}.") for key in new_weights)
    ]
    return sorted({name.rpartition(".")[2] for name in fresh} - set(SEQ_CLS_HEAD_NAMES)) or None
