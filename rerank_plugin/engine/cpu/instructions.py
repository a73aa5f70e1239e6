"""The sets of instructions that kernels are compiled for."""

from functools import cache

from rerank_plugin.engine.cpu.compiled import library
from rerank_plugin.model.device import cpu_has, torch_uses_avx2, torch_uses_avx512

#: The instructions of each set, by torch's names.
AVX2 = ("avx2", "fma3")
AVX512 = (*AVX2, "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl")
AVX512_BF16 = (*AVX512, "avx512_bf16")
AMX_BF16 = (*AVX512_BF16, "amx_tile", "amx_bf16")
AMX_INT8 = (*AVX512, "amx_tile", "amx_int8")


def can_run(instructions: tuple[str, ...]) -> bool:
    """Return whether this CPU has some instructions, and torch itself uses their like.

    `ATEN_CPU_CAPABILITY` can keep it from that.
    """
    uses = torch_uses_avx512() if "avx512_f" in instructions else torch_uses_avx2()
    has = uses and all(map(cpu_has, instructions))
    return has and ("amx_tile" not in instructions or may_use_amx())


@cache
def may_use_amx() -> bool:
    """Return whether the system lets this process use AMX."""
    compiled = library()
    # A library that is older than the package lacks the function.
    if compiled is None or not hasattr(compiled, "may_use_amx"):
        return False
    return bool(compiled.may_use_amx())
