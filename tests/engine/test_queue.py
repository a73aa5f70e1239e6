"""One model and many callers: order, fairness, limits, cancelling, forks, exit."""

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin import Reranker
from rerank_plugin.engine import queue as model_queue
from rerank_plugin.engine.fork import QueueError
from rerank_plugin.engine.queue import Door
from rerank_plugin.engine.scores import Logits
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.errors import InputError
from rerank_plugin.inputs import Pair

from ..factories import build_model, sample_texts

TEXTS = sample_texts()
REQUESTS = [(f"question {i} dogs", TEXTS[i : i + 3 + i % 20]) for i in range(64)]


class Gate:
    """Block the forward pass until it is opened, and record the sizes of its batches.

    Args:
        reranker: Whose model.
        shut: Whether it starts shut.
    """

    def __init__(self, reranker: Reranker, *, shut: bool = True) -> None:
        self.forward: Callable[[Sequence[EncodedPair]], Logits] = reranker._scorer.forward
        self.batches: list[int] = []
        self.reached, self.open = threading.Event(), threading.Event()
        #: Called behind every batch.
        self.then: Callable[[], object] = list
        if not shut:
            self.open.set()
        reranker._scorer.forward = self  # type: ignore[method-assign]

    def __call__(self, pairs: Sequence[EncodedPair]) -> Logits:
        self.batches.append(len(pairs))
        self.reached.set()
        assert self.open.wait(60)
        logits = self.forward(pairs)
        self.then()
        return logits


@contextmanager
def busy(reranker: Reranker) -> Iterator[Gate]:
    """Keep the model busy with one pair until the block ends."""
    gate = Gate(reranker)
    first = reranker._queue.submit([("ferry", "dog")])
    assert gate.reached.wait(60)
    try:
        yield gate
    finally:
        gate.open.set()
        first.exception(60)


@pytest.fixture
def reranker(tiny_model: Path) -> Reranker:
    return Reranker(tiny_model, dtype="float32", device="cpu")


def pairs(query: str, count: int) -> list[tuple[str, str]]:
    return [(query, f"{TEXTS[i % len(TEXTS)][:30]} {i}") for i in range(count)]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
async def test_threads_and_tasks_get_the_ranking_of_a_single_caller(
    tmp_path: Path, dtype: str, bound: float
) -> None:
    folder = build_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    reranker = Reranker(folder, dtype=dtype, device="cpu")
    expected = [reranker.rank(*request) for request in REQUESTS]
    with ThreadPoolExecutor(64) as pool:
        loop = asyncio.get_running_loop()
        threads = [loop.run_in_executor(pool, reranker.rank, *request) for request in REQUESTS]
        tasks = [asyncio.create_task(reranker.arank(*request)) for request in REQUESTS]
        rankings = await asyncio.gather(*threads, *tasks)
    for ranking, serial in zip(rankings, [*expected, *expected], strict=True):
        assert [result.index for result in ranking] == [result.index for result in serial]
        scores = [result.score for result in ranking]
        np.testing.assert_allclose(scores, [result.score for result in serial], atol=bound)


def test_waiting_requests_are_scored_together(reranker: Reranker) -> None:
    wanted = [reranker.logits(pairs(f"dog {i}", 2)) for i in range(5)]
    with busy(reranker) as gate:
        futures = [reranker._queue.submit(pairs(f"dog {i}", 2)) for i in range(5)]
    np.testing.assert_allclose([future.result() for future in futures], wanted, atol=1e-5)
    assert gate.batches == [1, 10]


def test_parts_of_one_call_do_not_share_batches(reranker: Reranker) -> None:
    """Otherwise the last digits of its scores would depend on how far ahead it is read."""
    call = object()
    with busy(reranker) as gate:
        futures = [reranker._queue.submit(pairs(f"dog {i}", 2), caller=call) for i in range(3)]
        futures.append(reranker._queue.submit(pairs("cat", 3)))
    for future in futures:
        future.result(60)
    assert gate.batches == [1, 2 + 3, 2, 2]


def test_three_documents_pass_ten_thousand(reranker: Reranker) -> None:
    done: list[str] = []
    with busy(reranker) as gate:
        long = reranker._queue.submit(pairs("long", 2_000))
        long.add_done_callback(lambda _: done.append("long"))
        short = reranker._queue.submit(pairs("short", 3))
        short.add_done_callback(lambda _: done.append(f"short after {len(gate.batches)}"))
    long.result(60)
    assert done == ["short after 2", "long"]


def test_a_long_request_has_its_turn(reranker: Reranker) -> None:
    """However many short requests arrive after it."""
    short: list[Future[Logits]] = []
    with busy(reranker) as gate:
        long = reranker._queue.submit(pairs("long", 400))

        def one_more() -> None:
            if not long.done():
                short.append(reranker._queue.submit(pairs("short", 40)))

        gate.then = one_more
        one_more()
    long.result(60)
    assert 5 < len(short) < 20


def test_jobs_for_other_adapters_are_scored_apart(reranker: Reranker) -> None:
    with busy(reranker) as gate:
        futures = [
            reranker._queue.submit(pairs(f"dog {i}", 1 + i), adapter="ab"[i % 2]) for i in range(4)
        ]
    for future in futures:
        future.result(60)
    assert sorted(gate.batches[1:]) == [1 + 3, 2 + 4]


async def test_cancelling_frees_the_work(reranker: Reranker) -> None:
    with busy(reranker) as gate:
        call = reranker.arank("long", [text for _, text in pairs("", 2_000)])
        task = asyncio.create_task(call)
        while not reranker._queue._schedule.waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await reranker.ascore(pairs("dog", 2)) is not None
    assert gate.batches == [1, 2]
    assert {door.inside for door in reranker._queue._doors.values()} == {0}


def test_a_stream_that_is_left_frees_the_work(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_plugin.engine.scorer.PAIRS_AT_ONCE", 300)
    gate = Gate(reranker, shut=False)
    stream = reranker.stream(iter(pairs("dog", 3_000)))
    assert len(next(stream)) == 300
    stream.close()  # type: ignore[attr-defined]
    reranker.score(pairs("cat", 1))
    assert sum(gate.batches) < 700


@given(
    st.lists(st.integers(1, 12) | st.none(), max_size=30),
    st.randoms(use_true_random=False),
)
def test_a_door_admits_everyone_and_never_more_than_its_room(
    moves: list[int | None], random: Any
) -> None:
    """A number is the size of a new request; None ends one that is inside, or cancels one."""
    door, tickets = Door(10), list[tuple[int, "Future[None]"]]()

    def leave(ticket: tuple[int, "Future[None]"]) -> None:
        tickets.remove(ticket)
        if not ticket[1].cancel():
            door.inside -= ticket[0]
        door.admit()

    for move in moves:
        if move:
            tickets.append((move, Future()))
            door.outside.append(tickets[-1])
            door.admit()
        elif tickets:
            leave(random.choice(tickets))
        inside = [count for count, ticket in tickets if ticket.done()]
        assert door.inside == sum(inside)
        assert door.inside <= door.room or len(inside) == 1
    while tickets:
        leave(next(ticket for ticket in tickets if ticket[1].done()))
    assert door.inside == 0
    assert not door.outside


async def test_callers_wait_while_there_is_no_room(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_queue, "ROOM", 20)
    reranker = Reranker(tiny_model, dtype="float32", device="cpu")
    encoded: list[int] = []
    encode = reranker._scorer.encode

    def counted(pairs: Sequence[Pair]) -> Any:
        encoded.append(len(pairs))
        return encode(pairs)

    monkeypatch.setattr(reranker._scorer, "encode", counted)
    with ThreadPoolExecutor(8) as pool:
        with busy(reranker):
            encoded.clear()
            loop = asyncio.get_running_loop()
            calls: list[Any] = [reranker.ascore(pairs(f"a{i}", 6)) for i in range(8)]
            calls += [
                loop.run_in_executor(pool, reranker.score, pairs(f"b{i}", 6)) for i in range(8)
            ]
            waiting = asyncio.gather(*calls)
            outside = reranker._queue._doors["short"].outside
            while len(outside) < 13 or len(encoded) < 3:
                await asyncio.sleep(0)
            assert encoded == [6, 6, 6]
        assert [len(scores) for scores in await waiting] == [6] * 16
    assert reranker._queue._doors["short"].inside == 0


async def test_an_invalid_text_is_an_error_of_its_caller_alone(reranker: Reranker) -> None:
    good, bad = [("dog", "cat")], [("dog", "\ud83d")]
    outputs = await asyncio.gather(
        *(reranker.ascore(pairs) for pairs in (good, bad, good)), return_exceptions=True
    )
    assert isinstance(outputs[1], InputError)
    np.testing.assert_array_equal(outputs[0], outputs[2])
    with pytest.raises(ZeroDivisionError):
        reranker.logits(pairs("dog", 5), lambda _: 1 / 0)
    assert {door.inside for door in reranker._queue._doors.values()} == {0}


def test_an_error_of_the_model_is_raised_for_every_request_of_the_batch(reranker: Reranker) -> None:
    with busy(reranker) as gate:
        forward = gate.forward
        gate.forward = lambda _: np.full(1, 1 // 0)
        futures = [reranker._queue.submit(pairs(f"dog {i}", 2)) for i in range(2)]
    for future in futures:
        assert isinstance(future.exception(60), ZeroDivisionError)
    gate.forward = forward
    assert len(reranker.score(pairs("dog", 2))) == 2


def test_out_of_memory_splits_the_batch_of_all_callers(tiny_model: Path) -> None:
    reranker = Reranker(tiny_model, dtype="float32", device="cpu", token_budget=4096)
    wanted = [reranker.logits(pairs(f"dog {i}", 60)) for i in range(3)]
    with busy(reranker) as gate:
        forward = gate.forward

        def limited(batch: Sequence[EncodedPair]) -> Logits:
            if sum(len(pair) for pair in batch) > 900:
                raise torch.OutOfMemoryError
            return forward(batch)

        futures = [reranker._queue.submit(pairs(f"dog {i}", 60)) for i in range(3)]
        gate.forward = limited
    logits = [future.result(60) for future in futures]
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert reranker._scorer.token_budget < 4096


async def test_nothing_blocks_the_event_loop(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = threading.current_thread()
    result = Future.result

    def elsewhere(function: Any) -> Any:
        def checked(*arguments: Any) -> Any:
            assert threading.current_thread() is not loop
            return function(*arguments)

        return checked

    def done(future: "Future[Any]", timeout: float | None = None) -> Any:
        assert future.done() or threading.current_thread() is not loop
        return result(future, timeout)

    scorer = reranker._scorer
    monkeypatch.setattr(scorer, "encode", elsewhere(scorer.encode))
    monkeypatch.setattr(scorer, "forward", elsewhere(scorer.forward))
    monkeypatch.setattr(Future, "result", done)
    calls = [reranker.arank("dog", [text for _, text in pairs("", n)]) for n in (1, 30, 700)]
    assert [len(ranking) for ranking in await asyncio.gather(*calls)] == [1, 30, 700]


def test_an_unused_model_is_freed(tiny_model: Path) -> None:
    reranker = Reranker(tiny_model)
    reranker.rank("dog", ["cat"])
    thread, model = reranker._queue._thread, weakref.ref(reranker._scorer.model)
    assert thread is not None
    del reranker
    thread.join(60)
    gc.collect()
    assert not thread.is_alive()
    assert model() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_logs_a_warning(tiny_model: Path, reranker: Reranker) -> None:
    """With several threads, with which even a model loaded in the child would hang."""
    torch.set_num_threads(2)
    reranker.rank("dog", ["cat"])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        attempts: list[Callable[[], object]] = [
            lambda: reranker.rank("dog", ["cat"]),
            lambda: asyncio.run(reranker.arank("dog", ["cat"])),
            lambda: Reranker(tiny_model),
        ]
        for attempt in attempts:
            try:
                attempt()
            except QueueError as error:
                os.write(writing, f"{error}\n".encode())
        del reranker
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    warnings = os.read(reading, 9999).decode().splitlines()
    assert len(warnings) == 3
    assert all("before this process was forked" in line for line in warnings)
    assert len(reranker.rank("dog", ["cat"])) == 1


def best(folder: Path) -> int:
    return Reranker(folder, dtype="float32").rank("dog", TEXTS[:5])[0].index


def test_spawned_processes_work(
    tiny_model: Path, reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process imports this module by its name.
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        index = pool.submit(best, tiny_model).result()
    assert index == reranker.rank("dog", TEXTS[:5])[0].index


def ended(program: str, model: Path) -> tuple[int, str, str]:
    """Run a program; returns exit code, stdout and stderr."""
    command = [sys.executable, "-c", program, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def test_python_ends_cleanly(tiny_model: Path) -> None:
    """With a cancelled task, waiting daemons, a thread that scores at the end, a call at exit."""
    program = (
        "import asyncio, atexit, sys, threading, torch\n"
        "torch.set_num_threads(1)\n"
        "from rerank_plugin import Reranker\n"
        "from rerank_plugin.engine import scorer\n"
        "scorer.PAIRS_AT_ONCE = 64\n"
        "texts = [f'text {i} of some words' for i in range(100)]\n"
        "many = [f'{i}' for i in range(20_000)]\n"
        "reranker = Reranker(sys.argv[1])\n"
        "queue = reranker._queue\n"
        "async def main():\n"
        "    task = asyncio.create_task(reranker.arank('a', many))\n"
        "    while not queue._schedule.waiting: await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
        "def score_last():\n"
        "    threading.main_thread().join()\n"
        "    print(len(reranker.rank('a', texts)))\n"
        "threading.Thread(target=score_last).start()\n"
        "atexit.register(lambda: print(len(reranker.rank('b', texts))))\n"
        "many_pairs = [('a', text) for text in many]\n"
        "for _ in range(3):\n"
        "    threading.Thread(target=reranker.score, args=(many_pairs,), daemon=True).start()\n"
        "while not queue._schedule.waiting: pass\n"
    )
    assert ended(program, tiny_model) == (0, "100\n100\n", "")


def test_python_waits_for_a_model_to_be_freed(tiny_model: Path) -> None:
    """The queue's thread may free it, and must not be stopped inside torch."""
    program = (
        "import sys, threading, time, weakref\n"
        "from rerank_plugin import Reranker\n"
        "reranker = Reranker(sys.argv[1])\n"
        "reranker.rank('a', ['b'])\n"
        "def free():\n"
        "    time.sleep(1)\n"
        "    print('freed', flush=True)\n"
        "weakref.finalize(reranker._scorer, free).atexit = False\n"
        "gone = threading.Event()\n"
        "weakref.finalize(reranker._queue, gone.set)\n"
        "del reranker\n"
        "gone.wait()\n"
    )
    assert ended(program, tiny_model) == (0, "freed\n", "")


def test_a_closed_queue_raises_an_error(reranker: Reranker) -> None:
    with busy(reranker):
        waiting = reranker._queue.submit(pairs("dog", 2))
        reranker._queue.close()
    assert reranker._queue._thread is not None
    reranker._queue._thread.join()
    assert not waiting.done()
    assert waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(QueueError, match="closed"):
        reranker.rank("dog", ["cat"])
