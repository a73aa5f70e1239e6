"""Modular rerankers: an encoder, a pooling and the modules of a head, as sentence-transformers has.

The folder of one has the encoder in its root, as `AutoModel` saves it, and a folder for each of the
other modules, which `modules.json` lists.
"""

from collections.abc import Mapping
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from rerank_plugin.errors import InputError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.model.files import model_file
from rerank_plugin.model.head_modules import (
    CROSS_ENCODER_FILE,
    MODULE_LIST,
    TRANSFORMER_FILE,
    TRANSFORMER_SETTINGS,
    HeadModule,
    ModularHead,
    read_head,
    read_modules,
)
from rerank_plugin.model.loaded import (
    PICKLED,
    one_line_errors,
    quiet_transformers,
    read_pretrained,
)

#: The classes of sentence-transformers, by their names.
CLASSES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
}

#: What sentence-transformers keeps of a `CrossEncoder` without prompts of its own.
CROSS_ENCODER: Mapping[str, Any] = {
    "model_type": "CrossEncoder",
    "prompts": {},
    "default_prompt_name": None,
}


class ModularClassifier(PreTrainedModel):
    """A sequence classifier of one label made of an encoder and a modular head.

    Args:
        encoder: The encoder; the classifier has its config.
        pooling: `cls` or `mean`.
        modules: The modules after the pooling.
    """

    base_model_prefix = "model"
    # Whatever the encoder has chosen; the head has no attention.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, encoder: PreTrainedModel, pooling: str, modules: list[HeadModule]) -> None:
        super().__init__(encoder.config)
        self.model = encoder
        # PEFT trains and saves a module of this name.
        self.classifier = nn.Sequential(*modules)
        self.pooling = pooling
        self.supports_gradient_checkpointing = encoder.supports_gradient_checkpointing
        pooler = getattr(encoder, "pooler", None)
        if isinstance(pooler, nn.Module):
            # No score depends on it: it has no gradients, which other processes would wait for.
            pooler.requires_grad_(False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Return the logits of pairs, `[pairs, 1]`, of a padded batch or a packed row."""
        given = {name: value for name, value in inputs.items() if value is not None}
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **given | {"return_dict": True}
        )
        hidden = outputs.last_hidden_state
        # Of a packed row, there is one token a pair by now.
        is_packed = "boundaries" in given
        pooled = hidden[:, 0] if is_packed else pool(hidden, attention_mask, self.pooling)
        return SequenceClassifierOutput(logits=self.classifier(pooled))

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Save a folder that sentence-transformers' `CrossEncoder` loads with the same scores.

        Args:
            save_directory: The folder.
            is_main_process: Whether this process writes.
            state_dict: The weights, if they are not those that the model has.
            **options: Options for the encoder.
        """
        if not is_main_process:
            return
        weights = self.state_dict() if state_dict is None else state_dict
        folder = Path(save_directory)
        encoder = weights_of(weights, self.base_model_prefix)
        self.model.save_pretrained(folder, state_dict=encoder, **options)
        self._save_head(folder, weights)
        write_json(folder / TRANSFORMER_FILE, TRANSFORMER_SETTINGS)
        write_json(folder / CROSS_ENCODER_FILE, cross_encoder_config(self.config))

    def _save_head(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Save the modules after the encoder, and the list of all."""
        pooling = {
            "embedding_dimension": self.config.hidden_size,
            "pooling_mode": self.pooling,
            "include_prompt": True,
        }
        entries = [entry(0, "Transformer", ""), entry(1, "Pooling", "1_Pooling")]
        write_module(folder / "1_Pooling", pooling)
        for number, module in enumerate(self.classifier):
            assert isinstance(module, HeadModule)
            name = f"{number + 2}_{module.kind}"
            entries.append(entry(number + 2, module.kind, name))
            write_module(folder / name, module.config, weights_of(weights, f"classifier.{number}"))
        write_json(folder / MODULE_LIST, entries)

    def load_folder(self, folder: Path) -> None:
        """Load the weights of a folder that `save_pretrained` wrote, in place."""
        config = deepcopy(self.config)
        saved, _ = load_modular(str(folder), config, encoder_class=type(self.model))
        self.load_state_dict(saved.state_dict())


def pool(hidden: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """Return one vector a pair, `[pairs, tokens, size]` of a padded batch to `[pairs, size]`."""
    if pooling == "cls":
        return hidden[:, 0]
    if attention_mask is None:
        return hidden.float().mean(1).to(hidden.dtype)
    weights = attention_mask[..., None].float()
    return ((hidden.float() * weights).sum(1) / weights.sum(1)).to(hidden.dtype)


def load_modular(
    source: str,
    config: PreTrainedConfig,
    *,
    encoder_class: Any = AutoModel,
    revision: str | None = None,
    **options: Any,
) -> tuple[ModularClassifier, dict[str, Any]]:
    """Return a modular reranker in float32, and transformers' report of loading its encoder.

    Args:
        source: A hub id or a folder.
        config: Its config.
        encoder_class: The class of the encoder.
        revision: Branch, tag or commit of a hub id.
        **options: Options of `from_pretrained` for the encoder.

    Raises:
        InputError: the head has other weights than its modules.
    """
    head = modular_head(source, config, revision)
    config.num_labels = 1
    encoder, info = read_pretrained(encoder_class, source, config, revision=revision, **options)
    with one_line_errors(source), quiet_transformers():
        for module, folder in zip(head.modules, head.folders, strict=True):
            load_module(module, source, folder, revision)
        model = ModularClassifier(encoder, head.pooling, list(head.modules))
    return model, report(model, info)


def modular_structure(
    source: str, config: PreTrainedConfig, *, revision: str | None, trust_remote_code: bool
) -> ModularClassifier:
    """Return a modular reranker without weights; raises as `load_modular`."""
    head = modular_head(source, config, revision)
    config.num_labels = 1
    encoder = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    return ModularClassifier(encoder, head.pooling, list(head.modules))


def modular_head(source: str, config: PreTrainedConfig, revision: str | None) -> ModularHead:
    """Return the head of a modular reranker, without weights.

    Raises:
        InputError: it has none that is supported.
    """
    listed = read_modules(source, revision) or []
    return read_head(source, listed[1:], int(config.hidden_size), revision)


def load_module(module: HeadModule, source: str, folder: str, revision: str | None) -> None:
    """Read the weights of a module, all that are in its file.

    Raises:
        InputError: there is no such file, or it has weights of something else.
    """
    path = model_file(source, f"{folder}/{SAFE_WEIGHTS_NAME}", revision)
    if path is None:
        raise InputError(f"{source}: {folder}/{SAFE_WEIGHTS_NAME} not found ({PICKLED})")
    stored = load_file(path)
    found = {name: tuple(weight.shape) for name, weight in stored.items()}
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    different = sorted(set(found.items()) ^ set(expected.items()))
    if different:
        name = different[0][0]
        raise InputError(
            f"{source}: {folder}/{SAFE_WEIGHTS_NAME} has {shape(found, name)}, but its config.json "
            f"{shape(expected, name)}"
        )
    # A copy, as the file may be replaced while the model is in use.
    copies = {name: weight.to(torch.float32, copy=True) for name, weight in stored.items()}
    module.load_state_dict(copies, assign=True)


def shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    """Return the shape of a weight in words."""
    return f"{name} of shape {list(shapes[name])}" if name in shapes else f"no {name}"


def report(model: ModularClassifier, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of loading an encoder as one of the whole model.

    The encoder's own pooler, which no score needs, is removed if the checkpoint has none.
    """
    prefix, missing = model.base_model_prefix, set(info["missing_keys"])
    if any(key.startswith("pooler.") for key in missing):
        model.model.pooler = None
        missing = {key for key in missing if not key.startswith("pooler.")}
    return {
        "missing_keys": {f"{prefix}.{key}" for key in missing},
        "unexpected_keys": {f"{prefix}.{key}" for key in info["unexpected_keys"]},
        "mismatched_keys": {(f"{prefix}.{key}", *rest) for key, *rest in info["mismatched_keys"]},
    }


def weights_of(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the weights of a submodule, by its own names for them."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): weight
        for key, weight in weights.items()
        if key.startswith(prefix)
    }


def write_module(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write the configuration of a module, and its weights if it has any."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    if weights:
        tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def entry(number: int, kind: str, folder: str) -> dict[str, Any]:
    """Return an entry of `modules.json`."""
    return {"idx": number, "name": str(number), "path": folder, "type": CLASSES[kind]}


def cross_encoder_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what sentence-transformers keeps of a `CrossEncoder` besides its modules."""
    chosen: dict[str, Any] = getattr(config, "sentence_transformers", None) or {}
    return {**CROSS_ENCODER, **chosen}
