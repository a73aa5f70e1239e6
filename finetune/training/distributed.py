"""The processes of a run: one, or one a device under torchrun or accelerate launch."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from rerank_plugin.errors import InputError
from rerank_plugin.signals import ending_signals

Item = TypeVar("Item")

#: What torchrun and accelerate launch tell every process.
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")

#: What other launchers tell theirs, which torch would not listen to and accelerate would.
OTHER_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

HOW = "unset it, or start with torchrun or accelerate launch"


def check_launcher() -> None:
    """Check that the environment describes one process, or one of several, and not a part of that.

    Variables that are empty are removed: libraries read them as numbers.

    Raises:
        InputError: a variable is left over from another launch, missing, or no number.
    """
    for name in (*LAUNCHER, "MASTER_ADDR", *OTHER_SIZES):
        if not os.environ.get(name, "x").strip():
            del os.environ[name]
    numbers = {name: number(name) for name in LAUNCHER if name in os.environ}
    size, rank = numbers.get("WORLD_SIZE", 1), numbers.get("RANK", 0)
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": -1}[name]
        if missing and numbers.get(name, alone) != alone:
            value = os.environ[name]
            raise InputError(f"{name}={value} is set without {' and '.join(missing)}: {HOW}")
    if size < 1:
        raise InputError(f"WORLD_SIZE={size} is less than 1: {HOW}")
    if not 0 <= rank < size:
        raise InputError(f"RANK={rank} is not from 0 to below WORLD_SIZE={size}: {HOW}")
    for name in OTHER_SIZES:
        if size == 1 and name in os.environ and number(name) > 1:
            raise InputError(f"{name}={os.environ[name]} is set without WORLD_SIZE: {HOW}")


def number(name: str) -> int:
    """Return an environment variable as a whole number."""
    try:
        return int(os.environ[name])
    except ValueError:
        value = os.environ[name]
        raise InputError(f"{name}={value!r} is no whole number: {HOW}") from None


def world_size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Return the number of this process; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK") or 0)


def is_sharded(options: Mapping[str, Any]) -> bool:
    """Return whether each process gets a part of the weights, by arguments or the launcher."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    launched = any(os.environ.get(name, "").lower() in ("1", "true") for name in names)
    return launched or bool(options.get("fsdp") or options.get("deepspeed"))


def load_in_every_process() -> None:
    """Let all processes load all weights, where accelerate would let the first alone do so.

    What lies in no file, a newly initialised head, has to be made by each of them.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def meet(*, on_cpu: bool) -> None:
    """Wait until all processes of the run are there."""
    from accelerate import PartialState

    load_in_every_process()
    with ended_by_signals():
        PartialState(cpu=on_cpu)


def gathered(item: Item) -> list[Item]:
    """Return one item of every process, in the order of their ranks, in every process."""
    if world_size() == 1:
        return [item]
    import torch.distributed as dist

    items: list[Item | None] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items  # type: ignore[return-value]


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process go through alone, and the others find what it left.

    If it fails, it says why, and the others end without a word.
    """
    if rank() > 0:
        with ended_by_signals():
            passed = gathered(True)[0]
        if not passed:
            raise SystemExit(1)
        yield
        return
    try:
        yield
    except BaseException:
        gathered(False)
        raise
    with ended_by_signals():
        gathered(True)


def wait() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        import torch.distributed as dist

        with ended_by_signals():
            dist.barrier()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end a process that waits for others.

    It waits outside of Python, whose own handlers would not run before the others have come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {item: signal.signal(item, signal.SIG_DFL) for item in ending_signals()}
    try:
        yield
    finally:
        for item, handler in earlier.items():
            if handler is not None:
                signal.signal(item, handler)
