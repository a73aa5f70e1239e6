import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rerank_plugin import Reranker
from rerank_plugin.engine.cpu.threads import cpu_quotas, default_threads, usable_cpus


def control_group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("membership", "group", "files", "quotas"),
    [
        ("0::/pod/box\n", "pod/box", {"cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/pod/box\n", "pod", {"cpu.max": "50000 100000\n"}, [0.5]),
        ("0::/\n", "", {"cpu.max": "200000 100000\n"}, [2.0]),
        # A container sees its own group as the root, under its name on the host.
        ("0::/host/box\n", "", {"cpu.max": "100000 100000\n"}, [1.0]),
        ("0::/box\n", "box", {"cpu.max": "max 100000\n"}, []),
        ("0::/box\n", "box", {"cpu.max": "unknown\n"}, []),
        ("0::/box\n", "box", {}, []),
        (
            "3:memory:/box\n2:cpu,cpuacct:/box\n",
            "cpu/box",
            {"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"},
            [3.0],
        ),
        (
            "2:cpu,cpuacct:/box\n",
            "cpu/box",
            {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"},
            [],
        ),
    ],
)
def test_the_quota_of_a_container(
    membership: str, group: str, files: dict[str, str], quotas: list[float], tmp_path: Path
) -> None:
    listed = tmp_path / "membership"
    listed.write_text(membership)
    control_group(tmp_path / "groups" / group, files)
    assert list(cpu_quotas(listed, tmp_path / "groups")) == quotas
    cpus = usable_cpus(tmp_path / "none", tmp_path / "groups")
    expected = min([cpus, *(max(1, round(quota + 0.49)) for quota in quotas)])
    assert usable_cpus(listed, tmp_path / "groups") == expected


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("UNRELATED", "1000"), ("GOMP_SPINCOUNT", "infinite"), ("OMP_WAIT_POLICY", "None")],
)
def test_threads_hardly_spin_unless_they_are_told_to(variable: str, expected: str) -> None:
    known = {name: os.environ[name] for name in os.environ if not name.startswith(("GOMP", "OMP"))}
    code = "import os, rerank_plugin; print(os.environ.get('GOMP_SPINCOUNT'))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=known | {variable: "infinite"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinities")
def test_a_process_on_one_cpu_has_one_thread() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from rerank_plugin.engine.cpu.threads import default_threads, usable_cpus\n"
        "print(usable_cpus(), default_threads())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "1"]


def test_a_model_computes_with_the_threads_that_are_asked_for(tiny_model: Path) -> None:
    threads: list[int] = []
    for count in (2, None):
        reranker = Reranker(tiny_model, device="cpu", threads=count)
        model = reranker._scorer.model
        model.register_forward_hook(lambda *_: threads.append(torch.get_num_threads()))
        reranker.score([("ferry", "It sails at noon.")])
        torch.set_num_threads(1)
    assert threads == [2, default_threads()]
