"""Ranking in this process: results on stdout or in one file, which a later run can resume."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from rerank_plugin.cli.console import Stdout, bar, say
from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import move_file, part_file, write_json
from rerank_plugin.io.disk_errors import naming
from rerank_plugin.io.jsonl import DataPath, fingerprint
from rerank_plugin.io.locks import locked
from rerank_plugin.io.paths import real_path
from rerank_plugin.io.requests import RerankRequest, read_requests, request_files
from rerank_plugin.io.streams import is_stream, open_stream
from rerank_plugin.offline.options import RerankOptions
from rerank_plugin.offline.result import RerankResult, result_record

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
    with Unfinished.open(options) as unfinished:
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


class Unfinished:
    """Unfinished results of `--output` in `<output>.part`, and their task in `<output>.part.json`.

    Args:
        output: The output file, without links.
        task: The data and the options that results depend on.

    Raises:
        OptionError: there are unfinished results of another task.
    """

    def __init__(self, output: Path, task: dict[str, object]) -> None:
        self.output = output
        self.part = part_file(output)
        self.state = output.with_name(output.name + ".part.json")
        #: The number of results of an earlier run.
        self.lines = 0
        self._replaces = output.exists()
        if self.part.exists() and self.part.stat().st_size:
            if self._known_task() != task:
                raise OptionError(
                    "output",
                    f"{self.part} has unfinished results of other data or options: remove it, or "
                    "choose another --output",
                )
            self.lines = keep_whole_lines(self.part)
            say(f"resuming after {self.lines} requests in {self.part}")
        else:
            write_json(self.state, task)

    def _known_task(self) -> object:
        """Return the task of the unfinished results; None if it cannot be read."""
        with suppress(OSError, ValueError):
            return json.loads(self.state.read_text(encoding="utf-8"))
        return None

    @classmethod
    @contextmanager
    def open(cls, options: RerankOptions) -> Iterator[Self]:
        """Lock the unfinished results of a command.

        Raises:
            BlockingIOError: another command is writing them.
            OptionError: they belong to another task.
        """
        task = {**options.results_depend_on, "data": fingerprint(request_files(options.data_path))}
        output = real_path(Path(str(options.output)))
        with locked(part_file(output)):
            yield cls(output, task)

    @contextmanager
    def writing(self) -> Iterator[IO[str]]:
        """Open the file to append to it."""
        try:
            with naming(self.part), self.part.open("a", encoding="utf-8") as file:
                yield file
        except BaseException:  # Ctrl-C, too, leaves results to resume from
            self._leave()
            raise

    def _leave(self) -> None:
        """Say where results are when a command ends early; without any, remove the files."""
        if self.part.exists() and self.part.stat().st_size:
            say(f"stopped: results so far are in {self.part}; the same command resumes")
            return
        for file in (self.part, self.state):
            file.unlink(missing_ok=True)

    def finish(self) -> None:
        """Move the results to the output file."""
        move_file(self.part, self.output, replaces=self._replaces)
        self.state.unlink(missing_ok=True)


def keep_whole_lines(path: Path) -> int:
    """Cut off the line that a killed run was writing; return the number of lines left."""
    lines = end = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, end = lines + 1, end + len(line)
        file.truncate(end)
    return lines
