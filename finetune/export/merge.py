"""`rerank-plugin merge`: a LoRA adapter and its base become one plain model."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.cli.console import say
from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import (
    EARLIER,
    bring_back,
    publish_folder,
    real_target,
    saving,
    staging_folder,
)
from rerank_plugin.io.locks import locked
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.settings import RerankSettings, is_adapter
from rerank_plugin.options import check_options, option

from .target import MODEL_FILES, check_not_the_base, check_target, lock_of


@dataclass(kw_only=True)
class MergeOptions:
    """Merge a LoRA adapter folder into its base: a plain model that needs neither."""

    model_dir: str = option(help="the adapter folder")
    output_dir: str = option(help="where the merged model will stand")
    overwrite: bool = option(False, help="replace an earlier trained folder")
    base_model: str | None = option(
        None, help="the adapter's base, where it does not stand where the adapter says"
    )
    trust_remote_code: bool = option(False, help="run code that comes with the base model")

    def __post_init__(self) -> None:
        check_options(self)
        if not is_adapter(self.model_dir):
            raise OptionError("model_dir", f"{self.model_dir} is no LoRA adapter folder")
        target = self.target
        self.check_target()
        for folder in (self.model_dir, self.base):
            check_not_the_base(target, folder, option="output_dir")

    def check_target(self) -> None:
        """Refuse a folder that holds something else, or is not to be replaced."""
        target = expanded(self.output_dir)
        check_target(target, overwrite=self.overwrite, option="output_dir")

    @property
    def target(self) -> Path:
        """The folder of the merged model, behind all links."""
        return real_target(expanded(self.output_dir), option="output_dir")

    @property
    def base(self) -> str:
        """The hub id or folder of the base."""
        from rerank_plugin.model.adapters import base_of

        return self.base_model or base_of(expanded(self.model_dir))


def main(options: MergeOptions) -> int:
    """Merge."""
    work = staging_folder(options.target, ".part", option="output_dir")
    lock = lock_of(work)
    try:
        with locked(lock):
            try:
                merge_in(work, options)
            finally:
                lock.unlink(missing_ok=True)
    except BlockingIOError as error:
        raise OptionError("output_dir", f"{options.output_dir}: {error.strerror}") from None
    say(f"merged model: {options.output_dir}")
    return 0


def merge_in(work: Path, options: MergeOptions) -> None:
    """Merge in a folder of this command alone."""
    from rerank_plugin.model.loading import load_model

    from .model_folder import prepare_config, prepare_tokenizer, save_plain, write_records

    adapter, target = expanded(options.model_dir), options.target
    bring_back(work / EARLIER, target)
    options.check_target()
    # Of an earlier try that was cut short.
    shutil.rmtree(work, ignore_errors=True)
    settings = RerankSettings.read(adapter)
    own, trust = options.base_model, options.trust_remote_code
    loaded = load_model(own or adapter, adapter=adapter if own else None, trust_remote_code=trust)
    prepare_config(loaded.model.config, settings.normalize)
    if settings.max_length:
        prepare_tokenizer(loaded.tokenizer, settings.max_length)
    staged = work / "model"
    with saving(work):
        save_plain(loaded, staged)
        write_records(staged, settings, labels=int(loaded.model.config.num_labels or 1))
        check_again(options, work)
        publish_folder(staged, target, last=MODEL_FILES)
    shutil.rmtree(work, ignore_errors=True)


def check_again(options: MergeOptions, work: Path) -> None:
    """Check that nothing that is to be kept has come into the place meanwhile."""
    try:
        options.check_target()
    except OptionError:
        shutil.rmtree(work, ignore_errors=True)
        raise
