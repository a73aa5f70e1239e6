"""Recognize the format of a model, by a file or by its name."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedConfig

from rerank_plugin.info.result import HeadInfo
from rerank_plugin.model.formats import ModelFormat, architectures, find_format
from rerank_plugin.model.head_modules import DenseModule, HeadModule, ModularHead, read_modules
from rerank_plugin.model.language_models import language_reranker
from rerank_plugin.model.loaded import LoadedModel
from rerank_plugin.model.modular import modular_head
from rerank_plugin.model.prompts import MAKERS, maker_of


@dataclass(frozen=True)
class Recognition:
    """The format of a model, and what decided it."""

    format: ModelFormat
    reason: str


def recognize(source: str, config: PreTrainedConfig, revision: str | None) -> Recognition:
    """Return the format of a model that is no adapter folder, and what decided it.

    Args:
        source: A hub id or a folder.
        config: Its config.
        revision: Branch, tag or commit of a hub id.
    """
    model_format = find_format(source, config, revision)
    listed = [module.kind for module in read_modules(source, revision) or []]
    if len(listed) > 1:
        return Recognition(model_format, f"modules.json lists {', '.join(listed)}")
    maker = maker_name(source, config)
    if model_format == ModelFormat.LANGUAGE_MODEL and maker:
        return Recognition(model_format, f"by its name, a model of {maker}")
    names = ", ".join(architectures(config)) or "no architecture"
    return Recognition(model_format, f"config.json has {names}")


def maker_name(source: str, config: PreTrainedConfig) -> str | None:
    """Return the name under which the table of makers has a model, if it does."""
    maker = maker_of(source, config.model_type)
    return next((name for name, known in MAKERS.items() if known is maker), None)


def head_info(source: str, loaded: LoadedModel, revision: str | None) -> HeadInfo:
    """Return the head of a model that is no adapter folder."""
    config, tokens, modules = loaded.model.config, None, None
    model_format = find_format(source, config, revision)
    reranker = language_reranker(
        source, config, loaded.tokenizer, model_format, revision=revision, is_base=True
    )
    if reranker and reranker.tokens:
        ids = [reranker.tokens.true, reranker.tokens.false]
        tokens = [str(loaded.tokenizer.decode([i])) for i in ids if i is not None]
    if model_format == ModelFormat.MODULAR_ENCODER:
        modules = list(described_modules(modular_head(source, config, revision)))
    return HeadInfo(int(config.num_labels or 1), tokens, modules)


def described_modules(head: ModularHead) -> Iterator[str]:
    """Yield the modules of a head in words."""
    yield f"Pooling ({head.pooling})"
    for module in head.modules:
        yield f"{module.kind} ({described_module(module)})"


def described_module(module: HeadModule) -> str:
    """Return the sizes of a module and its activation function."""
    first, last = module.sizes
    if not isinstance(module, DenseModule):
        return str(first)
    activation = type(module.activation_function).__name__
    return f"{first} to {last}" + ("" if activation == "Identity" else f", {activation}")
