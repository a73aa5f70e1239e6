"""Quantize a reranker: measure it with int8 on groups, and write a folder that scores with it."""

import logging
from dataclasses import replace
from os import PathLike
from pathlib import Path
from time import perf_counter

import numpy as np

from rerank_plugin.cli.console import bar
from rerank_plugin.engine.fused_layers import int8_problem
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.loading import load_model, resolve_max_length
from rerank_plugin.model.settings import INT8, RerankSettings
from rerank_plugin.reranker import Reranker

from ..data.dataset import GroupDataset
from ..data.index_cache import cache_folder
from ..evaluation.calibration import FEWEST_QUERIES, Calibration
from ..evaluation.scoring import evaluate_groups
from .model_card import hub_id
from .model_folder import prepare_config, prepare_tokenizer, save_plain, write_records
from .options import QuantizeOptions
from .quantization import Measurement, QuantizationResult
from .staging import make_folder

logger = logging.getLogger(__name__)


def quantize(
    *,
    model_dir: str | PathLike[str],
    data_path: str | PathLike[str] | list[str],
    output_dir: str | PathLike[str],
    force: bool = False,
    max_length: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> QuantizationResult:
    """Measure a reranker with int8 on groups, and write a folder that scores with it.

        result = quantize(model_dir="my_model", data_path="dev.jsonl", output_dir="my_int8_model")
        result.difference["ndcg@10"], result.agreement.correlation

    All candidates of every query are scored in float32 and with int8, on the CPU. The folder has
    the weights in float32, which other libraries load as before. Its `rerank.json` makes int8 the
    precision of `dtype="auto"` on a CPU that supports it, and has the measurements and a
    calibration and thresholds that are fitted to the scores with int8.

    Args:
        model_dir: A hub id, a folder, or an adapter folder, which is merged into its base.
        data_path: Groups of at least 20 queries that the model was not trained on: `.jsonl` or
            `.jsonl.gz` files, folders or globs.
        output_dir: The folder for the result; it appears when it is complete.
        force: Write the folder though the 95% interval of the difference in nDCG@10 reaches below
            -0.005.
        max_length: The maximum length of a pair in tokens; default that of training, else 512.
        threads: The number of threads; default as for `Reranker`.
        overwrite: Replace an earlier trained folder.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model.
        progress: Show progress bars on stderr.

    Returns:
        The folder, and how the scores with int8 differ from those in float32.

    Raises:
        InputError: the model cannot be loaded or int8 does not support it, the groups cannot be
            read or are too few, or the folder cannot be replaced.
        QuantizationError: int8 may cost more than 0.005 of nDCG@10; nothing is written. Its
            `result` has the measurements.
        SavingError: the disk is full or broken.
    """
    # The parameters are the fields of QuantizeOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return run_quantize(QuantizeOptions(**options), progress=progress)


def run_quantize(options: QuantizeOptions, *, progress: bool) -> QuantizationResult:
    """Quantize in a locked folder beside the target, and rename it to the target."""
    check_takes_int8(options)
    groups = read_groups(options, progress=progress)
    return make_folder(
        options, lambda folder: write_quantized(folder, options, groups, progress=progress)
    )


def check_takes_int8(options: QuantizeOptions) -> None:
    """Check that int8 supports a model and this machine, without the model's weights.

    Raises:
        InputError: it does not.
    """
    loaded = load_model(
        options.model_dir,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        structure_only=True,
    )
    problem = int8_problem(loaded.model)
    if problem is not None:
        raise InputError(f"{options.model_dir}: {problem}")


def read_groups(options: QuantizeOptions, *, progress: bool) -> GroupDataset:
    """Check and return the groups, which must have enough queries for an interval.

    Raises:
        OptionError: they do not.
    """
    groups = GroupDataset.build(options.data_path, cache_folder(), None, progress=progress)
    queries = len(np.unique(groups.query_hashes))
    if queries < FEWEST_QUERIES:
        problem = f"{queries} queries are too few to measure int8: give at least {FEWEST_QUERIES}"
        raise OptionError("data_path", problem)
    return groups


def write_quantized(
    folder: Path, options: QuantizeOptions, groups: GroupDataset, *, progress: bool
) -> QuantizationResult:
    """Write a folder that scores with int8, and measure it.

    Raises:
        QuantizationError: int8 may cost too much.
    """
    settings = write_model(folder, options)
    float32, int8 = (
        measure(folder, dtype, groups, options, progress=progress) for dtype in ("float32", INT8)
    )
    result = QuantizationResult.from_measurements(expanded(options.output_dir), float32, int8)
    if not options.force:
        result.check()
    quantization = {"fingerprint": groups.fingerprint, **result.to_dict()}
    settings = replace(settings, dtype=INT8, quantization=quantization)
    settings = recalibrated(settings, Calibration.fit(int8.evaluation.scored_pairs(groups)))
    loaded = load_model(folder, structure_only=True, trust_remote_code=options.trust_remote_code)
    write_records(folder, settings, name=options.target.name, loaded=loaded)
    return result


def write_model(folder: Path, options: QuantizeOptions) -> RerankSettings:
    """Write a model in float32 with its settings, and return them."""
    settings = RerankSettings.read(expanded(options.model_dir))
    loaded = load_model(
        options.model_dir,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    ).with_instruction(settings.instruction)
    max_length = resolve_max_length(
        options.max_length,
        saved=settings.max_length,
        prompt=loaded.prompt,
        config=loaded.model.config,
        option="max_length",
    )
    prepare_config(loaded.model.config, settings.normalize)
    prepare_tokenizer(loaded, max_length)
    save_plain(loaded, folder)
    base = settings.base_model or hub_id(options.model_dir)
    settings = replace(settings, max_length=max_length, base_model=base)
    settings.write(folder)
    return settings


def measure(
    folder: Path, dtype: str, groups: GroupDataset, options: QuantizeOptions, *, progress: bool
) -> Measurement:
    """Score all candidates of the groups with a folder's model in some precision."""
    reranker = Reranker(
        folder,
        device="cpu",
        dtype=dtype,
        threads=options.threads,
        trust_remote_code=options.trust_remote_code,
    )
    groups.check_instructions(reranker)
    pairs = sum(len(group.labels) for group in groups)
    start = perf_counter()
    with bar(dtype, "pair", pairs, shown=progress) as scored:
        evaluation = evaluate_groups(reranker, groups, progress=scored.update)
    return Measurement(evaluation, pairs / (perf_counter() - start))


def recalibrated(settings: RerankSettings, calibration: Calibration | None) -> RerankSettings:
    """Return settings with a calibration and thresholds of the scores with int8."""
    if calibration is None:
        if settings.calibration:
            logger.warning("no calibration fits these queries: that of the model is kept")
        return settings
    return calibration.put_into(settings)
