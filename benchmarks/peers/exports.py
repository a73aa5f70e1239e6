"""The models of the runtimes, made of a model folder and kept beside it."""

import warnings
from collections.abc import Callable
from inspect import signature
from pathlib import Path

from shared.models import MAX_LENGTH

ONNX_RUNTIME = "onnxruntime"
OPENVINO = "openvino"


def exported(folder: Path, who: str, precision: str) -> Path:
    """Return the file of a runtime's model at `float32` or `int8`."""
    home = folder.with_name(f"{folder.name}-{who}-{precision}")
    return home / ("model.onnx" if who == ONNX_RUNTIME else "openvino/openvino_model.xml")


def export(folder: Path, who: str) -> None:
    """Write a runtime's models of both precisions, where they are not there yet."""
    for precision in ("float32", "int8"):
        if not exported(folder, who, precision).exists():
            EXPORTERS[who](folder, precision)


def export_onnx(folder: Path, precision: str) -> None:
    """Write a model for ONNX Runtime with its own tools: optimised for transformers, 8 bits.

    Weights of 8 bits are signed and have a scale for each channel. Unsigned ones are slower.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file = exported(folder, ONNX_RUNTIME, precision)
    unfinished = file.with_name("unfinished.onnx")
    file.parent.mkdir(exist_ok=True)
    if precision == "float32":
        write_optimised(folder, unfinished)
    else:
        quantize_dynamic(
            exported(folder, ONNX_RUNTIME, "float32"),
            unfinished,
            per_channel=True,
            weight_type=QuantType.QInt8,
            # The quantizer cannot infer the types of fused operators.
            extra_options={"DefaultTensorType": 1},
        )
    unfinished.rename(file)


def write_optimised(folder: Path, file: Path) -> None:
    """Write a model folder in float32, its attention, GELU and norms fused.

    The optimizer recognises attention only in what torch's older exporter makes of the attention
    `eager`, which is a seventh faster than what it makes of the newer one's graphs.
    """
    import torch
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.config.return_dict = False
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a query"] * 2, ["a document"] * 2, return_tensors="pt")
    # The exporter names inputs in the order of the parameters.
    inputs = [name for name in signature(model.forward).parameters if name in batch]
    graph = file.with_name("graph.onnx")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (dict(batch),),
            str(graph),
            dynamo=False,
            opset_version=17,
            input_names=inputs,
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in inputs},
        )
    config = model.config
    optimised = optimize_model(
        str(graph),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=1,
    )
    print(f"{folder}: fused {optimised.get_fused_operator_statistics()}")
    optimised.save_model_to_file(str(file), use_external_data_format=False)
    graph.unlink()


def export_openvino(folder: Path, precision: str) -> None:
    """Write a model for OpenVINO as this project exports it; 8 bits by NNCF, calibrated."""
    from rerank_plugin.finetune import export_model

    export_model(
        model_dir=folder,
        output_dir=exported(folder, OPENVINO, precision).parents[1],
        to="openvino",
        int8=precision == "int8",
        max_length=MAX_LENGTH,
        # Random weights may lose more in 8 bits than trained ones.
        force=precision == "int8",
    )


EXPORTERS: dict[str, Callable[[Path, str], None]] = {
    ONNX_RUNTIME: export_onnx,
    OPENVINO: export_openvino,
}
