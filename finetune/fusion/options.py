"""The options of `fuse`."""

from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.paths import expanded
from rerank_plugin.options import option

from ..evaluation.options import JudgedOptions


@dataclass(kw_only=True)
class FuseOptions(JudgedOptions):
    """Fit how much a retriever counts beside a reranker, and write it into its rerank.json."""

    model_dir: str = option(help="a model folder or an adapter folder")
    data_path: str | list[str] | None = option(
        None,
        help="groups of validation queries with pos_retrieval_scores and neg_retrieval_scores, as "
        "mine writes them",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folder.is_dir():
            raise OptionError("model_dir", f"not a folder: {self.model_dir}")

    @property
    def folder(self) -> Path:
        """The folder of the model."""
        return expanded(self.model_dir)
