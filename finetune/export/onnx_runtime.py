"""ONNX files, by torch's exporter, and ONNX Runtime."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError
from rerank_plugin.extras import require
from rerank_plugin.model.head import Float32Linear
from rerank_plugin.model.loaded import in_one_line

from .runtime import Batch, quiet

#: The largest ONNX file; the weights of a larger model are in a file beside it. The limit of
#: protobuf is 2 GB.
MAX_FILE_SIZE = 1_900_000_000

#: The names of a batch's axes, of which each may have any size.
AXES = {0: "batch", 1: "sequence"}


def write_graph(model: PreTrainedModel, batch: Batch, file: Path) -> None:
    """Write a model with one label as an ONNX file, for batches of any size and length.

    Args:
        model: The model, which cannot be used here any more.
        batch: Two pairs, with the inputs that the model is given.
        file: The file; its folder is created.

    Raises:
        InputError: torch cannot export the model.
    """
    prepare_export(model)
    size = sum(parameter.nbytes for parameter in model.parameters())
    try:
        with quiet("torch.onnx", "torch.export"):
            program: Any = torch.onnx.export(
                model,
                kwargs={name: torch.from_numpy(array) for name, array in batch.items()},
                dynamo=True,
                dynamic_shapes=dict.fromkeys(batch, AXES),
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:
        # Whatever the exporter raises for code that it cannot follow.
        raise InputError(
            f"{model.name_or_path}: torch cannot export a {model.config.model_type} model: "
            f"{in_one_line(error)}"
        ) from error
    file.parent.mkdir(parents=True)
    # The name under which optimum downloads it.
    external = f"{file.name}_data" if size > MAX_FILE_SIZE else None
    require("onnx_ir").save(program.model, file, external_data=external)


def prepare_export(model: PreTrainedModel) -> None:
    """Give a model plain layers, and the attention that runtimes recognise, in place."""
    model.set_attn_implementation("eager")
    layers: list[nn.Module] = [
        module for module in model.modules() if isinstance(module, Float32Linear)
    ]
    for layer in layers:
        layer.__class__ = nn.Linear


class OnnxRuntime:
    """ONNX Runtime; in 8 bits with dynamic quantization, which needs no calibration."""

    packages: tuple[str, ...] = ("onnxruntime", "onnxscript")
    int8_packages: tuple[str, ...] = ()
    file = Path("onnx", "model.onnx")

    def write(self, graph: Path, file: Path, calibration: Sequence[Batch] | None) -> None:
        """Write a model; the calibration is not needed."""
        if calibration is None:
            graph.parent.rename(file.parent)
            return
        quantization = require("onnxruntime.quantization")
        file.parent.mkdir()
        # The root logger recommends a step before that has no effect on these graphs.
        with quiet("root"):
            quantization.quantize_dynamic(
                graph, file, per_channel=True, weight_type=quantization.QuantType.QInt8
            )

    def load(self, file: Path) -> Callable[[Batch], npt.NDArray[Any]]:
        """Return a function that computes the logits of a batch, `[pairs, 1]`."""
        session = require("onnxruntime").InferenceSession(
            str(file), providers=["CPUExecutionProvider"]
        )
        return lambda batch: session.run(["logits"], batch)[0]
