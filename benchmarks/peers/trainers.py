"""A training run of this project or of a peer, in a process of its own."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shared.machine import OtherWork, device, peak_memory
from shared.texts import Request, read_groups
from shared.workers import CONTEXT, WorkerError, write_to

from peers.scorers import OURS

#: The longest pair, passages of a group, and learning rate of every run.
MAX_LENGTH = 256
GROUP_SIZE = 8
LEARNING_RATE = 5e-5
SEED = 42


@dataclass(frozen=True)
class Task:
    """A model, the groups that it is trained on, and the settings."""

    model: Path
    groups: Path
    #: A few groups that no contestant is trained on; only this project's command evaluates.
    held_out: Path
    batch_groups: int
    #: `float32`, `bfloat16`, or None for the library's own default.
    precision: str | None
    #: For sentence-transformers: its own default, a forward of as many pairs as a batch has
    #: groups, instead of the whole batch at once.
    small_forwards: bool
    #: A folder for what the run writes, removed afterwards.
    work: Path


@dataclass(frozen=True)
class Trained:
    """A finished run: pairs trained on, seconds of its loop, peak memory of its whole process."""

    pairs: int
    seconds: float
    precision: str
    peak_memory: int
    #: CPUs that others had while the process lived.
    others: float = 0.0


def train(who: str, task: Task, log: Path) -> Trained:
    """Run a trainer to its end.

    Raises:
        WorkerError: it failed, or the system killed it.
    """
    shutil.rmtree(task.work, ignore_errors=True)
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=run, args=(theirs, log, who, task))
    process.start()
    theirs.close()
    try:
        trained: Trained = ours.recv()
    except (EOFError, ConnectionResetError):
        raise WorkerError(f"{who} failed to train, see {log}") from None
    finally:
        process.join(timeout=10)
        process.terminate()
        process.join()
        shutil.rmtree(task.work, ignore_errors=True)
    return trained


def run(pipe: Connection, log: Path, who: str, task: Task) -> None:
    """Train in a process of its own."""
    write_to(log)
    task.work.mkdir(parents=True)
    others = OtherWork()
    trained = TRAINERS[who](task)
    pipe.send(replace(trained, others=others.cpus))


def rerank_plugin(task: Task) -> Trained:
    """`rerank-plugin train`: its own record of the loop, which starts at the first line read."""
    from rerank_plugin import Reranker
    from rerank_plugin.cli.main import main

    folder = task.work / "trained"
    options = {
        "model_name_or_path": task.model,
        "data_path": task.groups,
        "eval_data_path": task.held_out,
        "eval_strategy": "no",
        "finetune_model_dir": folder,
        "train_group_size": GROUP_SIZE,
        "max_len": MAX_LENGTH,
        "batch_size": task.batch_groups,
        "total_epoch": 1,
        "lr": LEARNING_RATE,
        "seed": SEED,
        "device": device(),
        "dtype": task.precision or "auto",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    code = main(["train", *arguments])
    if code:
        raise SystemExit(code)
    peak = peak_memory()
    last = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
    # Nothing that a run leaves says what `auto` was; serving chooses in the same way.
    served = Reranker(folder, device=device()).dtype
    precision = task.precision or str(served).removeprefix("torch.")
    return Trained(int(last["train_pairs"]), last["train_seconds"], precision, peak)


def sentence_transformers(task: Task) -> Trained:
    """`CrossEncoderTrainer` with `ListNetLoss`: the seconds of `train()`."""
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    # None is not the whole batch but a forward of as many pairs as the batch has groups.
    at_once = None if task.small_forwards else -1
    trainer = cross_encoder_trainer(
        str(task.model),
        list_columns(read_groups(task.groups)),
        lambda model: ListNetLoss(model, mini_batch_size=at_once),
        trainer_options(task),
    )
    return trained(trainer, task)


def list_columns(groups: Sequence[Request]) -> dict[str, Any]:
    """Return groups as sentence-transformers' listwise losses take them, the positive first."""
    return {
        "query": [query for query, _ in groups],
        "docs": [documents for _, documents in groups],
        "labels": [[1.0] + [0.0] * (len(documents) - 1) for _, documents in groups],
    }


def cross_encoder_trainer(
    model: str, columns: dict[str, Any], loss: Callable[[Any], Any], options: dict[str, Any]
) -> Any:
    """sentence-transformers' trainer over some columns, with the loss of its model."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )

    encoder = CrossEncoder(model, num_labels=1, max_length=MAX_LENGTH, device=device())
    return CrossEncoderTrainer(
        model=encoder,
        args=CrossEncoderTrainingArguments(**options),
        train_dataset=Dataset.from_dict(columns),
        loss=loss(encoder),
    )


def flag_embedding(task: Task) -> Trained:
    """FlagEmbedding's encoder-only runner: the seconds of its trainer's `train()`."""
    cache, options = task.work / "cache", trainer_options(task)
    runner = flag_embedding_runner(str(task.model), task.groups, cache, options)
    return trained(runner.trainer, task)


def flag_embedding_runner(model: str, groups: Path, cache: Path, options: dict[str, Any]) -> Any:
    """FlagEmbedding's runner over a file of groups."""
    from FlagEmbedding.abc.finetune.reranker import (
        AbsRerankerDataArguments,
        AbsRerankerModelArguments,
        AbsRerankerTrainingArguments,
    )
    from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner

    # It cuts a pair to the sum of both lengths, a query to the first and a quarter of the second,
    # a passage to the second and half of the first: with 1/16 and 15/16 of the limit, passages
    # keep what the others leave them.
    query_length = MAX_LENGTH // 16
    return EncoderOnlyRerankerRunner(
        model_args=AbsRerankerModelArguments(model_name_or_path=model),
        data_args=AbsRerankerDataArguments(
            train_data=[str(groups)],
            cache_path=str(cache),
            train_group_size=GROUP_SIZE,
            query_max_len=query_length,
            passage_max_len=MAX_LENGTH - query_length,
        ),
        training_args=AbsRerankerTrainingArguments(**options),
    )


TRAINERS: dict[str, Callable[[Task], Trained]] = {
    OURS: rerank_plugin,
    "sentence-transformers": sentence_transformers,
    "FlagEmbedding": flag_embedding,
}


def common_options() -> dict[str, Any]:
    """Return the training arguments that all peers share."""
    return {
        "use_cpu": device() == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trainer_options(task: Task) -> dict[str, Any]:
    """Training arguments of transformers for a peer; what is not here is its default."""
    return {
        **common_options(),
        "output_dir": str(task.work / "trained"),
        "per_device_train_batch_size": task.batch_groups,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "bf16": task.precision == "bfloat16",
    }


def timed(trainer: Any) -> float:
    """Run a peer's trainer; the seconds that it took."""
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def trained(trainer: Any, task: Task) -> Trained:
    """Run a peer's trainer and return its figures."""
    seconds = timed(trainer)
    pairs = sum(len(documents) for _, documents in read_groups(task.groups))
    return Trained(pairs, seconds, task.precision or "float32", peak_memory())
