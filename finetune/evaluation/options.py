"""The options of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_plugin.errors import OptionError
from rerank_plugin.options import ModelOptions, check_options, option

#: The file for skipped lines if no other is given.
SKIPPED_LINES = "evaluate.skipped_lines.jsonl"


@dataclass(kw_only=True)
class JudgedOptions(ModelOptions):
    """A model, and groups or the run of a retriever with its judgements and texts."""

    data_path: str | list[str] | None = option(
        None, help="groups: .jsonl or .jsonl.gz files, folders or globs"
    )
    run: str | None = option(None, help="the TREC run of a retriever in place of groups")
    qrels: str | None = option(
        None,
        help="judgements of --run in TREC's or BEIR's format; documents without one are not "
        "relevant",
    )
    queries: str | None = option(None, help="the queries of --run: .jsonl or .tsv")
    corpus: str | None = option(None, help="the documents of --run: .jsonl or .tsv")
    top_k: int | None = option(
        None, minimum=1, help="rerank only this many documents of a query of --run; default: all"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.data_path is None and self.run is None:
            raise OptionError("data_path", "one of --data_path and --run is required")
        if self.data_path is not None and self.run is not None:
            raise OptionError("data_path", "not allowed with --run")
        for name, value in self.run_files.items():
            if self.run is None and value is not None:
                raise OptionError(name, "requires --run")
            if self.run is not None and value is None and name != "top_k":
                raise OptionError(name, "required by --run")

    @property
    def run_files(self) -> dict[str, Any]:
        """The options that belong to a run, as `open_run` takes them."""
        return {name: getattr(self, name) for name in ("qrels", "queries", "corpus", "top_k")}

    @property
    def skipped_file(self) -> Path | None:
        """The file for skipped lines; None where a bad line is an error."""
        return None

    @property
    def metric_names(self) -> list[str]:
        """The names of the metrics; the first one compares models."""
        from .metrics import METRICS

        return list(METRICS)


@dataclass(kw_only=True)
class EvaluationOptions(JudgedOptions):
    """Models, data and metrics; see `evaluate`."""

    model_dir: str | list[str] = option(help="model(s): hub ids, folders or adapter folders")
    baseline: str | None = option(None, help="a model to compare with, query by query")
    run: str | None = option(
        None,
        help="the TREC run of a retriever in place of groups; without --baseline its own order is "
        "the baseline",
    )
    metrics: str | list[str] | None = option(
        None,
        help="metrics in ir-measures' spelling, such as nDCG@10 RR@10 AP P@1 R@10; the first one "
        "compares models; default: ndcg@10 mrr@10 map hit@1 hit@3 recall@10",
    )
    worst: int = option(3, minimum=0, help="show this many of the queries that lose most")
    on_bad_line: str = option(
        "error",
        choices=("error", "skip"),
        help="stop at a bad line of groups, or skip, count and save it",
    )
    skipped_lines: str | None = option(
        None, help=f"the file for skipped lines; default: beside --output, else {SKIPPED_LINES}"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.models)) < len(self.models):
            raise OptionError("model_dir", "the same model is given twice")
        if self.run is not None and self.on_bad_line == "skip":
            raise OptionError("on_bad_line", "skip is not allowed with --run")
        if self.metrics is not None:
            from .metrics import parse_metric

            for name in self.metric_names:
                parse_metric(name)

    @property
    def models(self) -> list[str]:
        """The models, one or several."""
        return [self.model_dir] if isinstance(self.model_dir, str) else self.model_dir

    @property
    def metric_names(self) -> list[str]:
        """The names of the metrics; the first one compares models."""
        from .metrics import METRICS

        return [self.metrics] if isinstance(self.metrics, str) else list(self.metrics or METRICS)

    @property
    def compares(self) -> bool:
        """True if there is a baseline."""
        return self.baseline is not None or self.run is not None

    @property
    def skipped_file(self) -> Path | None:
        """The file for skipped lines; None where a bad line is an error."""
        return Path(self.skipped_lines or SKIPPED_LINES) if self.on_bad_line == "skip" else None
