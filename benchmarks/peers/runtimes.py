"""Runtimes without a library around them, each used as well as a good engineer would.

Pairs are tokenised together, sorted by length, and computed in padded batches.
"""

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
from shared.machine import threads
from shared.models import MAX_LENGTH, pad_token
from shared.texts import Request
from tokenizers import Encoding, Tokenizer

from peers.exports import ONNX_RUNTIME, OPENVINO, exported
from peers.scorers import Scorer, UnsupportedPrecisionError, as_pairs

Batch = dict[str, npt.NDArray[Any]]


class Runtime(Scorer):
    """A runtime, its model and the tokenizer.

    Args:
        folder: The model folder; the runtime's models are beside it.
        precision: A precision, or None for the runtime's own default.
    """

    #: Pairs of a batch.
    batch_size: int

    def __init__(self, folder: str, precision: str | None) -> None:
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.pad_token = pad_token(Path(folder))
        self.load(Path(folder), precision)

    @abstractmethod
    def load(self, folder: Path, precision: str | None) -> None:
        """Load the model; sets `precision` and `inputs`."""

    @abstractmethod
    def logits(self, batches: Sequence[Batch]) -> list[npt.NDArray[Any]]:
        """Return the logits of every batch."""

    #: The names of the model's inputs.
    inputs: list[str]

    def score(self, requests: Sequence[Request]) -> list[float]:
        """Return the logits of all pairs, in their order."""
        encodings = self.tokenizer.encode_batch(as_pairs(requests))
        # Longest first, so that memory grows once.
        order = sorted(range(len(encodings)), key=lambda index: -len(encodings[index]))
        rows = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        batches = [self.batch([encodings[index] for index in indices]) for indices in rows]
        scores = np.empty(len(order))
        scores[order] = np.concatenate(self.logits(batches))
        return scores.tolist()

    def batch(self, encodings: Sequence[Encoding]) -> Batch:
        """Return a padded batch."""
        shape = len(encodings), len(encodings[0])
        values = {
            "input_ids": np.full(shape, self.pad_token, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, encoding in enumerate(encodings):
            length = len(encoding)
            values["input_ids"][row, :length] = encoding.ids
            values["attention_mask"][row, :length] = 1
            values["token_type_ids"][row, :length] = encoding.type_ids
        return {name: values[name] for name in self.inputs}

    def rank(self, query: str, documents: list[str]) -> list[int]:
        """Return the indices of the documents, the best one first."""
        scores = self.score([(query, documents)])
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, with its optimizer for transformers and all of its optimisations."""

    precisions = ("float32", "int8")
    batch_size = 32

    def load(self, folder: Path, precision: str | None) -> None:
        """Load the model; all threads compute the same batch."""
        import onnxruntime

        self.precision = precision or "float32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(
            str(exported(folder, ONNX_RUNTIME, self.precision)),
            options,
            providers=["CPUExecutionProvider"],
        )
        self.inputs = [value.name for value in self.session.get_inputs()]

    def logits(self, batches: Sequence[Batch]) -> list[npt.NDArray[Any]]:
        """Return the logits of every batch."""
        return [self.session.run(None, batch)[0][:, 0] for batch in batches]


class OpenVino(Runtime):
    """OpenVINO on the CPU: bfloat16 by default where the hardware multiplies it.

    At `int8` what is not quantised has its default precision too.
    """

    precisions = ("float32", "bfloat16", "int8")
    batch_size = 32

    def load(self, folder: Path, precision: str | None) -> None:
        """Load the model; batches are computed at the same time, each in a stream."""
        import openvino

        hints = {"float32": "f32", "bfloat16": "bf16"}
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads(),
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        if precision in hints:
            settings["INFERENCE_PRECISION_HINT"] = hints[precision]
        file = exported(folder, OPENVINO, "int8" if precision == "int8" else "float32")
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(file), "CPU", settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = "int8" if precision == "int8" else {v: k for k, v in hints.items()}[used]
        if precision not in (None, self.precision):
            raise UnsupportedPrecisionError(f"OpenVINO computes in {used} here")
        self.inputs = [value.get_any_name() for value in compiled.inputs]
        streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self.pool = ThreadPoolExecutor(streams)
        self.idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self.idle.put(compiled.create_infer_request())

    def logits(self, batches: Sequence[Batch]) -> list[npt.NDArray[Any]]:
        """Return the logits of every batch."""
        return list(self.pool.map(self.infer, batches))

    def infer(self, batch: Batch) -> npt.NDArray[Any]:
        """Return the logits of a batch, as soon as a request is idle."""
        request = self.idle.get()
        logits: npt.NDArray[Any] = request.infer(batch)[0][:, 0].copy()
        self.idle.put(request)
        return logits
