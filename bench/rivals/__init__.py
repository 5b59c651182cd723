"""What a user would run instead of fastflow: one module per rival, found by looking into this folder.

A module whose name does not begin with `_` holds one `RIVAL`. The velocity is that of the linear schedule with equal
weights and no variance, in float32. Each rival is called the best way it offers, on arrays of its own library, on its
own device; it waits for its result. What a call returns may be overwritten by the next call.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

BASELINE = "numpy-blas"

Call = Callable[[Any], Any]


def unchanged(array: Any) -> Any:
    """For who works on NumPy arrays."""
    return array


@dataclass(frozen=True)
class Rival:
    """A way to compute the velocity without fastflow.

    Attributes:
        name: how it is called in tables.
        available: whether it can run here; imports its library only when asked.
        prepare: `(data, t, num_threads) -> call`: everything that depends on the data, a (N, d) float32 NumPy array,
            and the time alone, once; `call(x)` returns the velocities of the queries x, both (B, d) arrays of its own.
        needs: what it takes to run, in words.
        enter: NumPy queries to its own array, untimed.
        leave: its own result to NumPy, untimed.
        device: "cpu" or "cuda".
        tolerance: the largest relative error that counts as a right answer: rivals lose digits in float32, and the
            tables say how many.
        compiles: its first call takes seconds for each number of dimensions, which short runs do without.
        can_be_held: whether it can be told to use less than all instruction sets of the processor (../held.py).
    """

    name: str
    available: Callable[[], bool]
    prepare: Callable[[np.ndarray, float, int], Call]
    needs: str = "nothing"
    enter: Callable[[np.ndarray], Any] = unchanged
    leave: Callable[[Any], np.ndarray] = unchanged
    device: str = "cpu"
    tolerance: float = 1e-4
    compiles: bool = False
    can_be_held: bool = True


def rivals() -> list[Rival]:
    """Every rival of this folder, the baseline first and then by module name."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    found = [importlib.import_module(f"{__name__}.{name}").RIVAL for name in names]
    return sorted(found, key=lambda rival: rival.name != BASELINE)


def factors(t: float) -> tuple[float, float, float]:
    """What the formula makes of the time: the factors of x Sᵀ and of |s|² in the logits, and of the result."""
    return t / (1.0 - t) ** 2, -(t**2) / (2.0 * (1.0 - t) ** 2), 1.0 / (1.0 - t)
