"""Fuse a reranker with its retriever: fit on judged queries, measure, and keep it in the folder."""

import logging
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

from rerank_plugin.errors import OptionError
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.settings import FILE, RerankSettings

from ..evaluation.calibration import FEWEST_QUERIES
from ..evaluation.comparison import graded_queries
from ..evaluation.evaluate import FilePath, evaluate_model, open_judged
from ..evaluation.fusion_figures import FusionFigures, RetrievedQueries
from ..evaluation.fusion_fit import FusionFit, describe_fusion
from ..export.model_folder import write_records
from .options import FuseOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FusionResult(FusionFigures):
    """The metrics of a retriever, a reranker and their fusion, on queries that were not fitted.

    Attributes:
        model_dir: The folder.
        improved: Whether the fusion ranks better than the reranker alone, by nDCG@10. If not, the
            folder has none.
        retriever: The mean metrics of the retriever alone, and the number of `queries`.
        reranker: Those of the reranker alone.
        fused: Those of the fusion.
        differences: The paired differences of the fusion to the `retriever` and to the `reranker`,
            with `interval_95`, `p_value`, and the numbers of `better` and `worse` queries.
        fusion: The form and the weights, as in `rerank.json`; empty if `improved` is false.
    """

    model_dir: Path
    improved: bool
    fusion: dict[str, Any]

    @classmethod
    def from_fit(cls, model_dir: Path, fit: FusionFit) -> Self:
        """Return the result of a fit."""
        return cls(
            model_dir=model_dir,
            improved=bool(fit.record),
            fusion=fit.record,
            **vars(fit.figures),
        )

    @property
    def summary(self) -> str:
        """The result in a sentence."""
        return describe_fusion(self.fusion)


def fuse(
    *,
    model_dir: str | PathLike[str],
    data_path: FilePath | list[str] | None = None,
    run: FilePath | None = None,
    qrels: FilePath | None = None,
    queries: FilePath | None = None,
    corpus: FilePath | None = None,
    top_k: int | None = None,
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
) -> FusionResult:
    """Fit how much a retriever counts beside a reranker, and write it into its `rerank.json`.

        result = fuse(model_dir="my_model", data_path="dev.jsonl")
        result.fused["ndcg@10"], result.differences["reranker"]["interval_95"]["ndcg@10"]

    Rankings with `retrieval_scores`, and those of both integrations, are then fused. The figures
    are cross-fitted: the form and the weights for a query are chosen on other queries. Where the
    retriever adds nothing, the folder has no fusion.

    Args:
        model_dir: A model folder or an adapter folder.
        data_path: Groups of at least 20 queries that the model was not trained on, with the
            retriever's scores: `.jsonl` or `.jsonl.gz` files, folders or globs.
        run: The TREC run of the retriever in place of groups.
        qrels: The judgements of `run`, in TREC's or BEIR's format.
        queries: The queries of `run`: `.jsonl` or `.tsv`.
        corpus: The documents of `run`: `.jsonl` or `.tsv`.
        top_k: Use only this many documents of each query of `run`, by default all.
        max_length: The maximum length of a pair in tokens, by default that of training, else 512.
        long_documents: How longer documents are scored: `cut` or `windows`.
        instruction: The instruction of queries without one, for models that take one.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: The precision: `auto`, `float32`, `bfloat16`, `float16` or `int8`.
        token_budget: The maximum cost of a batch in tokens.
        threads: The number of threads on a CPU; default as for `Reranker`.
        revision: Branch, tag or commit of a base on the hub.
        trust_remote_code: Run code that comes with the model.
        progress: Show progress bars on stderr.

    Returns:
        The metrics of the retriever, of the reranker and of both together.

    Raises:
        InputError: an option, a file or the model cannot be used, or too few queries have the
            retriever's scores.
    """
    # The parameters are the fields of FuseOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return run_fuse(FuseOptions(**options), progress=progress)


def run_fuse(options: FuseOptions, *, progress: bool) -> FusionResult:
    """Fuse as options say; see `fuse`."""
    folder, settings = options.folder, RerankSettings.read(options.folder)
    with open_judged(options, progress=progress) as judged:
        evaluation = evaluate_model(options.model_dir, judged, options, progress=progress)
        assert evaluation.logits is not None
        retrieved = RetrievedQueries.from_judged(evaluation.logits, graded_queries(judged))
    check_queries(retrieved, options)
    fit = FusionFit.fit(retrieved, settings)
    write_fusion(folder, replace(settings, fusion=fit.record), options)
    return FusionResult.from_fit(folder, fit)


def check_queries(retrieved: RetrievedQueries, options: FuseOptions) -> None:
    """Check that enough queries have the scores of the retriever.

    Raises:
        OptionError: too few have.
    """
    if retrieved.without:
        logger.warning("%d groups without retrieval scores are left out", retrieved.without)
    if not retrieved.are_enough:
        raise OptionError(
            "data_path" if options.run is None else "run",
            f"{len(retrieved)} queries with retrieval scores are too few to fit how much they "
            f"count: give at least {FEWEST_QUERIES}",
        )


def write_fusion(folder: Path, settings: RerankSettings, options: FuseOptions) -> None:
    """Write the settings of a folder, and the model card of one that has been trained here."""
    if not (folder / FILE).is_file():
        settings.write(folder)
        return
    loaded = load_model(
        folder,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        structure_only=True,
    )
    write_records(folder, settings, name=folder.resolve().name, loaded=loaded)
