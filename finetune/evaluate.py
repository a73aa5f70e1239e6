"""`rerank-plugin evaluate`: how well a model ranks groups, alone or beside a baseline."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugin.errors import CheckFailedError, OptionError
from rerank_plugin.jsonl import SkippedLines, write_json
from rerank_plugin.options import check_choices, option, say

from .groups import Group, read_groups
from .progress import bar
from .tables import print_comparison, print_metrics

if TYPE_CHECKING:
    from .evaluation import Evaluation

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluateOptions:
    """Measure how a model ranks the candidates of groups; ties count against the right ones."""

    model_dir: str = option(help="the model: a hub id, a folder or an adapter folder")
    data_path: str | list[str] = option(help="groups: .jsonl or .jsonl.gz files, folders or globs")
    baseline: str | None = option(None, help="a model to compare with, query by query")
    output: str | None = option(None, help="a JSON file for the figures")
    report: str | None = option(
        None, help="a folder for report.html, on the model and its baseline, and its pictures"
    )
    on_bad_line: str = option(
        "error",
        choices=("error", "skip"),
        help="what a bad line does: end the evaluation, or be skipped, counted and written down",
    )
    max_length: int | None = option(
        None, help="the longest pair in tokens; default: what the model was trained with, else 512"
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 …")
    dtype: str = option("auto", help="auto, float32, bfloat16 or float16")
    fail_below: float | None = option(None, help="exit code 3 if ndcg@10 is below this")
    fail_if_not_better: bool = option(
        False, help="exit code 3 if ndcg@10 is not above the baseline's"
    )
    trust_remote_code: bool = option(False, help="run code that comes with the model")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.fail_if_not_better and not self.baseline:
            raise OptionError("fail_if_not_better", "needs a --baseline to be better than")
        if self.report and not self.baseline:
            raise OptionError("report", "needs a --baseline to compare with")
        if self.report and Path(self.report).exists() and not Path(self.report).is_dir():
            raise OptionError("report", f"{self.report} is a file, a folder is needed")
        if self.output and not Path(self.output).absolute().parent.is_dir():
            raise OptionError("output", f"no folder {Path(self.output).absolute().parent}")
        if self.output and Path(self.output).is_dir():
            raise OptionError("output", f"{self.output} is a folder, a file is needed")

    @property
    def skipped_lines(self) -> Path:
        """Where skipped lines are written down: beside the figures."""
        place = Path(self.output) if self.output else Path("evaluate.json")
        return place.with_suffix(".skipped_lines.jsonl")


def main(options: EvaluateOptions) -> int:
    """Evaluate, print a table, write the figures."""
    from rerank_plugin.loading import check_folder

    # Before the first model is measured: that takes time, a wrong name none.
    for model in filter(None, (options.model_dir, options.baseline)):
        check_folder(model)
    skipped = SkippedLines(options.skipped_lines) if options.on_bad_line == "skip" else None
    groups = list(read_groups(options.data_path, skipped))
    if skipped and skipped.count:
        logger.warning("%d bad lines skipped, written down in %s", skipped.count, skipped.path)
    found = evaluate_model(options.model_dir, groups, options)
    means = found.means
    record: dict[str, Any] = {"model": options.model_dir, **means, "after": means}
    if options.baseline:
        from .metrics import comparison

        baseline = evaluate_model(options.baseline, groups, options)
        record |= {"baseline": options.baseline, **comparison(baseline.values, found.values)}
        print_comparison(record["before"], means, record["difference"])
        if options.report:
            write_report(options, groups, (baseline, found), record)
    else:
        print_metrics(means)
    if options.output:
        write_json(Path(options.output), record)
        say(f"figures: {options.output}")
    if options.fail_if_not_better and not record["improved"]:
        raise CheckFailedError("--fail_if_not_better: the model is not above the baseline")
    if options.fail_below is not None and means["ndcg@10"] < options.fail_below:
        problem = f"ndcg@10 {means['ndcg@10']:.4f} is below {options.fail_below}"
        raise CheckFailedError(f"--fail_below: {problem}")
    return 0


def write_report(
    options: EvaluateOptions,
    groups: list[Group],
    evaluations: tuple["Evaluation", "Evaluation"],
    record: dict[str, Any],
) -> None:
    """Write the report of a comparison."""
    from rerank_plugin.settings import RerankSettings

    from .calibration import Calibration
    from .report import Report

    assert options.report and options.baseline
    names = Path(options.baseline).name, Path(options.model_dir).name
    if names[0] == names[1]:
        names = options.baseline, options.model_dir
    data = {"data_path": options.data_path, "queries": len(groups)}
    report = Report(
        title=f"{names[0]} and {names[1]}",
        names=names,
        groups=groups,
        evaluations=evaluations,
        difference=record["difference"],
        calibration=Calibration.of(evaluations[1].scored(groups)),
        facts={"data": data, "of the second": asdict(RerankSettings.read(Path(options.model_dir)))},
    )
    report.write(Path(options.report))
    say(f"report: {Path(options.report) / 'report.html'}")


def evaluate_model(model: str, groups: list[Group], options: EvaluateOptions) -> "Evaluation":
    """Evaluate one model, with a bar on stderr."""
    from rerank_plugin.reranker import Reranker

    from .evaluation import evaluate_groups

    reranker = Reranker(
        model,
        device=options.device,
        dtype=options.dtype,
        max_length=options.max_length,
        trust_remote_code=options.trust_remote_code,
    )
    pairs = sum(len(group.documents) for group in groups)
    with bar(Path(model).name, "pair", pairs) as progress:
        return evaluate_groups(reranker, groups, progress=progress.update)
