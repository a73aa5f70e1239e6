"""Ranking in this process: results on stdout or in one file, which a later run can resume."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from rerank_plugin.cli.console import Stdout, bar
from rerank_plugin.io.jsonl import DataPath
from rerank_plugin.io.requests import RerankRequest, read_requests, request_files
from rerank_plugin.io.streams import is_stream, open_stream
from rerank_plugin.io.unfinished import Unfinished
from rerank_plugin.offline.options import RerankOptions
from rerank_plugin.offline.result import RerankResult, result_record
from rerank_plugin.offline.task import changes, ranking_task

if TYPE_CHECKING:
    from rerank_plugin.ranking import RankedDocuments


def rank_locally(options: RerankOptions, *, progress: bool) -> RerankResult:
    """Rank every request of the data path, in its order."""
    # All requests are read once before the model loads, so that a bad line is found first.
    contents = Contents.read(options.data_path)
    output = Path(options.output) if options.output else None
    if output is None or is_stream(output):
        with open_stream(output) if output else nullcontext(Stdout()) as file:
            rank_all(options, file, contents, progress=progress)
        return RerankResult([], contents.requests)
    task = ranking_task(options, request_files(options.data_path))
    with Unfinished.open(output, task, "requests", changes) as unfinished:
        with unfinished.writing() as file:
            rank_all(options, file, contents, done=unfinished.lines, progress=progress)
        unfinished.finish()
    return RerankResult([unfinished.output], contents.requests, unfinished.lines)


@dataclass
class Contents:
    """The facts about all requests that are known before the first one is ranked."""

    requests: int = 0
    pairs: int = 0
    #: The first request with an instruction.
    instructed: RerankRequest | None = None

    @classmethod
    def read(cls, data_path: DataPath) -> Self:
        """Read and check all requests."""
        contents = cls()
        for request in read_requests(data_path):
            contents.requests += 1
            contents.pairs += len(request.documents)
            if request.instruction and contents.instructed is None:
                contents.instructed = request
        return contents


def rank_all(
    options: RerankOptions,
    file: IO[str] | Stdout,
    contents: Contents,
    *,
    done: int = 0,
    progress: bool = False,
) -> None:
    """Rank all requests but the first ones, and write the results.

    Args:
        options: The options.
        file: The file for the results, a line each.
        contents: What is known of the requests.
        done: The number of requests that an earlier run has ranked.
        progress: Show a progress bar on stderr.
    """
    reranker = options.load_reranker(options.model_dir)
    if contents.instructed:
        reranker.check_instruction(contents.instructed.instruction, contents.instructed.where)
    requests = read_requests(options.data_path)
    pairs = sum(len(request.documents) for request in islice(requests, done))
    with bar("ranking", "pair", contents.pairs, shown=progress, initial=pairs) as shown:
        for ranked in reranker.rank_stream(
            (request.to_rank for request in requests),
            options.top_n,
            shown.update,
            score_threshold=options.score_threshold,
        ):
            file.write(result_line(ranked))
            file.flush()


def result_line(ranked: "RankedDocuments[Any]") -> str:
    """Return the result of a request as a line of JSON."""
    return json.dumps(result_record(ranked), ensure_ascii=False) + "\n"
