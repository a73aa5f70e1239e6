"""The options of a merge."""

from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.paths import expanded, real_target
from rerank_plugin.model.settings import is_adapter
from rerank_plugin.options import check_options, option

from .target import check_not_the_base, check_target


@dataclass(kw_only=True)
class MergeOptions:
    """Merge a LoRA adapter into its base, as a plain model that needs neither."""

    model_dir: str = option(help="the adapter folder")
    output_dir: str = option(help="the folder for the merged model")
    overwrite: bool = option(False, help="replace an earlier trained folder")
    base_model: str | None = option(
        None, help="the adapter's base, if it has moved since the adapter was trained"
    )
    trust_remote_code: bool = option(False, help="run code that comes with the base model")

    def __post_init__(self) -> None:
        check_options(self)
        if not is_adapter(self.model_dir):
            raise OptionError("model_dir", f"not a LoRA adapter folder: {self.model_dir}")
        self.check_target()
        for folder in (self.model_dir, self.base):
            check_not_the_base(self.target, folder, option="output_dir")

    def check_target(self) -> None:
        """Check that the folder for the merged model may be written."""
        target = expanded(self.output_dir)
        check_target(target, overwrite=self.overwrite, option="output_dir")

    @property
    def target(self) -> Path:
        """Return the folder for the merged model, with all links resolved."""
        return real_target(expanded(self.output_dir), option="output_dir")

    @property
    def base(self) -> str:
        """Return the hub id or the folder of the base."""
        from rerank_plugin.model.adapters import base_of

        return self.base_model or base_of(expanded(self.model_dir))
