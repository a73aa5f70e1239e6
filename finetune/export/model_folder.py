"""A trained folder: a plain Hugging Face folder that other libraries load with the same logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rerank_plugin.engine.encoder import clear_truncation_and_padding
from rerank_plugin.engine.scores import check_normalization
from rerank_plugin.io.atomic import write_json, write_text
from rerank_plugin.model.head import keep_one_label, last_layer
from rerank_plugin.model.loaded import LoadedModel, quiet_transformers
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.settings import RerankSettings, is_adapter

from ..evaluation.calibration import describe_calibration

#: What sentence-transformers applies to logits, by our names; it knows no scale and bias.
ACTIVATIONS = {
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "calibrated": "torch.nn.modules.activation.Sigmoid",
    "none": "torch.nn.modules.linear.Identity",
}


def prepare_config(config: Any, normalize: str) -> None:
    """Tell sentence-transformers in the model's config how logits become scores."""
    activation = ACTIVATIONS[check_normalization(normalize)]
    config.sentence_transformers = {"activation_fn": activation}
    # The older place, which would contradict.
    if hasattr(config, "sbert_ce_default_activation_function"):
        del config.sbert_ce_default_activation_function


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Make other libraries cut where this one does, and pad only what they ask for."""
    clear_truncation_and_padding(tokenizer)
    tokenizer.model_max_length = max_length
    # Of an encoder that was a language model's: no pair is read through it.
    tokenizer.chat_template = None


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Save a model's weights and config, without a bar of transformers' own."""
    with quiet_transformers():
        loaded.model.save_pretrained(folder)


def save_plain(loaded: LoadedModel, folder: Path) -> None:
    """Save a model, with one label, and its tokenizer as a plain Hugging Face folder."""
    keep_one_label(loaded.model)
    save_model(loaded, folder)
    loaded.tokenizer.save_pretrained(folder)


def merge_adapter(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Replace an adapter folder by the plain model that it makes of its base."""
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
    """Make the sigmoid of a plain model's logits its calibrated score, for every loader.

    The last layer of the head is multiplied by `scale`, and `bias` added to what it gives.
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


def write_records(folder: Path, settings: RerankSettings, *, labels: int) -> None:
    """Write `rerank.json`, `metrics.json` and the model card beside the weights."""
    settings.write(folder)
    if settings.metrics:
        write_json(folder / "metrics.json", settings.metrics)
    write_text(folder / "README.md", model_card(folder, settings, labels=labels))


def model_card(folder: Path, settings: RerankSettings, *, labels: int) -> str:
    """A model card with Hub metadata; a base that is a folder of this machine is not named."""
    adapter = is_adapter(folder)
    base = settings.base_model or ""
    metadata: dict[str, Any] = {"pipeline_tag": "text-ranking"}
    metadata["library_name"] = "peft" if adapter else "transformers"
    metadata["tags"] = ["reranker", "cross-encoder", "rerank-plugin"]
    if base and not Path(base).is_absolute() and not Path(base).exists():
        metadata["base_model"] = base
    header = "\n".join(f"{name}: {json.dumps(value)}" for name, value in metadata.items())
    parts = [f"---\n{header}\n---\n", f"# Reranker fine-tuned from {Path(base).name or 'a base'}\n"]
    if settings.metrics:
        parts.append(metrics_table(settings.metrics))
    if (folder / "training_curves.png").is_file():
        parts.append("![loss and metrics over the run](training_curves.png)\n")
    usage = "from rerank_plugin import Reranker\n\n"
    usage += 'reranker = Reranker("path/to/this/folder")\n'
    usage += 'reranker.rank("a question", ["a passage", "another passage"], top_n=3)\n'
    parts.append(f"## Use\n\n```python\n{usage}```\n")
    if adapter:
        alone = "from peft import AutoPeftModelForSequenceClassification\n\n"
        alone += "AutoPeftModelForSequenceClassification.from_pretrained(\n"
        alone += f'    "path/to/this/folder", num_labels={labels}\n)\n'
        parts.append(f"The adapter alone, by `peft`:\n\n```python\n{alone}```\n")
    if settings.max_length:
        parts.append(f"Pairs are cut to {settings.max_length} tokens, from the document's end.\n")
    parts.append(f"Scores: `{settings.normalize}` of the logit.\n")
    if settings.calibration:
        parts.append(calibration_text(settings.calibration, settings.thresholds))
    return "\n".join(parts)


def calibration_text(calibration: dict[str, float], thresholds: dict[str, float]) -> str:
    """What calibrated scores and thresholds are, as Markdown."""
    text = "## Scores as probabilities\n\n"
    text += f'`Reranker(…, normalize="calibrated")`: {describe_calibration(calibration)}\n'
    if thresholds:
        rows = [f"| `{name}` | {score:.4f} |" for name, score in thresholds.items()]
        text += "\n| `score_threshold` | score |\n|---|---|\n" + "\n".join(rows) + "\n"
    return text


def metrics_table(metrics: dict[str, Any]) -> str:
    """Before, after and their difference as Markdown."""
    names = [name for name in metrics["after"] if name != "queries"]
    queries = metrics["after"]["queries"]
    rows = ["| metric | before | after | difference (95% interval) |", "|---|---|---|---|"]
    for name in names:
        before, after = metrics["before"][name], metrics["after"][name]
        difference = metrics["difference"]
        low, high = difference["interval_95"][name]
        change = f"{difference[name]:+.4f} ({low:+.4f} to {high:+.4f})"
        rows.append(f"| {name} | {before:.4f} | {after:.4f} | {change} |")
    return f"## Ranking {queries} held-out queries\n\n" + "\n".join(rows) + "\n"
