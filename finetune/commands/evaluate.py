"""`rerank-plugin evaluate`: evaluate rerankers, write metrics and a report, and print tables."""

from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.cli.console import say
from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.outputs import check_output, check_output_folder
from rerank_plugin.io.streams import is_stdout, is_stream
from rerank_plugin.io.versions import with_versions
from rerank_plugin.options import option

from ..evaluation.options import EvaluationOptions


@dataclass(kw_only=True)
class EvaluateOptions(EvaluationOptions):
    """Evaluate rerankers on groups or on a retriever's run, alone or against a baseline."""

    output: str | None = option(
        None, help="a JSON file for the metrics; /dev/stdout prints them in place of the tables"
    )
    report: str | None = option(
        None,
        help="a folder for report.html and its plots, on one model and its baseline; default of "
        "compare: comparison",
    )
    fail_below: float | None = option(
        None, help="exit code 3 if the first metric of a model is below this"
    )
    fail_if_not_better: bool = option(
        False, help="exit code 3 if the first metric of a model is not above the baseline's"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fail_if_not_better and not self.compares:
            raise OptionError("fail_if_not_better", "requires --baseline")
        if self.fail_below is not None and not 0 <= self.fail_below <= 1:
            raise OptionError("fail_below", f"must be in [0, 1], not {self.fail_below}")
        if self.report is not None:
            self._check_report(Path(self.report))
        if self.output is not None:
            self._check_output(Path(self.output))

    def _check_report(self, folder: Path) -> None:
        if not self.compares:
            raise OptionError("report", "requires --baseline")
        if len(self.models) > 1:
            raise OptionError("report", "not allowed with several models: give one --model_dir")
        check_output_folder(folder, option="report")

    def _check_output(self, output: Path) -> None:
        inputs = (self.data_path, self.run, self.qrels, self.queries, self.corpus)
        check_output(output, inputs, overwrite=True)
        if self.skipped_lines is None and not is_stream(output):
            self.skipped_lines = str(output.with_suffix(".skipped_lines.jsonl"))


def main(options: EvaluateOptions) -> int:
    """Evaluate, write the metrics and the report, and print tables."""
    from ..evaluation.evaluate import run_evaluation
    from ..report.evaluation_report import write_evaluation_report
    from ..report.tables import print_evaluation

    result = run_evaluation(options, progress=True)
    # Files first: printing fails if nobody reads stdout.
    if options.output:
        write_json(Path(options.output), with_versions(result.to_dict()))
        say(f"metrics: {options.output}")
    if options.report:
        say(f"report: {write_evaluation_report(result, Path(options.report))}")
    if not is_stdout(options.output):
        print_evaluation(result, worst=options.worst)
    result.check(fail_below=options.fail_below, fail_if_not_better=options.fail_if_not_better)
    return 0
