"""An instruction set that everyone is held to, so that a machine can stand for another that has no more.

`FASTFLOW_BENCH_ISA=avx2` is that of a processor without AVX-512. Each library is told in the way that it documents, by
the environment, before it is loaded. JAX cannot be told and does not take part: XLA's own flag leaves its matrix
products as they are. What remains are the caches, the memory and the clock of the machine itself.
"""

from __future__ import annotations

import os
import sys
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
            "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # as NumPy calls them from 2.4 on
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
    """Set the environment of this process, before anything that it is for is imported."""
    held = isa()
    if held is None:
        return
    if held not in HOLDS:
        raise SystemExit(f"{VARIABLE} is {held!r}; accepted are {', '.join(map(repr, HOLDS))}")
    early = [name for name in ("numpy", "numba", "torch") if name in sys.modules]
    if early:
        raise SystemExit(f"{VARIABLE} comes too late: {early[0]} is loaded. Start with python -m bench.NAME")
    os.environ.pop("NPY_ENABLE_CPU_FEATURES", None)  # NumPy refuses to have both
    os.environ.update(HOLDS[held].environment)
