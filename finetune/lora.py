"""LoRA adapters: which layers of any encoder get one, and what is trained and saved beside them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError
from rerank_plugin.head import head_names
from rerank_plugin.loading import LoadedModel, quiet_transformers


def add_adapter(loaded: LoadedModel, *, base: str, rank: int, alpha: int, dropout: float) -> Any:
    """Wrap a model in a PEFT model with adapters on its attention and feed-forward products.

    Trained and saved whole are the classifier (by PEFT) and every module whose weights the base
    did not have: a fresh pooler or ModernBERT's head would otherwise be lost on reload.
    """
    model = loaded.model
    targets = backbone_products(model)
    if not targets:
        raise InputError(f"--lora: {base} has no linear layer in its backbone")
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=modules_to_save(model, loaded.fresh_weights),
    )
    # The name that a reload needs; a folder by its full path, wherever it is loaded from.
    model.name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    with quiet_transformers():
        return get_peft_model(model, config)


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


def modules_to_save(model: PreTrainedModel, fresh_weights: Sequence[str]) -> list[str] | None:
    """The head modules with fresh weights, but for those that PEFT always saves."""
    fresh = [
        name
        for name in head_names(model)
        if any(key.startswith(f"{name}.") for key in fresh_weights)
    ]
    return sorted({name.rpartition(".")[2] for name in fresh} - set(SEQ_CLS_HEAD_NAMES)) or None
