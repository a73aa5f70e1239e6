"""Scoring and latency rows: all contestants in turn on the same new texts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shared.machine import precisions
from shared.models import MAX_LENGTH, Shape
from shared.results import Row, Run
from shared.texts import Request, Texts, pair_lengths
from shared.workers import Answer, Unsupported, Worker

#: Documents of a query when scoring: two full batches of rerankers, one of sentence-transformers.
DOCUMENTS = 32

#: Documents of a query when its latency is measured.
RAG_DOCUMENTS = 50

#: The largest difference of float32 logits, where logits differ by about 1 between pairs.
TOLERANCE = 1e-3


@contextmanager
def open_workers(folder: Path, log: Path, names: Iterable[str]) -> Iterator[list[Worker]]:
    """Return each contestant in its default, and in the precisions that this is not.

    A precision that a contestant does not support here is left out.
    """
    workers: list[Worker] = []
    try:
        workers += [Worker(who, folder, None, log) for who in names]
        for worker in list(workers):
            others = [name for name in measured(worker) if name != worker.loaded.precision]
            workers += [Worker(worker.who, folder, name, log) for name in others]
        for worker in list(workers):
            if isinstance(worker.started, Unsupported):
                workers.remove(worker)
                worker.close()
        for worker in workers:
            if worker.setting not in ("default", worker.loaded.precision):
                raise SystemExit(f"{worker.name} holds its weights in {worker.loaded.precision}")
        yield workers
    finally:
        for worker in workers:
            worker.close()


def measured(worker: Worker) -> list[str]:
    """Return the precisions of a contestant that this machine multiplies."""
    return [name for name in worker.precisions if name in (*precisions(), "int8")]


def check_agreement(
    workers: Sequence[Worker], requests: Sequence[Request]
) -> dict[str, dict[str, float]]:
    """Check that all compute the same float32 logits.

    Returns:
        For each worker the largest difference from the logits of the first one in float32, and the
        correlation with them.

    Raises:
        SystemExit: they do not, so comparing their times would mean nothing.
    """
    workers = sorted(workers, key=lambda worker: worker.loaded.precision != "float32")
    logits = [worker.score(requests).values for worker in workers]
    agreement = {}
    for worker, values in zip(workers, logits, strict=True):
        distance = float(np.abs(np.subtract(values, logits[0])).max())
        correlation = float(np.corrcoef(values, logits[0])[0, 1])
        agreement[worker.name] = {"difference": distance, "correlation": correlation}
        if worker.loaded.precision == "float32" and distance > TOLERANCE:
            raise SystemExit(
                f"{worker.name}: logits differ by {distance:.2g} from {workers[0].name}'s"
            )
    return agreement


def measure_scoring(
    row: Row, workers: Sequence[Worker], texts: Texts, folder: Path, *, queries: int, rounds: int
) -> None:
    """Fill a row with rounds in which all contestants score the same new pairs."""
    runs = begin(row, workers)
    warm = texts.requests(1, DOCUMENTS // 4)
    for worker in workers:
        worker.score(warm)
        worker.reset_peak_memory()
    for number in range(rounds):
        requests = texts.requests(queries, DOCUMENTS)
        add_round(row, requests, texts, folder)
        for worker in rotated(workers, number):
            note(runs[worker.name], worker.score(requests))
    row.add_gemm()


def measure_latency(
    row: Row, workers: Sequence[Worker], texts: Texts, folder: Path, *, queries: int
) -> None:
    """Fill a row with queries, for each of which all contestants rank the same documents."""
    runs = begin(row, workers)
    for query, documents in texts.requests(1, RAG_DOCUMENTS):
        for worker in workers:
            worker.rank(query, documents)
    for worker in workers:
        worker.reset_peak_memory()
    for number, (query, documents) in enumerate(texts.requests(queries, RAG_DOCUMENTS)):
        add_round(row, [(query, documents)], texts, folder)
        for worker in rotated(workers, number):
            note(runs[worker.name], worker.rank(query, documents))
    row.add_gemm()


def begin(row: Row, workers: Sequence[Worker]) -> dict[str, Run]:
    """Return a run for every worker, by its name."""
    runs = {}
    for worker in workers:
        loaded = worker.loaded
        runs[worker.name] = Run(
            worker.who, worker.setting, loaded.precision, loading_memory=loaded.peak_memory
        )
    row.runs = list(runs.values())
    return runs


def add_round(row: Row, requests: Sequence[Request], texts: Texts, folder: Path) -> None:
    """Write down what a round holds, and how fast the machine is just before it."""
    lengths = pair_lengths(requests, texts.tokenizer, MAX_LENGTH)
    row.add_round(lengths, Shape.read(folder).forward_flops(lengths))
    row.add_gemm()


def rotated(workers: Sequence[Worker], number: int) -> list[Worker]:
    """Rotate the order in every round, so that none always has the cooler machine."""
    start = number % len(workers)
    return [*workers[start:], *workers[:start]]


def note(run: Run, answer: Answer) -> None:
    """Add a round's figures to a run."""
    run.add(answer.seconds, answer.others)
    run.peak_memory = max(run.peak_memory, answer.peak_memory)
