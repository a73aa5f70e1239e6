"""Merge a LoRA adapter into its base."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from rerank_plugin.cli.console import bar
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.settings import RerankSettings

from .model_folder import prepare_config, prepare_tokenizer, save_plain, write_records
from .options import MergeOptions
from .staging import make_folder


@dataclass(frozen=True)
class MergeResult:
    """The folder of a merged model, and its sources."""

    model_dir: Path
    #: The hub id or the folder of the base.
    base_model: str
    #: The adapter folder.
    adapter_dir: Path


def merge(
    *,
    model_dir: str | PathLike[str],
    output_dir: str | PathLike[str],
    overwrite: bool = False,
    base_model: str | PathLike[str] | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> MergeResult:
    """Merge a LoRA adapter into its base, as a plain model folder that needs neither.

        merge(model_dir="my_adapter", output_dir="my_model")

    Args:
        model_dir: The adapter folder.
        output_dir: The folder for the merged model; it appears when it is complete.
        overwrite: Replace an earlier trained folder.
        base_model: The adapter's base, if it has moved since the adapter was trained.
        trust_remote_code: Run code that comes with the base model.
        progress: Show a progress bar on stderr.

    Returns:
        The folder of the merged model.

    Raises:
        InputError: the adapter or its base cannot be loaded, or the folder cannot be replaced.
        SavingError: the disk is full or broken.
    """
    # The parameters are the fields of MergeOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return run_merge(MergeOptions(**options), progress=progress)


def run_merge(options: MergeOptions, *, progress: bool) -> MergeResult:
    """Merge in a locked folder beside the target, and rename it to the target."""
    make_folder(options, lambda folder: write_merged(folder, options, progress=progress))
    return MergeResult(
        model_dir=expanded(options.output_dir),
        base_model=options.base,
        adapter_dir=expanded(options.model_dir),
    )


def write_merged(folder: Path, options: MergeOptions, *, progress: bool) -> None:
    """Write the folder of the merged model."""
    adapter = expanded(options.model_dir)
    settings = RerankSettings.read(adapter)
    with bar("merging", "step", 2, shown=progress) as steps:
        loaded = load_model(
            options.base_model or adapter,
            adapter=adapter if options.base_model else None,
            trust_remote_code=options.trust_remote_code,
        ).with_instruction(settings.instruction)
        prepare_config(loaded.model.config, settings.normalize)
        if settings.max_length:
            prepare_tokenizer(loaded, settings.max_length)
        steps.update()
        save_plain(loaded, folder)
        write_records(folder, settings, name=options.target.name, loaded=loaded)
        steps.update()
