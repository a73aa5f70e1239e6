"""The compiled functions of the package, and the threads that they share their work over.

They are built when the package is installed, if a C compiler is found. Without them torch's kernels
do the work: slower, with the same results.
"""

import ctypes
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: The compiled library, which setuptools puts into the package.
MODULE = "rerank_plugin.engine.cpu._compiled"

#: Takes the address of a structure, that of `GOMP_parallel` and a number of threads; 0 is success.
Function = Callable[[Any, int | None, int], int]


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library; None if there is none, or it cannot be loaded."""
    spec = find_spec(MODULE)
    if spec is None or spec.origin is None:
        return None
    try:
        return ctypes.CDLL(spec.origin)
    except OSError as error:
        logger.warning("%s cannot be loaded, scoring is slower without it: %s", spec.origin, error)
        return None


def compiled_function(name: str, structure: type[ctypes.Structure], size: str) -> Function | None:
    """Return a compiled function; None if there is none, or its structure has another layout.

    Args:
        name: Its name in C.
        structure: What it takes.
        size: The function in C that returns the size of the structure.
    """
    compiled = library()
    if compiled is None:
        return None
    size_in_c = getattr(compiled, size)() if hasattr(compiled, size) else None
    # A compiler that cannot build a function leaves one whose structure is empty.
    if size_in_c == 0:
        return None
    if size_in_c != ctypes.sizeof(structure):
        logger.warning("%s was built for another version: reinstall the package", compiled._name)
        return None
    function: Any = getattr(compiled, name)
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def run(function: Function, work: ctypes.Structure) -> None:
    """Run a compiled function with torch's threads.

    Raises:
        MemoryError: there is no memory for its buffers.
    """
    if function(ctypes.byref(work), parallel(), torch.get_num_threads()):
        raise MemoryError("no memory for the buffers of a packed row")


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor, if there is one."""
    return None if tensor is None else tensor.data_ptr()


@cache
def parallel() -> int | None:
    """Return the address of `GOMP_parallel` in the OpenMP runtime of torch, if it is GNU's.

    Other packages come with another copy, whose threads would compete with torch's.
    """
    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.with_name("torch.libs")):
        for file in folder.glob("libgomp*"):
            with suppress(OSError, AttributeError):
                entry = ctypes.CDLL(str(file)).GOMP_parallel
                return ctypes.cast(entry, ctypes.c_void_p).value
    return None
