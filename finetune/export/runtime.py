"""Runtimes other than torch, which take a model over and compute its logits."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

#: A padded batch: the arrays of token ids, mask and perhaps types, each `[pairs, longest]`, by the
#: names of the model's inputs.
Batch = dict[str, npt.NDArray[Any]]


class Runtime(Protocol):
    """A runtime that models are exported to."""

    #: The packages that it needs; those of `int8` in addition.
    packages: tuple[str, ...]
    int8_packages: tuple[str, ...]
    #: The model in the exported folder, where sentence-transformers looks for it.
    file: Path

    def write(self, graph: Path, file: Path, calibration: Sequence[Batch] | None) -> None:
        """Write a model.

        Args:
            graph: The model in float32, an ONNX file in a folder of its own, which may be moved.
            file: The file to write.
            calibration: Batches with the usual activations, to quantize to 8-bit integers; None for
                float32.
        """
        ...

    def load(self, file: Path) -> Callable[[Batch], npt.NDArray[Any]]:
        """Return a function that computes the logits of a batch, `[pairs, 1]`, on the CPU."""
        ...


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Hide warnings, and what some loggers log below errors."""
    # Without a handler, the first message to the root logger would give it one for good.
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
