"""The processes of a run, by accelerate: one, or one a device under torchrun; sharded weights."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.state import GradientState
from accelerate.utils import gather_object
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.signals import ending_signals

Value = TypeVar("Value")

#: Environment variables that torchrun and accelerate launch set for every process.
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")

#: Those of other launchers, which torch ignores and accelerate reads.
OTHER_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

#: The oldest versions with which FSDP was tested: with torch 2.8 it changes norms by too much.
FSDP_NEEDS = {"torch": "2.13", "transformers": "5.23"}

REMEDY = "unset it, or start with torchrun or accelerate launch"


def check_launcher() -> int:
    """Return the number of processes that the environment describes.

    Variables that are empty are removed: libraries read them as numbers.

    Raises:
        InputError: a variable is left over from another launch, missing, or no number.
    """
    for name in (*LAUNCHER, "MASTER_ADDR", *OTHER_SIZES):
        if not os.environ.get(name, "x").strip():
            del os.environ[name]
    numbers = {name: environment_number(name) for name in LAUNCHER if name in os.environ}
    size, rank = numbers.get("WORLD_SIZE", 1), numbers.get("RANK", 0)
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": -1}[name]
        if missing and numbers.get(name, alone) != alone:
            value = os.environ[name]
            raise InputError(f"{name}={value} is set without {' and '.join(missing)}: {REMEDY}")
    if size < 1:
        raise InputError(f"WORLD_SIZE={size} is less than 1: {REMEDY}")
    if not 0 <= rank < size:
        raise InputError(f"RANK={rank} is not from 0 to below WORLD_SIZE={size}: {REMEDY}")
    for name in OTHER_SIZES:
        if size == 1 and name in os.environ and environment_number(name) > 1:
            raise InputError(f"{name}={os.environ[name]} is set without WORLD_SIZE: {REMEDY}")
    return size


def environment_number(name: str) -> int:
    """Return an environment variable as a whole number."""
    try:
        return int(os.environ[name])
    except ValueError:
        value = os.environ[name]
        raise InputError(f"{name}={value!r} is not a whole number: {REMEDY}") from None


def join_processes(*, on_cpu: bool) -> None:
    """Wait until all processes of the run have started."""
    # accelerate would let the main process alone load the weights; a newly initialised head is in
    # no file, so that all of them have to draw it.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    with ended_by_signals():
        PartialState(cpu=on_cpu)


def process_count() -> int:
    """Return how many processes train together."""
    return int(PartialState().num_processes)


def is_main_process() -> bool:
    """Return whether this is the process that writes and logs."""
    return bool(PartialState().is_main_process)


def gather(value: Value) -> list[Value]:
    """Return the values of all processes, in the order of their ranks, in every process."""
    values: list[Value] = gather_object([value])
    return values


def wait_for_everyone() -> None:
    """Wait for all processes."""
    with ended_by_signals():
        PartialState().wait_for_everyone()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run a block in the main process, and after that in the others.

    If it fails in the main process, the others exit silently; accelerate's `main_process_first`
    would let them wait.
    """
    if not is_main_process():
        with ended_by_signals():
            passed = gather(True)[0]
        if not passed:
            raise SystemExit(1)
        yield
        return
    try:
        yield
    except BaseException:
        # Whatever ended the block, Ctrl-C included, the other processes must not wait for it.
        gather(False)
        raise
    with ended_by_signals():
        gather(True)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end a process that waits for others.

    It waits outside of Python, whose own handlers would not run until the others have arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def check_fsdp(options: Mapping[str, Any]) -> None:
    """Check that FSDP, if a run uses it, trains as one process does.

    Raises:
        OptionError: a package is too old.
    """
    if not uses("fsdp", options):
        return
    for package, needed in FSDP_NEEDS.items():
        if Version(version(package)) < Version(needed):
            raise OptionError(
                "fsdp",
                f"requires {package} {needed} or newer, not {version(package)}, with which the "
                "gradients of norms are incorrect",
            )


def is_sharded(options: Mapping[str, Any]) -> bool:
    """Return whether each process holds a shard of the weights, by arguments or the launcher."""
    return uses("fsdp", options) or uses("deepspeed", options)


def uses(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a run uses `fsdp` or `deepspeed`, by arguments or the launcher."""
    launched = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() in ("1", "true")
    return launched or bool(options.get(name))


def wrap_layers(model: nn.Module) -> None:
    """Let FSDP wrap each layer of a model, where its configuration names no classes.

    transformers names the layers of some families only, and for others also the module around the
    embeddings: accelerate, which wraps the embeddings by themselves, fails where they are in a
    wrapped module already.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module._no_split_modules = sorted({type(layer).__name__ for layer in layers(module)})


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules in the outermost module lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers(child)


def check_saves_whole(config: Mapping[str, Any]) -> None:
    """Check that DeepSpeed can save a sharded model as a whole one.

    Raises:
        InputError: its configuration does not let it.
    """
    zero, option = config.get("zero_optimization", {}), "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and not zero.get(option):
        raise InputError(f"--deepspeed: stage 3 requires {option} (zero3_save_16bit_model): true")


@contextmanager
def unsynchronized(state: GradientState) -> Iterator[None]:
    """Make accelerate expect more gradients before the step."""
    synchronized = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        yield
    finally:
        state._set_sync_gradients(synchronized)
