"""Export a reranker for other runtimes, and compare its scores there."""

from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path

from rerank_plugin.cli.console import bar
from rerank_plugin.errors import InputError
from rerank_plugin.extras import require
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.paths import expanded
from rerank_plugin.io.versions import with_versions
from rerank_plugin.model.head import keep_one_label
from rerank_plugin.model.loading import load_model, resolve_max_length
from rerank_plugin.model.modular import ModularClassifier
from rerank_plugin.model.settings import EXPORT, RerankSettings, read_object
from rerank_plugin.reranker import Reranker

from .agreement import Agreement, sample_pairs
from .batches import PairBatches
from .model_folder import prepare_config, prepare_tokenizer
from .onnx_runtime import OnnxRuntime, write_graph
from .openvino_runtime import OpenVinoRuntime
from .options import ExportOptions
from .runtime import Runtime
from .staging import make_folder

#: The runtimes by the names of `--to`.
RUNTIMES: dict[str, Runtime] = {"onnx": OnnxRuntime(), "openvino": OpenVinoRuntime()}

#: The numbers of pairs whose scores are compared, and whose activations calibrate 8 bits.
COMPARED_PAIRS = 32
CALIBRATION_PAIRS = 100


@dataclass(frozen=True)
class ExportResult:
    """An exported folder, and how well its scores agree with those of the model.

    Attributes:
        model_dir: The folder.
        file: The model's file in it, for the runtime.
        to: The runtime, `onnx` or `openvino`.
        int8: Whether its weights are 8-bit integers.
        agreement: The differences of logits between the runtime and `Reranker` in float32.
    """

    model_dir: Path
    file: Path
    to: str
    int8: bool
    agreement: Agreement


def export_model(
    *,
    model_dir: str | PathLike[str],
    output_dir: str | PathLike[str],
    to: str,
    int8: bool = False,
    force: bool = False,
    max_length: int | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> ExportResult:
    """Export a reranker for ONNX Runtime or OpenVINO, and compare its scores there.

        export_model(model_dir="my_model", output_dir="my_onnx_model", to="onnx")

    The folder has the model in float32 or in 8 bits, its config and its tokenizer, laid out as
    sentence-transformers reads it. Pairs of the sample data are scored by the runtime on the CPU
    and by `Reranker` in float32.

    Args:
        model_dir: A hub id, a folder, or an adapter folder, which is merged into its base. The
            model must be a sequence classifier that is an encoder.
        output_dir: The folder for the export; it appears when it is complete.
        to: The runtime, `onnx` or `openvino`.
        int8: Quantize to 8-bit integers: for ONNX Runtime the weights, and activations while it
            computes (dynamic quantization); for OpenVINO weights and activations (NNCF, calibrated
            with pairs of the sample data).
        force: Write an 8-bit export though its logits correlate by less than 0.99.
        max_length: The maximum length of a pair in tokens, for the tokenizer; default that of
            training, else 512.
        overwrite: Replace an earlier trained or exported folder.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model.
        progress: Show a progress bar on stderr.

    Returns:
        The folder, and how well the scores agree.

    Raises:
        InputError: the model cannot be loaded or exported, or the folder cannot be replaced.
        MissingPackageError: the extra `export` is not installed.
        ExportError: a logit differs by more than 0.001, or those in 8 bits correlate by less than
            0.99; nothing is written.
        SavingError: the disk is full or broken.
    """
    # The parameters are the fields of ExportOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return run_export(ExportOptions(**options), progress=progress)


def run_export(options: ExportOptions, *, progress: bool) -> ExportResult:
    """Export in a locked folder beside the target, and rename it to the target."""
    runtime = RUNTIMES[options.to]
    for package in (*runtime.packages, *(runtime.int8_packages if options.int8 else ())):
        require(package)
    check_model_format(options)
    agreement = make_folder(
        options, lambda folder: write_export(folder, options, progress=progress)
    )
    folder = expanded(options.output_dir)
    return ExportResult(folder, folder / runtime.file, options.to, options.int8, agreement)


def check_model_format(options: ExportOptions) -> None:
    """Check that a model is a sequence classifier that is an encoder, without its weights.

    Raises:
        InputError: it is something else.
    """
    loaded = load_model(
        options.model_dir,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        structure_only=True,
    )
    if loaded.prompt is not None:
        raise InputError(
            f"{options.model_dir}: a language model, which is not exported: serve it with vLLM, or "
            "use Reranker"
        )
    if isinstance(loaded.model, ModularClassifier):
        raise InputError(
            f"{options.model_dir}: a modular reranker, which is not exported: use Reranker, or "
            "CrossEncoder of sentence-transformers"
        )


def write_export(folder: Path, options: ExportOptions, *, progress: bool) -> Agreement:
    """Write the folder of an export, and return how well its scores agree."""
    runtime = RUNTIMES[options.to]
    graph, file = folder.with_name("graph") / "model.onnx", folder / runtime.file
    with bar("exporting", "step", 3, shown=progress) as steps:
        batches = write_without_model(folder, graph, options)
        steps.update()
        pairs = sample_pairs("train.jsonl", CALIBRATION_PAIRS)
        runtime.write(graph, file, batches.each(pairs) if options.int8 else None)
        steps.update()
        agreement = compare(runtime, file, batches, options)
        steps.update()
    if not options.force:
        agreement.check(int8=options.int8)
    record = {"to": options.to, "int8": options.int8, "agreement": asdict(agreement)}
    write_json(folder / EXPORT, with_versions(record))
    return agreement


def write_without_model(folder: Path, graph: Path, options: ExportOptions) -> PairBatches:
    """Write the folder of an export without the model, which becomes an ONNX file elsewhere.

    Args:
        folder: The folder, which does not exist yet.
        graph: The ONNX file in float32.
        options: The options.

    Returns:
        What makes batches for the model.
    """
    loaded = load_model(
        options.model_dir,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    model, settings = loaded.model, RerankSettings.read(expanded(options.model_dir))
    max_length = resolve_max_length(
        options.max_length,
        saved=settings.max_length,
        prompt=loaded.prompt,
        config=model.config,
        option="max_length",
    )
    keep_one_label(model)
    prepare_config(model.config, settings.normalize)
    prepare_tokenizer(loaded, max_length)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    name_tokenizer(folder)
    replace(settings, max_length=max_length, dtype=None, quantization={}).write(folder)
    batches = PairBatches.from_model(loaded, max_length)
    pairs = batches.encoder.encode(sample_pairs("dev.jsonl", 2))
    write_graph(model, batches.batch(pairs), graph)
    return batches


def name_tokenizer(folder: Path) -> None:
    """Name a general tokenizer as transformers 4 does too, which optimum may need."""
    file = folder / "tokenizer_config.json"
    config = read_object(file)
    if config.get("tokenizer_class") == "TokenizersBackend":
        write_json(file, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def compare(
    runtime: Runtime, file: Path, batches: PairBatches, options: ExportOptions
) -> Agreement:
    """Compare the logits of sample pairs in a runtime with those of `Reranker` in float32."""
    reranker = Reranker(
        options.model_dir,
        device="cpu",
        dtype="float32",
        max_length=batches.encoder.max_length,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    pairs = sample_pairs("dev.jsonl", COMPARED_PAIRS)
    return Agreement.from_logits(batches.logits(runtime.load(file), pairs), reranker.logits(pairs))
