"""All scorers by their names, and what they need."""

from importlib.util import find_spec

from shared.machine import device

from peers.exports import ONNX_RUNTIME, OPENVINO
from peers.runtimes import OnnxRuntime, OpenVino
from peers.scorers import (
    OURS,
    FlagEmbedding,
    Rerankers,
    RerankPlugin,
    Scorer,
    SentenceTransformers,
)

SCORERS: dict[str, type[Scorer]] = {
    OURS: RerankPlugin,
    "sentence-transformers": SentenceTransformers,
    "FlagEmbedding": FlagEmbedding,
    "rerankers": Rerankers,
    ONNX_RUNTIME: OnnxRuntime,
    OPENVINO: OpenVino,
}

#: What each needs installed.
PACKAGES = {
    OURS: ("rerank_plugin",),
    "sentence-transformers": ("sentence_transformers",),
    "FlagEmbedding": ("FlagEmbedding",),
    "rerankers": ("rerankers",),
    ONNX_RUNTIME: ("onnx", "onnxruntime"),
    OPENVINO: ("nncf", "onnxscript", "openvino"),
}


#: Not measured on a GPU.
CPU_ONLY = (ONNX_RUNTIME, OPENVINO)


def installed_scorers() -> list[str]:
    """Return the scorers that are installed and run on the benchmark's device."""
    names = [who for who in SCORERS if is_installed(who)]
    return [who for who in names if device() == "cpu" or who not in CPU_ONLY]


def is_installed(who: str) -> bool:
    """Return whether a scorer's packages are there; peers are an optional extra."""
    return all(find_spec(package) for package in PACKAGES[who])
