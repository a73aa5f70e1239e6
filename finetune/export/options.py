"""The options of commands that make a model folder of another one."""

from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.paths import expanded, real_target
from rerank_plugin.model.settings import is_adapter
from rerank_plugin.options import THREADS_HELP, check_options, option

from .target import check_not_the_base, check_target

#: The runtimes of `export`.
RUNTIMES = ("onnx", "openvino")

#: The 95% interval of the difference in nDCG@10 must not reach below a loss of this.
LARGEST_LOSS = 0.005


@dataclass(kw_only=True)
class FolderOptions:
    """The folder that is read, and the one that is written."""

    model_dir: str = option(help="a hub id, a folder or an adapter folder")
    output_dir: str = option(help="the folder for the result", aliases=("output",))
    overwrite: bool = option(False, help="replace an earlier trained folder")
    trust_remote_code: bool = option(False, help="run code that comes with the base model")

    def __post_init__(self) -> None:
        check_options(self)

    def check_target(self) -> None:
        """Check that the folder for the result may be written."""
        target = expanded(self.output_dir)
        check_target(target, overwrite=self.overwrite, option="output_dir")

    def check_not_the_model(self, what: str) -> None:
        """Check that the folder for the result is neither the model's nor that of its base."""
        check_not_the_base(self.target, self.model_dir, option="output_dir", what=what)
        if is_adapter(self.model_dir):
            check_not_the_base(self.target, base_folder(self.model_dir), option="output_dir")

    @property
    def target(self) -> Path:
        """Return the folder for the result, with all links resolved."""
        return real_target(expanded(self.output_dir), option="output_dir")


@dataclass(kw_only=True)
class MergeOptions(FolderOptions):
    """Merge a LoRA adapter into its base, as a plain model that needs neither."""

    model_dir: str = option(help="the adapter folder")
    output_dir: str = option(help="the folder for the merged model", aliases=("output",))
    base_model: str | None = option(
        None, help="the adapter's base, if it has moved since the adapter was trained"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_adapter(self.model_dir):
            raise OptionError("model_dir", f"not a LoRA adapter folder: {self.model_dir}")
        self.check_target()
        for folder in (self.model_dir, self.base):
            check_not_the_base(self.target, folder, option="output_dir")

    @property
    def base(self) -> str:
        """Return the hub id or the folder of the base."""
        return self.base_model or base_folder(self.model_dir)


@dataclass(kw_only=True)
class ExportOptions(FolderOptions):
    """Export a reranker for ONNX Runtime or OpenVINO, and check its scores there."""

    output_dir: str = option(help="the folder for the export", aliases=("output",))
    to: str = option(help="the runtime: onnx or openvino", choices=RUNTIMES)
    int8: bool = option(False, help="quantize to 8-bit integers")
    force: bool = option(
        False, help="write an int8 export though its scores correlate by less than 0.99"
    )
    max_length: int | None = option(
        None,
        aliases=("max_len",),
        minimum=1,
        help="the maximum length of a pair in tokens; default: that of training, else 512",
    )
    overwrite: bool = option(False, help="replace an earlier trained or exported folder")
    revision: str | None = option(None, help="branch, tag or commit of a hub id")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.force and not self.int8:
            raise OptionError("force", "has an effect only with --int8")
        self.check_target()
        self.check_not_the_model("the model to export")


@dataclass(kw_only=True)
class QuantizeOptions(FolderOptions):
    """Measure a reranker with int8 on groups, and write a folder that scores with it."""

    data_path: str | list[str] = option(
        help="groups of validation queries: .jsonl or .jsonl.gz files, folders or globs"
    )
    force: bool = option(
        False, help=f"write the folder though ndcg@10 may fall by more than {LARGEST_LOSS}"
    )
    max_length: int | None = option(
        None,
        aliases=("max_len",),
        minimum=1,
        help="the maximum length of a pair in tokens; default: that of training, else 512",
    )
    threads: int | None = option(None, minimum=1, help=THREADS_HELP)
    revision: str | None = option(None, help="branch, tag or commit of a hub id")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_target()
        self.check_not_the_model("the model to quantize")


def base_folder(adapter: str) -> str:
    """Return the hub id or the folder of an adapter's base."""
    from rerank_plugin.model.adapters import base_of

    return base_of(expanded(adapter))
