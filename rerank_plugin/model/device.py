"""The device and the precision that a model runs with."""

import logging
import platform
import re
from functools import cache
from pathlib import Path

import torch

from rerank_plugin.arguments import unknown_device
from rerank_plugin.errors import OptionError, invalid_choice

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "int8": torch.int8,
}

CPUINFO = Path("/proc/cpuinfo")

#: Linux's names of instructions that torch calls otherwise.
LINUX_NAMES = {
    "avx512_bw": "avx512bw",
    "avx512_dq": "avx512dq",
    "avx512_f": "avx512f",
    "avx512_vl": "avx512vl",
    "fma3": "fma",
}


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the accelerator if there is one.

    `cuda` on a machine without it warns and returns the CPU.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise OptionError("device", unknown_device(name))
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("device", "mps is not available on this machine")
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning("device %s: no CUDA device is available, using the CPU", name)
        return torch.device("cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise OptionError("device", f"{name}: this machine has {count} CUDA device(s)")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of a name for the backbone.

    `auto` is bfloat16 if the hardware multiplies it, else float16 on a GPU and float32 on a CPU.
    """
    if name != "auto":
        if name not in DTYPES:
            raise OptionError("dtype", invalid_choice(name, ["auto", *DTYPES]))
        if DTYPES[name] == torch.float16 and device.type == "cpu":
            raise OptionError(
                "dtype", "float16 is not supported on a CPU; use auto, bfloat16 or float32"
            )
        if DTYPES[name] == torch.int8 and device.type != "cpu":
            raise OptionError("dtype", f"int8 is not supported on {device.type}; use auto")
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if device.type == "cpu" and cpu_multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def floating_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the precision of everything but products with weights, which alone are int8."""
    return resolve_dtype("auto", device) if dtype == torch.int8 else dtype


def warn_of_slow_products(dtype: torch.dtype, device: torch.device) -> None:
    """Warn of a precision that works on a device but is slower there than float32."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not cpu_multiplies_bfloat16():
        logger.warning("dtype bfloat16: this CPU has no bfloat16 instructions, float32 is faster")


def cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 products (AVX512-BF16, AMX, or Arm's BF16 extension).

    False if `ATEN_CPU_CAPABILITY` or `ONEDNN_MAX_CPU_ISA` keep torch from using them.
    """
    if platform.machine() == "aarch64":
        return "svebf16" in listed_instructions()
    if not (cpu_has("avx512_bf16") or cpu_has("amx_bf16")):
        return False
    return torch_uses_avx512() and onednn_takes(torch.bfloat16)


def cpu_has(instructions: str) -> bool:
    """Return whether this CPU has a set of instructions, by torch's name for it."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(instructions))
    return LINUX_NAMES.get(instructions, instructions) in listed_instructions()


@cache
def listed_instructions() -> frozenset[str]:
    """Return the instructions of this CPU that Linux lists; none on another system."""
    if not CPUINFO.is_file():
        return frozenset()
    lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    fields = (line.partition(":") for line in lines)
    return frozenset(
        name
        for field, _, names in fields
        if field.strip() in ("flags", "Features")
        for name in names.split()
    )


def torch_uses_avx2() -> bool:
    """Return whether torch uses its kernels for AVX2 or AVX-512."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def torch_uses_avx512() -> bool:
    """Return whether torch uses its kernels for AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def onednn_takes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN packs and multiplies weights of a precision, by trying it once.

    In bfloat16 it refuses CPUs without AVX-512, and some builds of torch have no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    ones = torch.ones(32, 32, dtype=dtype)
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(ones, 32)
        torch.ops.mkldnn._linear_pointwise(ones, weight, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True
