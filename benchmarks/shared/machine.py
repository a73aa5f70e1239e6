"""The machine: its description, its GEMM rate, a process's peak memory."""

import ctypes
import gc
import os
import platform
import re
import resource
import statistics
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Side of the square matrices whose product gives the GEMM rate: large enough to fill the device.
GEMM_SIZES = {"cpu": 2048, "cuda": 8192}

#: The environment variable with the folder of models, for all processes of a benchmark.
DEVICE = "BENCHMARK_DEVICE"

PRECISIONS = ("float32", "bfloat16")

#: What decides how fast a CPU multiplies.
CPU_FLAGS = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "bf16",
    "sve",
)

#: The environment variables that keep libraries from using some of it.
CPU_LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "LD_PRELOAD",
    "KEEP_AVX_VNNI",
    "KEEP_AVX512",
)

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "rerank-plugin",
    "sentence-transformers",
    "FlagEmbedding",
    "rerankers",
    "onnxruntime",
    "openvino",
    "nncf",
)

STATUS = Path("/proc/self/status")
STAT = Path("/proc/stat")


def set_environment(threads: int, device: str = "cpu") -> None:
    """Set the environment of all measured processes; call it before imports that read it."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ[DEVICE] = device
    # transformers' Trainer would use every GPU at once.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def device() -> str:
    """Return the device of models: `cpu` or `cuda`."""
    return os.environ.get(DEVICE, "cpu")


def threads() -> int:
    """Return the number of threads of this process."""
    return int(os.environ["OMP_NUM_THREADS"])


@cache
def precisions() -> tuple[str, ...]:
    """Return the precisions that the device multiplies: elsewhere bfloat16 takes minutes a row."""
    import torch

    multiplies = device() == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PRECISIONS if multiplies else PRECISIONS[:1]


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(threads: int) -> dict[str, Any]:
    """Return the machine and the versions that were measured."""
    import torch

    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text() if cpu.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    known = flags[1].split() if flags else []
    return {
        "cpu": name[1] if name else platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in known],
        "cpu_limits": {name: os.environ[name] for name in CPU_LIMITS if name in os.environ},
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": available_cpus(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if device() == "cuda" else None,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
    }


def installed(package: str) -> str | None:
    """Return the installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def gemm_rates(repeats: int = 5) -> dict[str, float]:
    """FLOP/s of a square matrix product at each precision; the median of some repeats."""
    import torch

    kind = device()
    size = GEMM_SIZES[kind]
    wait = torch.cuda.synchronize if kind == "cuda" else lambda: None
    rates = {}
    for name in precisions():
        left, right = torch.randn(2, size, size, device=kind).to(getattr(torch, name))
        product = torch.mm(left, right)
        # A GPU at rest has a low clock.
        for _ in range(100 if kind == "cuda" else 0):
            torch.mm(left, right, out=product)
        seconds = []
        for _ in range(repeats):
            wait()
            start = time.perf_counter()
            torch.mm(left, right, out=product)
            wait()
            seconds.append(time.perf_counter() - start)
        rates[name] = 2 * size**3 / statistics.median(seconds)
    return rates


class OtherWork:
    """Counts the CPUs that other processes kept busy since this object was made."""

    def __init__(self) -> None:
        self._start = self._now()

    @property
    def cpus(self) -> float:
        """CPUs that others had on average; 0 where the system does not tell."""
        seconds, busy, ours = (
            now - then for now, then in zip(self._now(), self._start, strict=True)
        )
        return max(0.0, (busy - ours) / seconds)

    def _now(self) -> tuple[float, float, float]:
        """Return the clock, CPU seconds of the whole machine, and those of this process."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = time.process_time() + children.ru_utime + children.ru_stime
        busy = 0.0
        if STAT.exists():
            user, nice, system, _, _, irq, soft, steal = STAT.read_text().split()[1:9]
            ticks = sum(map(int, (user, nice, system, irq, soft, steal)))
            busy = ticks / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, ours


def peak_memory() -> int:
    """Return the most memory that this process has held since the last reset, in bytes.

    Where models are on a GPU it is the GPU's: what tensors had there.
    """
    if device() == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss where it can be had otherwise: that one outlives an exec, so a child starts
    # with its parent's peak, and nothing resets it.
    if STATUS.exists():
        match = re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Reset the peak, where the system can; freed memory is returned first."""
    gc.collect()
    if device() == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            # Not allowed in some containers: the peak is then the one since the start.
            return
