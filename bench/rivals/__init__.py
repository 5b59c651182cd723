"""What a user would run instead of fastflow: one module per rival, found by looking into this folder.

A rival is a module with

    name                        how it is called in tables
    available() -> bool         whether it can run here; imports its library only when asked
    prepare(data, t) -> call    everything that depends on the data and the time alone, once; `call(x)` returns the
                                velocities of the queries x, both (B, d) float32 NumPy arrays

The velocity is that of the linear schedule with equal weights and no variance. Each rival is called the best way it
offers. What `call` returns may be overwritten by the next call.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

BASELINE = "numpy-blas"


class Rival(Protocol):
    name: str

    def available(self) -> bool: ...

    def prepare(self, data: np.ndarray, t: float) -> Callable[[np.ndarray], np.ndarray]: ...


def rivals() -> list[Rival]:
    """Every rival of this folder, the baseline first and then by module name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return sorted((cast(Rival, module) for module in modules), key=lambda rival: rival.name != BASELINE)
