"""Runs in which each process holds a part of the weights: FSDP and DeepSpeed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.state import GradientState
from torch import nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError


def cut_at_layers(model: nn.Module) -> None:
    """Let FSDP cut a model between its layers, where its configuration names no classes.

    transformers names the layers of some families only, and beside them the module around the
    embeddings: accelerate, which cuts the embeddings out by themselves, fails where they lie in a
    part already.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part._no_split_modules = sorted({type(layer).__name__ for layer in layers(part)})


def check_saves_whole(config: Mapping[str, Any]) -> None:
    """Check that a model that DeepSpeed has cut can be saved as a whole one.

    Raises:
        InputError: its configuration does not let it.
    """
    zero, option = config.get("zero_optimization", {}), "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and not zero.get(option):
        raise InputError(f"deepspeed: stage 3 needs {option} (zero3_save_16bit_model): true")


@contextmanager
def unsynchronized(state: GradientState) -> Iterator[None]:
    """Let accelerate think that more gradients come before the step."""
    synchronized = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        yield
    finally:
        state._set_sync_gradients(synchronized)


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that stand in lists, but for those inside of one."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers(child)
