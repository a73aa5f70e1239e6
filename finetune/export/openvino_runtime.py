"""OpenVINO models, from ONNX files, and OpenVINO on the CPU."""

import io
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rerank_plugin.extras import require

from .runtime import Batch, quiet


class OpenVinoRuntime:
    """OpenVINO; in 8 bits with static quantization of weights and activations."""

    packages: tuple[str, ...] = ("openvino", "onnxscript")
    int8_packages: tuple[str, ...] = ("nncf",)
    file = Path("openvino", "openvino_model.xml")

    def write(self, graph: Path, file: Path, calibration: Sequence[Batch] | None) -> None:
        """Write a model, its weights in float32 or in 8 bits."""
        openvino = require("openvino")
        # Unlike convert_model, this does not report its use to the maker.
        model = openvino.Core().read_model(graph)
        if calibration is not None:
            model = quantized(model, calibration)
        file.parent.mkdir()
        openvino.save_model(model, file, compress_to_fp16=False)

    def load(self, file: Path) -> Callable[[Batch], npt.NDArray[Any]]:
        """Return a function that computes the logits of a batch, `[pairs, 1]`, in float32.

        OpenVINO's default on some CPUs is bfloat16.
        """
        core = require("openvino").Core()
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(file), "CPU", options)
        return lambda batch: compiled(batch)["logits"]


def quantized(model: Any, calibration: Sequence[Batch]) -> Any:
    """Return a model with weights and activations in 8 bits, by NNCF."""
    # NNCF reports its use to the maker without this, and prints to stdout.
    os.environ.setdefault("NNCF_CI", "1")
    with redirect_stdout(io.StringIO()):
        nncf = require("nncf")
        with quiet("nncf"):
            return nncf.quantize(
                model,
                nncf.Dataset(calibration),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(calibration),
            )
