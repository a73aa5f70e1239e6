"""`rerank-plugin rerank`: one JSON object for each request, on stdout or in a file."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from rerank_plugin.cli.console import Stdout, bar, say
from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import (
    is_stream,
    move_file,
    naming,
    open_stream,
    part_of,
    real_path,
    write_json,
)
from rerank_plugin.io.jsonl import fingerprint
from rerank_plugin.io.locks import locked
from rerank_plugin.io.outputs import check_output
from rerank_plugin.io.requests import Request, read_requests
from rerank_plugin.options import ScoreOptions, check_options, option

if TYPE_CHECKING:
    from rerank_plugin.engine.scorer import Logits
    from rerank_plugin.ranking import Selection
    from rerank_plugin.reranker import Reranker


@dataclass(kw_only=True)
class RerankOptions(ScoreOptions):
    """Rank documents: prints {"query", "scores" in input order, "ranking"} for every request."""

    model_dir: str = option(help="the model: a hub id, a folder or an adapter folder")
    data_path: str | list[str] = option(help="a .json or .jsonl file with queries and documents")
    output: str | None = option(
        None,
        help="a .jsonl file for the results, instead of stdout; if the command is interrupted, the "
        "same command resumes it",
    )
    overwrite: bool = option(False, help="replace an earlier --output")
    top_n: int | None = option(
        None, minimum=1, help="the number of documents in a ranking at most; default: all"
    )
    score_threshold: float | str | None = option(
        None,
        help="the lowest score in a ranking, before --top_n counts: a number, or the name of a "
        "calibrated threshold of the model, such as precision@0.9",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.output:
            check_output(Path(self.output), [self.data_path], overwrite=self.overwrite)


def main(options: RerankOptions) -> int:
    """Rank every request of the data path, in its order."""
    # All of it is read once before the model loads: a bad line at the end comes to light first.
    total = sum(len(request.documents) for request in read_requests(options.data_path))
    output = Path(options.output) if options.output else None
    if output is None or is_stream(output):
        with open_stream(output) if output else nullcontext(Stdout()) as file:
            rank_all(options, file, total)
        return 0
    with Unfinished.open(options) as unfinished:
        with unfinished.writing() as file:
            rank_all(options, file, total, done=unfinished.lines)
        unfinished.finish()
    return 0


def rank_all(options: RerankOptions, file: IO[str] | Stdout, total: int, *, done: int = 0) -> None:
    """Rank all requests but the first ones.

    Args:
        options: The command's.
        file: Where the results go.
        total: How many pairs there are.
        done: How many requests an earlier run has ranked.
    """
    from rerank_plugin.ranking import Selection

    reranker = options.load_reranker(options.model_dir)
    requests = read_requests(options.data_path)
    selection = Selection(options.top_n, options.score_threshold)
    pairs = sum(len(request.documents) for request in islice(requests, done))
    with bar("ranking", "pair", total, initial=pairs) as progress:
        write_results(file, rank(reranker, requests, selection, progress.update))


def write_results(file: IO[str] | Stdout, results: Iterable[list[dict[str, object]]]) -> None:
    """Write results as they come, a line each."""
    for part in results:
        file.write("".join(json.dumps(result, ensure_ascii=False) + "\n" for result in part))
        file.flush()


def rank(
    reranker: "Reranker",
    requests: Iterator[Request],
    selection: "Selection",
    progress: Callable[[int], Any],
) -> Iterator[list[dict[str, object]]]:
    """The results of requests in their order, some at a time, in flat memory."""
    from rerank_plugin.ranking import document_text

    # What has been read and not ranked yet; filled by the thread that reads ahead.
    waiting: deque[Request] = deque()
    lowest_logit = selection.lowest_logit(reranker.settings())

    def pairs() -> Iterator[tuple[str, str]]:
        for request in requests:
            waiting.append(request)
            for document in request.documents:
                yield request.query, document_text(document)

    def ready(logits: "Logits") -> tuple[list[dict[str, object]], "Logits"]:
        results = []
        while waiting and len(waiting[0].documents) <= len(logits):
            request = waiting.popleft()
            own, logits = np.split(logits, [len(request.documents)])
            ranking = selection.rank(own, reranker.normalized(own), lowest_logit)
            results.append(result(request, reranker.normalized(own), ranking))
        return results, logits

    left = np.empty(0, np.float32)
    for logits in reranker.stream_ranking_logits(pairs(), progress):
        results, left = ready(np.concatenate([left, logits]))
        yield results
    yield ready(left)[0]


def result(
    request: Request, scores: "Logits", ranking: list[tuple[int, float]]
) -> dict[str, object]:
    """Return the result that is printed for a request."""
    return {
        "query": request.query,
        "scores": scores.tolist(),
        "ranking": [{"index": index, "score": score} for index, score in ranking],
    }


class Unfinished:
    """Results on their way to `--output`: `<output>.part`, beside it what they are the results of.

    Args:
        output: Where they will stand, without links.
        task: The data and the options that results depend on.

    Raises:
        OptionError: results of something else lie there.
    """

    def __init__(self, output: Path, task: dict[str, object]) -> None:
        self.output = output
        self.part = part_of(output)
        self.state = output.with_name(output.name + ".part.json")
        #: Results that an earlier run has left.
        self.lines = 0
        self._replaces = output.exists()
        if self.part.exists() and self.part.stat().st_size:
            if self._known_task() != task:
                raise OptionError(
                    "output",
                    f"{self.part} holds unfinished results of other data or options: remove it, or "
                    "choose another --output",
                )
            self.lines = keep_whole_lines(self.part)
            say(f"going on behind the {self.lines} requests in {self.part}")
        else:
            write_json(self.state, task)

    def _known_task(self) -> object:
        """Return what the unfinished results are the results of; None if that cannot be read."""
        with suppress(OSError, ValueError):
            return json.loads(self.state.read_text(encoding="utf-8"))
        return None

    @classmethod
    @contextmanager
    def open(cls, options: RerankOptions) -> Iterator[Self]:
        """Hold the unfinished results of a command, alone.

        Raises:
            BlockingIOError: another command is writing them.
            OptionError: they are of something else.
        """
        free = ("output", "overwrite", "device", "token_budget", "data_path")
        task = {name: value for name, value in asdict(options).items() if name not in free}
        task["data"] = fingerprint(options.data_path)
        output = real_path(Path(str(options.output)))
        with locked(part_of(output)):
            yield cls(output, task)

    @contextmanager
    def writing(self) -> Iterator[IO[str]]:
        """The file, open behind what it holds."""
        try:
            with naming(self.part), self.part.open("a", encoding="utf-8") as file:
                yield file
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        """Say what is left of a command that ends early; nothing where there is no result."""
        if self.part.exists() and self.part.stat().st_size:
            say(f"stopped: results so far are in {self.part}; the same command goes on with them")
            return
        for file in (self.part, self.state):
            file.unlink(missing_ok=True)

    def finish(self) -> None:
        """Put the results in their place."""
        move_file(self.part, self.output, replaces=self._replaces)
        self.state.unlink(missing_ok=True)


def keep_whole_lines(path: Path) -> int:
    """Cut off what was being written when a run was killed; how many lines are left."""
    lines = end = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, end = lines + 1, end + len(line)
        file.truncate(end)
    return lines
