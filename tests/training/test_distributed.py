import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from safetensors.torch import load_file

from rerank_plugin import Reranker
from rerank_plugin.cli.main import main
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.data.sampling import GroupBatches
from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
from rerank_plugin.finetune.training import distributed
from rerank_plugin.finetune.training.distributed import (
    FSDP_NEEDS,
    LAUNCHER,
    OTHER_SIZES,
    check_fsdp,
    check_launcher,
    wrap_layers,
)
from rerank_plugin.model.loading import load_model

from ..factories import build_modular, easy_groups, slow, write_lines


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_processes_train_on_every_group_once(
    groups: int, batch_size: int, processes: int, epoch: int
) -> None:
    ranks = [
        GroupBatches(groups, batch_size=batch_size, seed=0, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    for batches in ranks:
        batches.set_epoch(epoch)
    shares = [list(batches) for batches in ranks]
    assert {len(share) for share in shares} == {len(batches) for batches in ranks}
    assert all(batch for share in shares for batch in share)
    steps = [[row for batch in step for row in batch] for step in zip(*shares, strict=True)]
    counted = [[index for _, index, counts in step if counts] for step in steps]
    assert sorted(index for step in counted for index in step) == list(range(groups))
    assert all(len(step) == batch_size * processes for step in counted[:-1])


def zero(stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage."""
    automatic = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    return {
        **dict.fromkeys(automatic, "auto"),
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
    }


#: Options of runs in which every process holds a share of the weights.
SHARDED: dict[str, dict[str, str]] = {
    "FSDP": {"fsdp": "full_shard"},
    "ZeRO 2": {"deepspeed": json.dumps(zero(2))},
    "ZeRO 3": {"deepspeed": json.dumps(zero(3))},
}

#: accelerate uses DDP on CPUs whatever the options are, unless it is told that they are GPUs.
ON_CPUS = """
import sys

import accelerate.state as state
import torch

torch.distributed.init_process_group("gloo")
state.PartialState._prepare_backend = lambda *_: ("gloo", state.DistributedType.MULTI_GPU)
state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))

from rerank_plugin.cli.main import main
from rerank_plugin.finetune.training.trainer import RerankTrainer
from torch.distributed.fsdp import FSDPModule

save_model = RerankTrainer.save_model


def save_sharded(self, *arguments, **keywords):
    assert isinstance(self.model, FSDPModule) or self.is_deepspeed_enabled
    save_model(self, *arguments, **keywords)


RerankTrainer.save_model = save_sharded
sys.exit(main(sys.argv[1:]))
"""


def train_options(
    model: Path, data: Path, folder: Path, *, batch_size: int, **more: object
) -> list[str]:
    options = {
        "model_name_or_path": model,
        "data_path": data,
        "finetune_model_dir": folder,
        "max_len": 48,
        "train_group_size": 4,
        "batch_size": batch_size,
        "gradient_accumulation_steps": 2,
        # So few tokens that processes need different numbers of passes.
        "token_budget": 60,
        # One plain step: weights move by the gradient.
        "max_steps": 1,
        "optim": "sgd",
        "lr": 1.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0,
        "max_grad_norm": 0,
        "eval_strategy": "no",
        "blend": 1,
        "dtype": "float32",
        "device": "cpu",
        "report_to": "none",
        **more,
    }
    return ["train", *(text for name in options for text in (f"--{name}", str(options[name])))]


def train_in_two_processes(
    model: Path, data: Path, folder: Path, *, batch_size: int, sharded: str = "", **more: object
) -> Path:
    more = SHARDED.get(sharded, {}) | more
    program = ["-m", "rerank_plugin"]
    if sharded:
        script = folder.with_suffix(".py")
        script.write_text(ON_CPUS)
        program = [str(script)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = train_options(model, data, folder, batch_size=batch_size, **more)
    done = subprocess.run(
        [*launch, *program, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    # Only the main process prints.
    assert (done.stdout.count("won, lost"), done.stderr.count("\nmodel: ")) == (1, 1)
    return folder


def skip_without_library(sharded: str) -> None:
    if sharded.startswith("ZeRO"):
        pytest.importorskip("deepspeed")
    if sharded == "FSDP" and any(
        Version(version(package)) < Version(needed) for package, needed in FSDP_NEEDS.items()
    ):
        pytest.skip("FSDP is refused with these versions")


def test_fsdp_is_refused_with_old_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "version", lambda _: "2.8.0+cpu")
    check_fsdp({})
    with pytest.raises(OptionError, match=r"--fsdp: requires torch 2\.13 or newer, not 2\.8\.0"):
        check_fsdp({"fsdp": "full_shard"})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(OptionError, match="--fsdp: requires torch"):
        check_fsdp({})


@dataclass(frozen=True)
class SingleRun:
    """A run of one process, its data, and the batch size of each of two processes."""

    folder: Path
    data: Path
    batch_size: int


@pytest.fixture(scope="module")
def single_run(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], SingleRun]:
    """Train on a number of groups of different sizes, once for each number."""

    @cache
    def run(groups: int) -> SingleRun:
        folder = tmp_path_factory.mktemp("single")
        records = easy_groups(groups)
        for index, record in enumerate(records):
            record["neg"] = record["neg"][: 1 + index % 4]
        data = write_lines(folder / "train.jsonl", records)
        # 15 of the 23 groups are trained on: three of them are left for the second pass of two.
        size = {40: 2, 23: 3}[groups]
        assert main(train_options(tiny_model, data, folder / "out", batch_size=2 * size)) == 0
        return SingleRun(folder / "out", data, size)

    return run


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "sharded"),
    [(40, ""), (23, ""), *((23, name) for name in SHARDED)],
    ids=["full step", "groups left over", *SHARDED],
)
def test_two_processes_have_the_gradient_of_one_with_twice_the_batch(
    tiny_model: Path,
    single_run: Callable[[int], SingleRun],
    tmp_path: Path,
    groups: int,
    sharded: str,
) -> None:
    skip_without_library(sharded)
    single = single_run(groups)
    folders = [
        train_in_two_processes(
            tiny_model,
            single.data,
            tmp_path / "two",
            batch_size=single.batch_size,
            sharded=sharded,
        ),
        single.folder,
    ]
    two, one = (load_file(folder / "model.safetensors") for folder in folders)
    start = load_file(tiny_model / "model.safetensors")
    moved = 0
    for name, value in one.items():
        change = value - start.get(name, 0)
        moved += int((change != 0).any())
        scale = float(change.abs().max()) or 1.0
        assert float((two[name] - value).abs().max()) <= 1e-5 * max(scale, 1e-2), name
    assert moved > 10
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert metrics[0]["before"] == metrics[1]["before"]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["", "FSDP"], ids=["checkpointing", "FSDP"])
def test_a_modular_reranker_in_two_processes(tmp_path: Path, sharded: str) -> None:
    model = build_modular(tmp_path / "model", "bert", pooling="mean")
    data = write_lines(tmp_path / "train.jsonl", easy_groups(24))
    skip_without_library(sharded)
    options = {} if sharded else {"gradient_checkpointing": True}
    assert main(train_options(model, data, tmp_path / "one", batch_size=8)) == 0
    train_in_two_processes(model, data, tmp_path / "two", batch_size=4, sharded=sharded, **options)
    files = [path.relative_to(model) for path in model.rglob("*.safetensors")]
    assert len(files) == 4
    for file in files:
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_blend_in_two_processes(tiny_model: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "train.jsonl", easy_groups(40))
    alone, half = (
        train_in_two_processes(tiny_model, data, tmp_path / str(blend), batch_size=4, blend=blend)
        for blend in (1, 0.5)
    )
    base, tuned, blended = (
        load_file(folder / "model.safetensors") for folder in (tiny_model, alone, half)
    )
    assert not torch.equal(base["classifier.weight"], tuned["classifier.weight"])
    for name, weight in blended.items():
        assert torch.allclose(weight, (base[name] + tuned[name]) / 2, atol=1e-6), name


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("sharded", SHARDED)
def test_metrics_are_of_the_kept_model(tiny_model: Path, tmp_path: Path, sharded: str) -> None:
    skip_without_library(sharded)
    data = write_lines(tmp_path / "train.jsonl", easy_groups(48))
    test = write_lines(tmp_path / "test.jsonl", easy_groups(12, start=100))
    # At such a learning rate the last models are the worst.
    options: dict[str, object] = {
        "max_steps": 9,
        "lr": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    options |= {"optim": "adamw_torch", "test_data_path": test, "eval_data_path": test}
    folder = train_in_two_processes(
        tiny_model, data, tmp_path / "a", batch_size=4, sharded=sharded, **options
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["improved"] and metrics["best_step"] < 9
    reranker = Reranker(folder, dtype="float32", device="cpu", max_length=48)
    evaluation = evaluate_groups(reranker, list(read_groups(test)))
    assert evaluation.means["ndcg@10"] == pytest.approx(metrics["after"]["ndcg@10"], abs=1e-6)


def test_fsdp_wraps_layers(family_model: Path) -> None:
    model = load_model(family_model).model
    wrap_layers(model)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
    )
    plugin.set_auto_wrap_policy(model)
    is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    layers = [module for module in model.modules() if is_wrapped(module)]
    assert len(layers) == model.config.num_hidden_layers
    embeddings = model.get_input_embeddings()
    assert all(module is not embeddings for layer in layers for module in layer.modules())


#: What a launcher sets for the second of two processes.
COMPLETE = {
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


def set_launcher(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in (*LAUNCHER, "MASTER_ADDR", *OTHER_SIZES):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without RANK and MASTER_ADDR"),
        ({"RANK": "1"}, "RANK=1 is set without WORLD_SIZE"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 is set without RANK"),
        ({**COMPLETE, "MASTER_ADDR": ""}, "RANK=1 is set without MASTER_ADDR"),
        ({**COMPLETE, "RANK": "2"}, "RANK=2 is not from 0 to below WORLD_SIZE=2"),
        ({**COMPLETE, "RANK": "-1"}, "RANK=-1 is not from 0"),
        ({**COMPLETE, "WORLD_SIZE": "0"}, "WORLD_SIZE=0 is less than 1"),
        ({**COMPLETE, "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
        ({**COMPLETE, "MASTER_PORT": "http"}, "MASTER_PORT='http' is not a whole number"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4 is set without WORLD_SIZE"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2 is set without WORLD_SIZE"),
    ],
)
def test_an_incomplete_launch_is_an_error(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_launcher(monkeypatch, variables)
    with pytest.raises(InputError) as error:
        check_launcher()
    assert problem in str(error.value)
    assert "unset it" in str(error.value)


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({}, 1),
        (COMPLETE, 2),
        (dict.fromkeys(LAUNCHER, ""), 1),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 1),
        ({**COMPLETE, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, 1),
    ],
)
def test_a_complete_launch_is_accepted(
    variables: dict[str, str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_launcher(monkeypatch, variables)
    assert check_launcher() == size
    assert not any(os.environ.get(name) == "" for name in LAUNCHER)


def accepts_connections(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGINT, signal.SIGHUP)])
def test_a_signal_ends_a_process_that_waits_for_others(
    number: signal.Signals, tiny_model: Path, groups_file: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rerank_plugin", "train", "--device", "cpu"]
    command += ["--model_name_or_path", str(tiny_model), "--data_path", str(groups_file)]
    command += ["--finetune_model_dir", str(tmp_path / "out")]
    launch = COMPLETE | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(port)}
    with subprocess.Popen(command, env=os.environ | launch, stderr=subprocess.PIPE) as process:
        # It waits for the other process, which is never started.
        while not accepts_connections(port):
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"the process ended with {process.wait(timeout=0.2)}")
        process.send_signal(number)
        assert process.wait(timeout=60) == -number
    assert list(tmp_path.glob("out*")) == []
