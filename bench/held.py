"""An instruction set that everyone is held to, so that a machine can stand for another that has no more.

`FASTFLOW_BENCH_ISA=avx2` is that of a processor without AVX-512. Each library is told in the way that it documents, by
the environment, before it is loaded. Rivals that cannot be told do not take part: XLA and KeOps compile for the
processor they find. What remains are the caches, the memory and the clock of the machine itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "FASTFLOW_BENCH_ISA"


@dataclass(frozen=True)
class Hold:
    """How to hold everyone to an instruction set: variables of the environment, and flags for a C compiler."""

    environment: Mapping[str, str]
    flags: tuple[str, ...]


HOLDS = {
    "avx2": Hold(
        {
            "OPENBLAS_CORETYPE": "Haswell",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
            # By the names of NumPy 2.4; those that a version does not know it passes over.
            "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512_SKX",
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": "+sse2,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
        },
        ("-mno-avx512f",),
    )
}


def isa() -> str | None:
    """What everyone is held to, or None."""
    return os.environ.get(VARIABLE) or None


def flags() -> tuple[str, ...]:
    """For a C compiler that would use all that the processor has."""
    held = isa()
    return HOLDS[held].flags if held else ()


def hold() -> None:
    """Set the environment of this process. To be called before anything that it is for is imported."""
    held = isa()
    if held is None:
        return
    if held not in HOLDS:
        raise SystemExit(f"{VARIABLE} is {held!r}; accepted are {', '.join(map(repr, HOLDS))}")
    os.environ.update(HOLDS[held].environment)
