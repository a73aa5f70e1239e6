"""The model of a run: loaded, with its head, adapter, dropout and precision ready for training."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn

from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.engine.scorer import Scorer
from rerank_plugin.errors import OptionError
from rerank_plugin.inputs import instruction_text
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.adapters import Base
from rerank_plugin.model.device import warn_of_slow_products
from rerank_plugin.model.families import usable_dtype
from rerank_plugin.model.head import keep_one_label
from rerank_plugin.model.loaded import LoadedModel
from rerank_plugin.model.loading import load_model, resolve_max_length
from rerank_plugin.model.settings import RerankSettings, is_adapter

from ..config import FinetuneConfig
from ..export.model_folder import prepare_config, prepare_tokenizer
from ..losses import DEFAULT_LOSS, make_loss
from ..losses.base import Loss
from .arguments import product_dtype
from .distributed import is_sharded
from .run_dir import RunDir

logger = logging.getLogger(__name__)

#: Tokens of a forward and backward pass, by device. A backward pass keeps what a forward pass
#: leaves; on a CPU, twice as many are no faster.
TRAINING_TOKEN_BUDGET = {"cuda": 16_384, "mps": 8_192, "cpu": 2_048}


@dataclass(frozen=True)
class TrainableModel:
    """A model that is ready for training, its scorer and its loss."""

    #: The model, or the PEFT model around it.
    model: Any
    loaded: LoadedModel
    scorer: Scorer
    loss: Loss
    loss_name: str
    device: torch.device
    #: The maximum length of a pair in tokens.
    max_length: int
    #: The precision of matrix products.
    dtype: torch.dtype
    #: Identifies the base weights, for `rerank.json`.
    base_fingerprint: str


def prepare_model(config: FinetuneConfig, run_dir: RunDir, device: torch.device) -> TrainableModel:
    """Load the model of a run and prepare it for training; its weights are still on the CPU.

    Raises:
        InputError: the model cannot be loaded or trained as asked, or it is not the one that the
            interrupted run had.
    """
    # A newly initialised head is drawn from this seed.
    transformers.set_seed(config.seed)
    instruction = default_instruction(config)
    loaded = load_base_model(config).with_instruction(instruction)
    if config.fold_calibration and loaded.prompt:
        raise OptionError("fold_calibration", "the head of a language model has no bias to change")
    encoder = prepare_encoder(config, loaded, instruction)
    prepare_config(loaded.model.config, RerankSettings().normalize)
    set_dropout(loaded.model, config.dropout)
    fingerprint = check_base(config, run_dir, loaded)
    dtype = usable_dtype(product_dtype(config, device), loaded.model.config)
    warn_of_slow_products(dtype, device)
    if not config.lora:
        keep_one_label(loaded.model)
    model = with_new_adapter(config, loaded, device, dtype) if config.lora else loaded.model
    budget = config.token_budget or TRAINING_TOKEN_BUDGET[device.type]
    loss_name = config.loss or DEFAULT_LOSS[loaded.has_new_head]
    logger.info("loss: %s", loss_name)
    return TrainableModel(
        model=model,
        loaded=loaded,
        scorer=Scorer(loaded.model, encoder, token_budget=budget, trained=model),
        loss=make_loss(loss_name, temperature=config.temperature),
        loss_name=loss_name,
        device=device,
        max_length=encoder.max_length,
        dtype=dtype,
        base_fingerprint=fingerprint,
    )


def load_base_model(config: FinetuneConfig, *, structure_only: bool = False) -> LoadedModel:
    """Load the model to train; a prompt is tokenised as other libraries will read it."""
    loaded = load_model(
        config.model_name_or_path,
        new_head=True,
        scoring_tokens=scoring_tokens(config.scoring_tokens),
        trust_remote_code=config.trust_remote_code,
        structure_only=structure_only,
    )
    return replace(loaded, prompt=loaded.prompt and loaded.prompt.as_saved)


def default_instruction(config: FinetuneConfig) -> str | None:
    """Return the instruction of groups without one: the run's, or the one of the base's training.

    Without either the prompt of the base model has one, or needs none.
    """
    base = RerankSettings.read(expanded(config.model_name_or_path))
    return instruction_text(config.instruction) or base.instruction


def scoring_tokens(option: str | None) -> tuple[str, str | None] | None:
    """Return the tokens of `--scoring_tokens`, the second of which may be left out.

    Raises:
        OptionError: they are not one or two.
    """
    if option is None:
        return None
    tokens = option.split(",")
    if not 1 <= len(tokens) <= 2 or not all(tokens):
        raise OptionError("scoring_tokens", f"{option!r}: expected one or two tokens, as in yes,no")
    return tokens[0], tokens[1] if len(tokens) > 1 else None


def prepare_encoder(
    config: FinetuneConfig, loaded: LoadedModel, instruction: str | None
) -> PairEncoder:
    """Return the encoder of a run, and save its length and prompt with the tokenizer."""
    max_length = resolve_max_length(
        config.max_len,
        prompt=loaded.prompt,
        config=loaded.model.config,
        option="max_len",
    )
    encoder = PairEncoder(
        loaded.tokenizer,
        max_length=max_length,
        option="max_len",
        prompt=loaded.prompt,
        instruction=instruction,
    )
    prepare_tokenizer(loaded, max_length)
    return encoder


def check_base(config: FinetuneConfig, run_dir: RunDir, loaded: LoadedModel) -> str:
    """Return the fingerprint of the base weights, which a resumed run must find again."""
    fingerprint = Base.from_model(loaded, config.model_name_or_path).fingerprint
    if run_dir.state.get("base", fingerprint) != fingerprint:
        raise run_dir.changed("model_name_or_path", "the model")
    run_dir.keep(base=fingerprint)
    return fingerprint


def set_dropout(model: nn.Module, hidden: float) -> None:
    """Set the dropout of hidden states in place, and switch that of attention weights off.

    Dropping attention weights leaves the fused attention kernels: on a CPU a step takes three
    times as long. The model's config is left as it is.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = hidden
    for module in model.modules():
        if not type(module).__name__.endswith("Attention"):
            continue
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  (a float, not a module)
        for child in module.children():
            if isinstance(child, nn.Dropout):
                child.p = 0.0


def with_new_adapter(
    config: FinetuneConfig, loaded: LoadedModel, device: torch.device, dtype: torch.dtype
) -> Any:
    """Return the model with a LoRA adapter to train."""
    from .lora import add_adapter, check_4bit

    if is_adapter(config.model_name_or_path):
        raise OptionError(
            "lora", f"{config.model_name_or_path} is an adapter; merge it into its base first"
        )
    sharded = is_sharded(config.trainer)
    if config.load_in_4bit:
        check_4bit(device, sharded=sharded)
    return add_adapter(
        loaded,
        base=config.model_name_or_path,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        # FSDP and DeepSpeed put weights of one precision together, and cast them on their own.
        dtype=torch.float32 if sharded else dtype,
        in_4bit=config.load_in_4bit,
    )
