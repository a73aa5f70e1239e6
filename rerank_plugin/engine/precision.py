"""The precision that a model is scored in: int8 where it is asked for, or where its folder is."""

import logging
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from rerank_plugin.engine.fused_layers import check_int8, int8_problem
from rerank_plugin.model.settings import INT8, RerankSettings

logger = logging.getLogger(__name__)


def scoring_dtype(
    model: PreTrainedModel,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    settings: Iterable[RerankSettings],
) -> torch.dtype:
    """Return the precision that a model is scored in.

    `auto` is int8 if the model's folder says so. Where that is not possible, a warning is logged.

    Args:
        model: The model, in its floating-point precision.
        name: The name of the precision that was asked for.
        dtype: What it means without the folder.
        device: The device that the model runs on.
        settings: The settings of its folder, or of the folders of its adapters.

    Raises:
        OptionError: int8 was asked for, and is not possible.
    """
    if dtype == torch.int8:
        check_int8(model)
    if name != "auto" or not all(folder.dtype == INT8 for folder in settings):
        return dtype
    on_cpu = device.type == "cpu"
    problem = int8_problem(model) if on_cpu else f"int8 is not supported on {device.type}"
    if problem is None:
        return torch.int8
    logger.warning("dtype of rerank.json: %s; using %s", problem, str(dtype).partition(".")[2])
    return dtype
