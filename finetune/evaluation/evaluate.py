"""Evaluate rerankers on groups or on a retriever's run, alone or against a baseline."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from rerank_plugin.cli.console import bar
from rerank_plugin.io.jsonl import SkippedLines, fingerprint
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.loading import check_model
from rerank_plugin.model.settings import RerankSettings

from ..data.dataset import GroupDataset
from ..data.index_cache import cache_folder
from .comparison import SHOWN_QUERIES, Comparison, graded_queries
from .fusion_figures import FusionFigures
from .judged_query import JudgedQueries
from .options import EvaluationOptions, JudgedOptions
from .result import EvaluationResult
from .scoring import Evaluation, evaluate_groups
from .trec_run import TrecRun, open_run

logger = logging.getLogger(__name__)

#: The name of the baseline that is a run's own order.
RUN_ORDER = "the run's order"

FilePath = str | PathLike[str]


def evaluate(
    *,
    model_dir: FilePath | list[str],
    data_path: FilePath | list[str] | None = None,
    baseline: FilePath | None = None,
    run: FilePath | None = None,
    qrels: FilePath | None = None,
    queries: FilePath | None = None,
    corpus: FilePath | None = None,
    top_k: int | None = None,
    metrics: str | list[str] | None = None,
    worst: int = 3,
    on_bad_line: str = "error",
    skipped_lines: FilePath | None = None,
    max_length: int | None = None,
    long_documents: str = "cut",
    instruction: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    threads: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> EvaluationResult:
    """Evaluate rerankers on groups, or on the documents that a retriever found.

    Of documents with equal scores, relevant ones are ranked last.

        result = evaluate(model_dir="my_model", data_path="test.jsonl", baseline="base_model")
        result.metrics["ndcg@10"], result.improved

    Args:
        model_dir: A model or several, as hub ids, folders or adapter folders.
        data_path: Groups: `.jsonl` or `.jsonl.gz` files, folders or globs.
        baseline: A model to compare the others with, query by query.
        run: A TREC run in place of groups; without `baseline` its own order is the baseline.
        qrels: The judgements of `run`, in TREC's or BEIR's format; documents without one are not
            relevant.
        queries: The queries of `run`: `.jsonl` or `.tsv`.
        corpus: The documents of `run`: `.jsonl` or `.tsv`.
        top_k: Rerank only this many documents of each query of `run`, by default all.
        metrics: Metrics in ir-measures' spelling, such as `["nDCG@10", "RR@10", "AP"]`; models are
            compared by the first one. By default `ndcg@10`, `mrr@10`, `map`, `hit@1`, `hit@3` and
            `recall@10`.
        worst: Keep at least this many of the queries that lose most, with texts.
        on_bad_line: `error` to stop at a bad line of groups, `skip` to skip, count and save it.
        skipped_lines: The file for skipped lines, by default `evaluate.skipped_lines.jsonl`.
        max_length: The maximum length of a pair in tokens, by default that of training, else 512.
        long_documents: How longer documents are scored: `cut` or `windows`.
        instruction: The instruction of queries without one, for models that take one.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: The precision: `auto`, `float32`, `bfloat16`, `float16` or `int8`.
        token_budget: The maximum cost of a batch in tokens.
        threads: The number of threads on a CPU; default as for `Reranker`.
        revision: Branch, tag or commit of models on the hub.
        trust_remote_code: Run code that comes with a model.
        progress: Show progress bars on stderr.

    Returns:
        The metrics of every model, and its comparison with the baseline.

    Raises:
        InputError: an option, a file or a model cannot be used.
    """
    # The parameters are the fields of EvaluationOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return run_evaluation(EvaluationOptions(**options), progress=progress)


def run_evaluation(options: EvaluationOptions, *, progress: bool) -> EvaluationResult:
    """Evaluate as options say; see `evaluate`."""
    # An unknown model is reported at once, not after the evaluation of those before it.
    for model in filter(None, (*options.models, options.baseline)):
        check_model(model, revision=options.revision, trust_remote_code=options.trust_remote_code)
    with open_judged(options, progress=progress) as judged:
        baseline = baseline_evaluation(options, judged, progress=progress)
        evaluations = {
            model: evaluate_model(model, judged, options, progress=progress)
            for model in options.models
        }
        comparisons = compare_models(judged, baseline, evaluations, options)
        fusions = measure_fusions(judged, evaluations, options)
        data = {
            "data_path": options.data_path,
            "run": options.run,
            "fingerprint": data_fingerprint(judged, options),
            "queries": len(judged),
            **options.loading,
        }
    name = baseline[0] if baseline else None
    metric = options.metric_names[0]
    return EvaluationResult(evaluations, comparisons, metric, name, fusions, data)


@contextmanager
def open_judged(options: JudgedOptions, *, progress: bool) -> Iterator[GroupDataset | TrecRun]:
    """Open groups or a run, and log what is left out of it; every line is checked."""
    if options.run is not None:
        with open_run(options.run, **options.run_files, progress=progress) as judged:
            for line in judged.counts.lines():
                logger.warning("%s", line)
            yield judged
        return
    assert options.data_path is not None
    skipped = SkippedLines(options.skipped_file) if options.skipped_file else None
    groups = GroupDataset.build(options.data_path, cache_folder(), skipped, progress=progress)
    if skipped and skipped.count:
        logger.warning("%d bad lines skipped and written to %s", skipped.count, skipped.path)
    yield groups


def evaluate_model(
    model: str, judged: GroupDataset | TrecRun, options: JudgedOptions, *, progress: bool
) -> Evaluation:
    """Load and evaluate one model."""
    reranker = options.load_reranker(model)
    judged.check_instructions(reranker)
    pairs = sum(len(query.labels) for query in graded_queries(judged)) if progress else None
    with bar(Path(model).name, "pair", pairs, shown=progress) as scored:
        return evaluate_groups(
            reranker, judged, progress=scored.update, metrics=options.metric_names
        )


def baseline_evaluation(
    options: EvaluationOptions, judged: GroupDataset | TrecRun, *, progress: bool
) -> tuple[str, Evaluation] | None:
    """Return the name and the evaluation of the baseline, if there is one."""
    if options.baseline is not None:
        evaluation = evaluate_model(options.baseline, judged, options, progress=progress)
        return options.baseline, evaluation
    if isinstance(judged, TrecRun):
        return RUN_ORDER, judged.run_order(options.metric_names)
    return None


def compare_models(
    judged: JudgedQueries,
    baseline: tuple[str, Evaluation] | None,
    evaluations: dict[str, Evaluation],
    options: EvaluationOptions,
) -> dict[str, Comparison]:
    """Compare every model with the baseline, if there is one."""
    if baseline is None:
        return {}
    name, first = baseline
    metric, shown = options.metric_names[0], max(SHOWN_QUERIES, options.worst)
    return {
        model: Comparison.from_evaluations(
            judged, (name, model), (first, second), metric=metric, shown=shown
        )
        for model, second in evaluations.items()
    }


def measure_fusions(
    judged: GroupDataset | TrecRun, evaluations: dict[str, Evaluation], options: EvaluationOptions
) -> dict[str, FusionFigures]:
    """Measure the fusion of every model that has one, where the retriever's scores are known."""
    fusions = {}
    for model, evaluation in evaluations.items():
        settings, queries = RerankSettings.read(expanded(model)), graded_queries(judged)
        figures = FusionFigures.from_settings(
            settings, evaluation.logits or [], queries, options.metric_names
        )
        if figures is not None:
            fusions[model] = figures
    return fusions


def data_fingerprint(judged: JudgedQueries, options: EvaluationOptions) -> str:
    """Return the hash of the files of groups or of the run."""
    if isinstance(judged, GroupDataset):
        return judged.fingerprint
    assert options.run is not None
    return fingerprint(options.run)
