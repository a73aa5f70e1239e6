"""Measure the endpoint under load: `python benchmarks/serving.py --help`."""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table
from shared import machine
from shared.folders import SQUAD_OR_SAMPLE, add_folders
from shared.models import MODELS, model_folder
from shared.results import percentile
from shared.texts import Request, Source, Texts
from tokenizers import Tokenizer

#: The scores of the documents of a request, in their order.
Scores = list[float]

#: Ranks the documents of a request.
Ask = Callable[[Request], Awaitable[Scores]]

#: How far scores of a request under load may be from those of the request alone.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2, "int8": 5e-2}

#: Requests whose scores alone are known; clients send them again and again.
POOL = 64


@dataclass
class Turn:
    """The replies that the clients of one contestant got."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    #: Replies that are not rankings, and rankings with the scores of other requests.
    errors: list[str] = field(default_factory=list)
    wrong: int = 0
    #: Bytes of the process, after each thousand requests.
    memory: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the turn."""
        return {
            "requests": len(self.latencies),
            "requests_per_second": len(self.latencies) / self.seconds,
            **{f"p{share}_seconds": percentile(self.latencies, share) for share in (50, 95, 99)},
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else None,
            "wrong": self.wrong,
            "memory": self.memory,
        }


@dataclass(frozen=True)
class Load:
    """The clients, what they send, and for how long."""

    clients: int
    seconds: float
    #: The number of requests in place of the seconds.
    requests: int | None
    bound: float

    async def put_on(self, ask: Ask, pool: Sequence[Request], pid: int) -> Turn:
        """Put the load on a contestant, after its scores of each request alone are known."""
        alone = [await ask(request) for request in pool]
        turn, numbers = Turn(memory=[resident(pid)]), itertools.count()
        start = time.perf_counter()

        async def client() -> None:
            while self._goes_on(number := next(numbers), start):
                await self._send(ask, pool[number % len(pool)], alone[number % len(pool)], turn)
                if len(turn.latencies) % 1_000 == 0:
                    turn.memory.append(resident(pid))

        await asyncio.gather(*(client() for _ in range(self.clients)))
        turn.seconds = time.perf_counter() - start
        turn.memory.append(resident(pid))
        return turn

    def _goes_on(self, number: int, start: float) -> bool:
        if self.requests is not None:
            return number < self.requests
        return time.perf_counter() - start < self.seconds

    async def _send(self, ask: Ask, request: Request, alone: Scores, turn: Turn) -> None:
        start = time.perf_counter()
        try:
            scores = await ask(request)
        except (aiohttp.ClientError, KeyError, TypeError, ValueError) as error:
            turn.errors.append(f"{type(error).__name__}: {error}")
            return
        turn.latencies.append(time.perf_counter() - start)
        differences = (abs(a - b) for a, b in zip(scores, alone, strict=True))
        turn.wrong += max(differences) > self.bound


def resident(pid: int) -> int:
    """Return the bytes of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


async def over_http(url: str, model: str, load: Load, pool: Sequence[Request], pid: int) -> Turn:
    """Put the load on a server."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def ask(request: Request) -> Scores:
            query, documents = request
            body = {"model": model, "query": query, "documents": documents}
            async with session.post(url, json=body) as reply:
                results = (await reply.json())["results"]
            scores = {result["index"]: result["relevance_score"] for result in results}
            return [scores[index] for index in range(len(documents))]

        return await load.put_on(ask, pool, pid)


def in_process(
    folder: Path, options: dict[str, Any], load: Load, pool: Sequence[Request], pipe: Connection
) -> None:
    """Put the load on the queue of a model, in its own process."""
    from rerank_plugin import Reranker

    reranker = Reranker(folder, **options)

    async def ask(request: Request) -> Scores:
        scores = [0.0] * len(request[1])
        for ranked in await reranker.arank(*request):
            scores[ranked.index] = ranked.score
        return scores

    pipe.send(asyncio.run(load.put_on(ask, pool, os.getpid())))


@contextmanager
def started(command: Sequence[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, whose output goes to a file, until the block ends."""
    with log.open("wb") as file:
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers.

    Raises:
        SystemExit: it has ended.
    """
    while process.poll() is None:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{process.args}: ended, see {log}")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Bench:
    """The settings that all turns share."""

    folder: Path
    dtype: str
    device: str
    threads: int
    infinity: Path | None
    output: Path
    load: Load
    pool: list[Request]

    def turn(self, who: str) -> Turn:
        """Put the load on a contestant, alone on the machine."""
        if who == "queue":
            return self._queue()
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = self.output / f"serving-{who}.log"
        command = self._serve(port) if who == "serve" else self._infinity(port)
        path = "/v1/rerank" if who == "serve" else "/rerank"
        with started(command, log) as process:
            wait_for(f"{url}/health", process, log)
            model, load = self.folder.name, self.load
            return asyncio.run(over_http(url + path, model, load, self.pool, process.pid))

    def _queue(self) -> Turn:
        options = {"dtype": self.dtype, "device": self.device, "threads": self.threads}
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        arguments = (self.folder, options, self.load, self.pool, theirs)
        process = context.Process(target=in_process, args=arguments)
        process.start()
        theirs.close()
        turn: Turn = pipe.recv()
        process.join()
        return turn

    def _serve(self, port: int) -> list[object]:
        options = ("--dtype", self.dtype, "--device", self.device, "--threads", self.threads)
        command = (sys.executable, "-m", "rerank_plugin", "serve", "--model_dir", self.folder)
        return [*command, *options, "--port", port]

    def _infinity(self, port: int) -> list[object]:
        options = ("--engine", "torch", "--no-bettertransformer", "--dtype", self.dtype)
        name = ("--served-model-name", self.folder.name, "--device", self.device)
        command = (self.infinity, "v2", "--model-id", self.folder, "--host", "127.0.0.1")
        return [*command, *options, *name, "--port", port]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    machine.set_environment(options.threads, options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    source = Source.read(options.data)
    folder = model_folder(options.model, options.output / "models" / options.model, source)
    texts = Texts(source, "own", Tokenizer.from_file(str(folder / "tokenizer.json")), seed=1)
    load = Load(options.clients, options.seconds, options.requests, BOUNDS[options.dtype])
    bench = Bench(
        folder=folder,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        infinity=options.infinity,
        output=options.output,
        load=load,
        pool=texts.requests(options.pool, options.documents),
    )
    contestants = [who for who in options.contestants if who != "infinity" or options.infinity]
    record: dict[str, Any] = {
        "machine": machine.describe(options.threads),
        "options": {name: str(value) for name, value in vars(options).items()},
        "rounds": [],
    }
    for number in range(options.rounds):
        turn = number % len(contestants)
        order = contestants[turn:] + contestants[:turn]
        record["rounds"].append({who: bench.turn(who).figures() for who in order})
        (options.output / "serving.json").write_text(json.dumps(record, indent=2), "utf-8")
    report(record["rounds"], contestants)
    return 0


def report(rounds: Sequence[dict[str, Any]], contestants: Sequence[str]) -> None:
    """Show the medians of all rounds, and the errors and the memory of all."""
    table = Table()
    figures = ("requests_per_second", "p50_seconds", "p95_seconds", "p99_seconds")
    for name in ("", "requests/s", "p50 s", "p95 s", "p99 s", "errors", "wrong", "memory MB"):
        table.add_column(name, justify="right")
    for who in contestants:
        turns = [turns[who] for turns in rounds]
        medians = [f"{statistics.median(turn[name] for turn in turns):.3f}" for name in figures]
        failed = [str(sum(turn[name] for turn in turns)) for name in ("errors", "wrong")]
        first, last = turns[0]["memory"][0], turns[-1]["memory"][-1]
        table.add_row(who, *medians, *failed, f"{first / 2**20:.0f} → {last / 2**20:.0f}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = ["queue", "serve", "infinity"]
    parser.add_argument("--contestants", nargs="+", choices=known, default=known)
    parser.add_argument(
        "--infinity", type=Path, help="the program infinity_emb, in an environment of its own"
    )
    parser.add_argument("--model", choices=list(MODELS), default="minilm")
    parser.add_argument("--dtype", choices=list(BOUNDS), default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="in which each has a turn")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--documents", type=int, default=20, help="of a request")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a turn")
    parser.add_argument("--requests", type=int, help="of a turn, in place of its seconds")
    parser.add_argument("--pool", type=int, default=POOL, help="the number of different requests")
    add_folders(
        parser, data=SQUAD_OR_SAMPLE, output="where serving.json, logs and the model folders go"
    )
    parser.add_argument(
        "--threads", type=int, default=machine.available_cpus(), help="threads of every model"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
