"""LoRA adapters: which layers of any encoder get one, and what is trained and saved beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError
from rerank_plugin.head import head_names
from rerank_plugin.loading import LoadedModel


def add_adapter(loaded: LoadedModel, *, base: str, rank: int, alpha: int, dropout: float) -> Any:
    """Wrap a model in a PEFT model with adapters on its attention and feed-forward products.

    Trained and saved whole are the classifier and every module whose weights the base did not
    have: a fresh pooler or ModernBERT's head would otherwise be lost on reload.
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
    return get_peft_model(model, config)


def backbone_products(model: PreTrainedModel) -> list[str]:
    """The full names of the linear layers of the backbone, without those of its pooler."""
    heads = tuple(f"{name}." for name in head_names(model))
    backbone = f"{model.base_model_prefix}."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(backbone)
        and not name.startswith(heads)
    ]


def modules_to_save(model: PreTrainedModel, fresh_weights: Sequence[str]) -> list[str]:
    """The head modules that are trained whole: the last one, and every one with fresh weights."""
    names = [name for name in head_names(model) if list(model.get_submodule(name).parameters())]
    last = [name for name in names if "." not in name][-1]
    fresh = [name for name in names if any(key.startswith(f"{name}.") for key in fresh_weights)]
    return sorted({name.rpartition(".")[2] for name in (last, *fresh)})
