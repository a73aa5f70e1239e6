"""`rerank-plugin evaluate`: how well models rank what is judged, alone or beside a baseline."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugin.cli.console import bar, say
from rerank_plugin.errors import CheckFailedError, OptionError
from rerank_plugin.io.atomic import is_stdout, is_stream, write_json
from rerank_plugin.io.jsonl import SkippedLines, fingerprint
from rerank_plugin.io.outputs import check_output, check_output_folder
from rerank_plugin.io.paths import expanded
from rerank_plugin.options import ModelOptions, check_options, option

from ..report.tables import (
    print_comparison,
    print_differences,
    print_metrics,
    print_models,
    print_worst,
)

if TYPE_CHECKING:
    from ..evaluation.judged_query import JudgedQueries
    from ..evaluation.scoring import Evaluation

logger = logging.getLogger(__name__)

METRIC = "ndcg@10"

#: What the order in which a run has its documents is called.
RUN = "the run's order"


@dataclass(kw_only=True)
class EvaluateOptions(ModelOptions):
    """Measure how models rank the candidates of groups or of a retriever's run.

    Ties count against the positives.
    """

    model_dir: str | list[str] = option(
        help="the model, or several: hub ids, folders or adapter folders"
    )
    data_path: str | list[str] | None = option(
        None, help="groups: .jsonl or .jsonl.gz files, folders or globs"
    )
    run: str | None = option(
        None,
        help="instead of groups a TREC run, what a retriever found; without --baseline its "
        "own order is the baseline",
    )
    qrels: str | None = option(
        None,
        help="judgements for --run in TREC's or BEIR's form; other passages are not relevant",
    )
    queries: str | None = option(None, help="the queries of --run: .jsonl or .tsv")
    corpus: str | None = option(None, help="the passages of --run: .jsonl or .tsv")
    top_k: int | None = option(
        None, help="of every query only the documents that --run puts first; default all"
    )
    baseline: str | None = option(None, help="a model to compare with, query by query")
    worst: int = option(
        3, help="queries that lost most against the baseline, to be shown with their passages"
    )
    output: str | None = option(
        None, help="a JSON file for the figures; /dev/stdout gets them in place of the tables"
    )
    report: str | None = option(
        None, help="a folder for report.html, on the model and its baseline, and its pictures"
    )
    on_bad_line: str = option(
        "error",
        choices=("error", "skip"),
        help="what a bad line of groups does: end the evaluation, or be skipped, counted and "
        "written down",
    )
    fail_below: float | None = option(None, help="exit code 3 if a model's ndcg@10 is below this")
    fail_if_not_better: bool = option(
        False, help="exit code 3 if a model's ndcg@10 is not above the baseline's"
    )

    def __post_init__(self) -> None:
        check_options(self)
        self._check_data()
        if self.fail_if_not_better and not self.has_baseline:
            raise OptionError("fail_if_not_better", "needs a --baseline to be better than")
        if len(set(self.models)) < len(self.models):
            raise OptionError("model_dir", "a model stands there twice")
        if self.fail_below is not None and not 0 <= self.fail_below <= 1:
            raise OptionError("fail_below", f"{self.fail_below} is not from 0 to 1")
        if self.worst < 0:
            raise OptionError("worst", f"{self.worst} is less than 0")
        if self.report:
            self._check_report(Path(self.report))
        if self.output:
            inputs = (self.data_path, self.run, self.qrels, self.queries, self.corpus)
            check_output(Path(self.output), inputs, overwrite=True)

    def _check_data(self) -> None:
        if (self.data_path is None) == (self.run is None):
            raise OptionError("data_path", "either groups or a --run is needed")
        for name in ("qrels", "queries", "corpus"):
            if self.run and getattr(self, name) is None:
                raise OptionError(name, "is needed for a --run")
        for name in ("qrels", "queries", "corpus", "top_k"):
            if not self.run and getattr(self, name) is not None:
                raise OptionError(name, "is for a --run")
        if self.top_k is not None and self.top_k < 1:
            raise OptionError("top_k", f"{self.top_k} is less than 1")
        if self.run and self.on_bad_line == "skip":
            raise OptionError("on_bad_line", "skip is for groups")

    def _check_report(self, folder: Path) -> None:
        if not self.has_baseline:
            raise OptionError("report", "needs a --baseline to compare with")
        if len(self.models) > 1:
            raise OptionError("report", "is on one model and its baseline")
        check_output_folder(folder, option="report")

    @property
    def models(self) -> list[str]:
        """The models, one or several."""
        return [self.model_dir] if isinstance(self.model_dir, str) else self.model_dir

    @property
    def has_baseline(self) -> bool:
        """Whether models are compared with something."""
        return self.baseline is not None or self.run is not None

    @property
    def skipped_lines(self) -> Path:
        """Where skipped lines are written down: beside the figures."""
        place = Path(self.output or "evaluate.json")
        if is_stream(place):
            place = Path("evaluate.json")
        return place.with_suffix(".skipped_lines.jsonl")


def main(options: EvaluateOptions) -> int:
    """Evaluate, print tables, write the figures."""
    from rerank_plugin.model.loading import check_model

    # Before the first model is measured: that takes time, a wrong name none.
    for model in filter(None, (*options.models, options.baseline)):
        check_model(model, revision=options.revision, trust_remote_code=options.trust_remote_code)
    with judged_queries(options) as judged:
        baseline = find_baseline(options, judged)
        found = {model: evaluate_model(model, judged, options) for model in options.models}
        records = [record_of(model, own, baseline) for model, own in found.items()]
        # Results first: a table may find nobody who reads it.
        if options.output:
            figures = records[0] if len(records) == 1 else {"models": records}
            write_json(Path(options.output), figures)
            say(f"figures: {options.output}")
        if baseline and options.report:
            (own,) = found.values()
            write_report(options, judged, baseline, own, records[0])
        if not is_stdout(options.output):
            tell(records, baseline)
        if baseline and not is_stdout(options.output):
            for model, own in found.items():
                names = baseline.name, model
                print_worst(judged, (baseline.evaluation, own), names, options.worst)
    check(options, records)
    return 0


@dataclass(frozen=True)
class Baseline:
    """What models are compared with."""

    name: str
    evaluation: "Evaluation"
    #: Whether its scores are a retriever's, on a scale of their own.
    retrieved: bool


@contextmanager
def judged_queries(options: EvaluateOptions) -> "Iterator[JudgedQueries]":
    """What models are measured on; every line of it is checked."""
    if options.run is None:
        from ..data.dataset import GroupDataset
        from ..data.index_cache import cache_folder

        assert options.data_path is not None
        skipped = SkippedLines(options.skipped_lines) if options.on_bad_line == "skip" else None
        groups = GroupDataset.build(options.data_path, cache_folder(), skipped, progress=True)
        if skipped and skipped.count:
            logger.warning("%d bad lines skipped, written down in %s", skipped.count, skipped.path)
        yield groups
        return
    from ..evaluation.trec_run import open_run

    assert options.qrels and options.queries and options.corpus
    with open_run(
        options.run,
        qrels=options.qrels,
        queries=options.queries,
        corpus=options.corpus,
        top_k=options.top_k,
    ) as found:
        for line in found.counts.lines():
            logger.warning("%s", line)
        yield found


def find_baseline(options: EvaluateOptions, judged: "JudgedQueries") -> Baseline | None:
    """What models are compared with, if anything."""
    if options.baseline:
        evaluation = evaluate_model(options.baseline, judged, options)
        return Baseline(options.baseline, evaluation, retrieved=False)
    if options.run is None:
        return None
    from ..evaluation.trec_run import TrecRun

    assert isinstance(judged, TrecRun)
    return Baseline(RUN, judged.own_order, retrieved=True)


def record_of(model: str, found: "Evaluation", baseline: Baseline | None) -> dict[str, Any]:
    """What `--output` says of a model."""
    from ..evaluation.significance import comparison

    means = found.means
    record: dict[str, Any] = {"model": model, **means, "after": means}
    record["of_queries"] = {name: column.tolist() for name, column in found.values.items()}
    if baseline:
        record |= {
            "baseline": baseline.name,
            **comparison(baseline.evaluation.values, found.values),
        }
    return record


def tell(records: list[dict[str, Any]], baseline: Baseline | None) -> None:
    """Print the figures as tables."""
    if len(records) > 1:
        rows: dict[str, Mapping[str, float]] = {record["model"]: record for record in records}
        if baseline:
            rows = {baseline.name: baseline.evaluation.means, **rows}
        print_models(rows)
        if baseline:
            print_differences(baseline.name, records, METRIC)
    elif baseline:
        (record,) = records
        print_comparison(record["before"], record["after"], record["difference"])
    else:
        print_metrics(records[0]["after"])


def check(options: EvaluateOptions, records: list[dict[str, Any]]) -> None:
    """Raise a `CheckFailedError` if something that was asked for does not hold."""
    for record in records:
        if options.fail_if_not_better and not record["improved"]:
            problem = f"{record['model']} is not above the baseline"
            raise CheckFailedError(f"--fail_if_not_better: {problem}")
        if options.fail_below is not None and record[METRIC] < options.fail_below:
            problem = f"{METRIC} {record[METRIC]:.4f} of {record['model']}"
            raise CheckFailedError(f"--fail_below: {problem} is below {options.fail_below}")


def write_report(
    options: EvaluateOptions,
    judged: "JudgedQueries",
    baseline: Baseline,
    found: "Evaluation",
    record: dict[str, Any],
) -> None:
    """Write the report of a comparison."""
    from rerank_plugin.model.settings import RerankSettings

    from ..data.dataset import GroupDataset
    from ..report.report import Report

    assert options.report
    (model,) = options.models
    names = Path(baseline.name).name, Path(model).name
    if names[0] == names[1]:
        names = baseline.name, model
    if names[0] == names[1]:
        names = f"{names[0]} (first)", f"{names[1]} (second)"
    settings = RerankSettings.read(expanded(model))
    carried = None if baseline.retrieved else settings.calibration
    data = {
        "data_path": options.data_path,
        "run": options.run,
        "queries": len(judged),
        "fingerprint": judged.fingerprint
        if isinstance(judged, GroupDataset)
        else fingerprint(str(options.run)),
        "max_length": options.max_length or settings.max_length,
        "precision": options.dtype,
        "device": options.device,
    }
    report = Report(
        title=f"{names[0]} and {names[1]}",
        names=names,
        judged=judged,
        evaluations=(baseline.evaluation, found),
        difference=record["difference"],
        retrieved_first=baseline.retrieved,
        carried=carried,
        facts={
            "data": data,
            **{
                name: carried_facts(expanded(own))
                for name, own in zip(names, (baseline.name, model), strict=True)
                if own != RUN
            },
        },
    )
    report.write(Path(options.report))
    say(f"report: {Path(options.report) / 'report.html'}")


def carried_facts(folder: Path) -> dict[str, Any]:
    """What a model folder says of itself."""
    from rerank_plugin.model.settings import RerankSettings

    settings = RerankSettings.read(folder)
    return {
        "folder or hub id": folder,
        "base": settings.base_model,
        "normalize": settings.normalize,
        "trained on": settings.data.get("fingerprint"),
        "training groups": settings.data.get("train_groups"),
        "loss": settings.options.get("loss"),
        "thresholds": ", ".join(settings.thresholds) or None,
    }


def evaluate_model(model: str, judged: "JudgedQueries", options: EvaluateOptions) -> "Evaluation":
    """Evaluate one model, with a bar on stderr."""
    from ..evaluation.scoring import evaluate_groups

    reranker = options.load_reranker(model)
    pairs = sum(len(own.documents) for own in judged)
    with bar(Path(model).name, "pair", pairs) as progress:
        return evaluate_groups(reranker, judged, progress=progress.update)
