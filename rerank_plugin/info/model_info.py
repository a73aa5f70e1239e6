"""`model_info`: the properties of a model, from its files and its structure."""

from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rerank_plugin.arguments import device_name, dtype_name, flag, model_name, text_or_none
from rerank_plugin.engine.cpu.threads import default_threads
from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.fused_layers import takes_fused_layers
from rerank_plugin.engine.packing import prepare_packing
from rerank_plugin.engine.precision import scoring_dtype
from rerank_plugin.info.prompt import prompt_info
from rerank_plugin.info.recognition import head_info, recognize
from rerank_plugin.info.result import AdapterInfo, ModelInfo
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.adapters import base_of, read_adapter_config, weight_names
from rerank_plugin.model.device import floating_dtype, resolve_device, resolve_dtype
from rerank_plugin.model.families import family_of, usable_dtype, usable_positions
from rerank_plugin.model.formats import architectures
from rerank_plugin.model.head import cast_backbone, head_names
from rerank_plugin.model.loaded import LoadedModel
from rerank_plugin.model.loading import load_model, resolve_max_length
from rerank_plugin.model.settings import RerankSettings, is_adapter
from rerank_plugin.model.source import absolute


def model_info(
    model: str | Path,
    *,
    device: str | int | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelInfo:
    """Return the properties of a model, without reading its weights.

        print(model_info("BAAI/bge-reranker-base"))

    Weights of a hub id that are not in the cache are not downloaded, and not checked.

    Args:
        model: A hub id, a folder, or a LoRA adapter folder.
        device: The device that it would run on; as for `Reranker`.
        dtype: The precision that it would run in; as for `Reranker`.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model.

    Raises:
        InputError: the model gives no scores; the reason is that of `Reranker`.
    """
    name = absolute(model_name("model", model))
    target = resolve_device(device_name(device))
    wanted = dtype_name(dtype)
    usual = resolve_dtype(wanted, target)
    revision = text_or_none("revision", revision)
    loaded = load_model(
        name,
        structure_only=True,
        revision=revision,
        trust_remote_code=flag("trust_remote_code", trust_remote_code),
    )
    usual = usable_dtype(usual, loaded.model.config)
    cast_backbone(loaded.model, floating_dtype(usual, target))
    settings = [RerankSettings.read(expanded(name))]
    precision = scoring_dtype(loaded.model, wanted, usual, target, settings)
    return info_of(name, loaded, target, precision, revision)


def info_of(
    name: str,
    loaded: LoadedModel,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None,
) -> ModelInfo:
    """Return the properties of a model whose structure is loaded."""
    folder, config = expanded(name), loaded.model.config
    source = absolute(base_of(folder)) if is_adapter(folder) else name
    recognition = recognize(source, config, revision)
    settings = RerankSettings.read(folder)
    loaded = loaded.with_instruction(settings.instruction)
    encoder = pair_encoder(loaded, settings)
    packs = prepare_packing(loaded.model)
    return ModelInfo(
        model=name,
        format=str(recognition.format),
        recognized_by=recognition.reason,
        family=config.model_type,
        architecture=", ".join(architectures(config)) or type(loaded.model).__name__,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        adapter=adapter_info(folder, loaded.model) if is_adapter(folder) else None,
        head=head_info(source, loaded, revision),
        prompt=prompt_info(name, loaded, revision),
        positions=usable_positions(config),
        max_length=encoder.max_length,
        fixed_tokens=encoder.template().prompt_tokens or encoder.template().special_tokens,
        normalize=settings.normalize,
        calibration=settings.calibration,
        thresholds=settings.thresholds,
        base_model=settings.base_model,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        batches="packed" if packs else unpacked(config),
        fused_layers=device.type == "cpu" and packs and takes_fused_layers(loaded.model),
        threads=default_threads(),
    )


def pair_encoder(loaded: LoadedModel, settings: RerankSettings) -> PairEncoder:
    """Return the encoder of a model's pairs, with the longest pair by default."""
    max_length = resolve_max_length(
        None,
        saved=settings.max_length,
        prompt=loaded.prompt,
        config=loaded.model.config,
        option="max_length",
    )
    return PairEncoder(loaded.tokenizer, max_length=max_length, prompt=loaded.prompt)


def unpacked(config: PreTrainedConfig) -> str:
    """Return how batches of a model that takes no packed rows are made."""
    return "padded" if family_of(config).masks_padding else "equal length"


def adapter_info(folder: Path, model: PreTrainedModel) -> AdapterInfo:
    """Return the properties of an adapter folder."""
    names = weight_names(folder)
    layers = {name.partition(".lora_A.")[0] for name in names if ".lora_A." in name}
    heads = [f".{name}." for name in head_names(model)]
    return AdapterInfo(
        base=base_of(folder),
        r=int(read_adapter_config(folder).get("r") or 0),
        layers=sorted({layer.rpartition(".")[2] for layer in layers}),
        has_head=any(head in name for name in names for head in heads),
    )
