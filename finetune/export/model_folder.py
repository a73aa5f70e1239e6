"""A trained folder: a plain Hugging Face folder that other libraries load with the same logits."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rerank_plugin.engine.encoder import clear_truncation_and_padding
from rerank_plugin.engine.scores import check_normalization
from rerank_plugin.io.atomic import write_json, write_text
from rerank_plugin.io.versions import with_versions
from rerank_plugin.model.head import keep_one_label, last_layer
from rerank_plugin.model.loaded import LoadedModel, quiet_transformers
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.modular import ModularClassifier
from rerank_plugin.model.prompts import Prompt
from rerank_plugin.model.settings import RerankSettings

from .model_card import model_card
from .sentence_transformers import write_prompt_files

#: What sentence-transformers applies to logits, by our names; it has no scale and bias.
ACTIVATIONS = {
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "calibrated": "torch.nn.modules.activation.Sigmoid",
    "none": "torch.nn.modules.linear.Identity",
}


def prepare_config(config: Any, normalize: str) -> None:
    """Set how sentence-transformers turns logits into scores, in the model's config."""
    activation = ACTIVATIONS[check_normalization(normalize)]
    config.sentence_transformers = {"activation_fn": activation}
    # An older key, which would contradict it.
    if hasattr(config, "sbert_ce_default_activation_function"):
        del config.sbert_ce_default_activation_function


def prepare_tokenizer(loaded: LoadedModel, max_length: int) -> None:
    """Let other libraries truncate to the same length, use the same prompt and pad on request."""
    tokenizer = loaded.tokenizer
    clear_truncation_and_padding(tokenizer)
    tokenizer.model_max_length = max_length
    # An encoder made of a language model may have one; pairs do not use it.
    prompt = prompt_to_save(loaded)
    tokenizer.chat_template = prompt.chat_template if prompt else None
    if prompt:
        add_no_special_tokens(tokenizer)
        prepare_padding(loaded.model.config, tokenizer)


def prompt_to_save(loaded: LoadedModel) -> Prompt | None:
    """Return the prompt of a language model, with its default instruction in the template.

    Some libraries, such as vLLM, read no instruction but that.
    """
    prompt = loaded.prompt
    if prompt is None or not prompt.instruction:
        return prompt
    return prompt.with_built_in_instruction(prompt.instruction, loaded.tokenizer)


def add_no_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a plain call of a tokenizer add nothing to a rendered prompt, which has all tokens."""
    text = "a"
    if tokenizer(text).input_ids == tokenizer(text, add_special_tokens=False).input_ids:
        return
    for name in ("add_bos_token", "add_eos_token"):
        setattr(tokenizer, name, False)
        tokenizer.init_kwargs[name] = False


def prepare_padding(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let transformers' sequence classifiers tell padding from the last token of a prompt.

    They score the last token that is no padding, and refuse a batch without a padding token.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    config.pad_token_id = tokenizer.pad_token_id


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Save a model's weights and config, without transformers' progress bar."""
    with quiet_transformers():
        loaded.model.save_pretrained(folder)


def save_plain(loaded: LoadedModel, folder: Path) -> None:
    """Save a model with one label, and its tokenizer, as a plain Hugging Face folder."""
    keep_one_label(loaded.model)
    save_model(loaded, folder)
    loaded.tokenizer.save_pretrained(folder)
    prompt = prompt_to_save(loaded)
    if prompt:
        write_prompt_files(folder, prompt, loaded.tokenizer)


def merge_adapter(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Replace an adapter folder by the plain model of the adapter and its base."""
    merged, adapter = folder.with_suffix(".merged"), folder.with_suffix(".adapter")
    loaded = load_model(folder, trust_remote_code=trust_remote_code)
    prepare_config(loaded.model.config, RerankSettings().normalize)
    save_plain(loaded, merged)
    folder.rename(adapter)
    merged.rename(folder)
    shutil.rmtree(adapter)


def fold_calibration(
    folder: Path, scale: float, bias: float, *, trust_remote_code: bool = False
) -> None:
    """Scale the logits of a plain model, so that their sigmoid is the calibrated score anywhere.

    The weights of the head's last layer are multiplied by `scale`, and `bias` is added.
    """
    loaded = load_model(folder, trust_remote_code=trust_remote_code)
    keep_one_label(loaded.model)
    last = last_layer(loaded.model)
    with torch.no_grad():
        if last.bias is None:
            last.bias = nn.Parameter(torch.zeros(1))
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        last.bias.add_(bias)
    save_model(loaded, folder)


def write_records(
    folder: Path, settings: RerankSettings, *, name: str, loaded: LoadedModel
) -> None:
    """Write `rerank.json`, `metrics.json` and the model card beside the weights.

    Args:
        folder: The folder of the model.
        settings: The contents of `rerank.json`; `metrics.json` has its metrics.
        name: The name of the model, for the card.
        loaded: The model, or the base of an adapter.
    """
    settings.write(folder)
    if settings.metrics:
        write_json(folder / "metrics.json", with_versions(settings.metrics))
    card = model_card(
        folder,
        settings,
        name=name,
        labels=int(loaded.model.config.num_labels or 1),
        is_modular=isinstance(loaded.model, ModularClassifier),
        has_prompt=loaded.prompt is not None,
    )
    write_text(folder / "README.md", f"{card}\n")
