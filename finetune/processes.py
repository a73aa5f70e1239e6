"""The processes of a run: one, or one a device under torchrun or accelerate launch."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0"))


def is_sharded(options: Mapping[str, Any]) -> bool:
    """Whether training arguments, or who launched, give each process a part of the weights."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    launched = any(os.environ.get(name, "").lower() in ("1", "true") for name in names)
    return launched or bool(options.get("fsdp") or options.get("deepspeed"))


def load_in_every_process() -> None:
    """Let all processes load all weights, where accelerate would let the first alone do so.

    What lies in no file, a fresh head, has to be made by each of them.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def gathered(item: Item) -> list[Item]:
    """One item of every process, in the order of their ranks, in every process."""
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
        if not gathered(True)[0]:
            raise SystemExit(1)
        yield
        return
    try:
        yield
    except BaseException:
        gathered(False)
        raise
    gathered(True)


def wait() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()
