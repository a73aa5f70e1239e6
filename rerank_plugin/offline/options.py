"""Options of ranking files of requests, validated together for Python and the command line."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.outputs import check_output, check_output_folder
from rerank_plugin.options import ScoreOptions, check_options, option

ENGINES = ("local", "ray")

OUTPUT_FORMATS = ("jsonl", "parquet")

#: The devices that Ray can give to a worker.
RAY_DEVICES = ("auto", "cpu", "cuda")

#: The number of requests in a shard by default.
SHARD_SIZE = 1_000

#: Options that results do not depend on: a resumed command may have others.
IRRELEVANT = {
    *("output", "overwrite", "device", "token_budget", "threads", "data_path"),
    *("engine", "workers"),
}


@dataclass(kw_only=True)
class RerankOptions(ScoreOptions):
    """Rank documents: prints {"query", "scores" in input order, "ranking"} for every request."""

    model_dir: str = option(help="the model: a hub id, a folder or an adapter folder")
    data_path: str | list[str] = option(
        help="a .json, .jsonl or .parquet file with queries and documents"
    )
    output: str | None = option(
        None,
        help="a .jsonl file for the results, instead of stdout, or with --engine ray a folder; if "
        "the command is interrupted, the same command resumes it",
    )
    overwrite: bool = option(False, help="replace an earlier --output")
    top_n: int | None = option(
        None, minimum=1, help="the maximum number of documents in a ranking; default: all"
    )
    score_threshold: float | str | None = option(
        None,
        help="the lowest score in a ranking, before --top_n counts: a number, or the name of a "
        "calibrated threshold of the model, such as precision@0.9",
    )
    engine: str = option(
        "local", choices=ENGINES, help="this process, or the workers of a Ray cluster"
    )
    workers: int | None = option(
        None,
        minimum=1,
        help="the number of models of --engine ray; default: one for each GPU of the cluster, or "
        "one for each node without any",
    )
    shard_size: int | None = option(
        None,
        minimum=1,
        help=f"the number of requests in a file of --engine ray; default: {SHARD_SIZE}",
    )
    output_format: str | None = option(
        None, choices=OUTPUT_FORMATS, help="the files of --engine ray; default: that of the data"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.engine == "ray":
            self._check_ray()
        else:
            self._check_local()

    def _check_local(self) -> None:
        for name in ("workers", "shard_size", "output_format"):
            if getattr(self, name) is not None:
                raise OptionError(name, "requires --engine ray")
        if self.output:
            check_output(Path(self.output), [self.data_path], overwrite=self.overwrite)

    def _check_ray(self) -> None:
        if not self.output:
            raise OptionError("output", "a folder is required by --engine ray")
        if self.device not in RAY_DEVICES:
            problem = f"{self.device} is not allowed with --engine ray, which chooses the GPUs"
            raise OptionError("device", problem)
        check_output_folder(Path(self.output), option="output")

    @property
    def results_depend_on(self) -> dict[str, object]:
        """Return the options that results depend on: a resumed command must have the same."""
        return {name: value for name, value in asdict(self).items() if name not in IRRELEVANT}
