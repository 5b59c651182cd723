"""What this machine can do at best: multiply-adds per second, and bytes read per second.

`ceilings.c` is compiled for this very processor when it is needed. A ceiling is timed like a contender, in turn with
those that are measured against it, so that both see the same state of the machine.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from . import held, measure
from .cases import Case
from .machine import Unmeasurable

CEILING = "ceiling"

# Seconds that one call of a ceiling is to last: long beside the start of its threads.
_CALL = 0.05

_SOURCE = Path(__file__).with_name("ceilings.c")
_READ_BYTES = {"short": 2**28, "full": 2**30}  # above the caches; in short mode not of every processor
_SGEMM_SIZE = {"short": 1024, "full": 2048}


@dataclass(frozen=True)
class Ceiling:
    """Something that keeps the machine as busy as it can be.

    Attributes:
        name: what it measures, in words.
        unit: 1e9 of its work per second, in words.
        call: does the work, once.
        work: how much that is: floating-point operations, or bytes.
    """

    name: str
    unit: str
    call: Callable[[], object]
    work: float

    def rate(self, seconds: float) -> float:
        """In `unit`."""
        return self.work / 1e9 / seconds


@cache
def multiply_adds(num_threads: int) -> Ceiling:
    """Float32 multiply-adds in registers, in the widest vectors of the processor."""
    library = _library()

    def call(steps: int) -> None:
        _checked(library.ceiling_multiply_add(num_threads, steps))

    steps = _long_enough(call, 100_000)
    vector = 8 * library.ceiling_vector_bytes()
    flop = library.ceiling_flop_per_step() * steps * num_threads
    return Ceiling(f"multiply-adds in registers, vectors of {vector} bits", "GFLOP/s", lambda: call(steps), flop)


@cache
def reading(num_threads: int, mode: str) -> Ceiling:
    """Memory read in order, each thread a part of its own. Like data of NumPy's, it was first touched by one thread."""
    library = _library()
    data = _aligned(_READ_BYTES[mode])

    def call(passes: int) -> None:
        _checked(library.ceiling_read(num_threads, data.ctypes.data, data.nbytes, passes))

    passes = _long_enough(call, 1)
    return Ceiling("reading memory", "GB/s", lambda: call(passes), float(data.nbytes * passes))


def bounding(case: Case, num_threads: int, mode: str) -> Ceiling | None:
    """The ceiling of what bounds a case; None for exponentials, for which there is no telling."""
    if case.bound == "exponentials":
        return None
    return multiply_adds(num_threads) if case.bound == "arithmetic" else reading(num_threads, mode)


def sgemm(mode: str) -> Ceiling:
    """The product of two square matrices by NumPy: what BLAS makes of the multiply-adds. For orientation."""
    size = _SGEMM_SIZE[mode]
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    out = np.empty_like(a)
    return Ceiling(f"NumPy's product of {size} x {size}", "GFLOP/s", lambda: np.matmul(a, b, out=out), 2.0 * size**3)


def _long_enough(call: Callable[[int], None], amount: int) -> int:
    """How much of the work lasts about `_CALL`."""
    call(amount)
    return max(amount, round(amount * _CALL / measure.seconds(lambda: call(amount))))


@cache
def _aligned(size: int) -> np.ndarray:
    """Memory whose every page has been written to, from a multiple of 64 on."""
    whole = np.ones(size + 64, dtype=np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


def _checked(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))


@cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise Unmeasurable("the ceilings of the machine need a C compiler, which is not here; set CC to one")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ceilings.so"
        command = [compiler, "-O3", "-march=native", *held.flags(), "-ffp-contract=fast"]
        done = subprocess.run(
            [*command, "-shared", "-fPIC", "-pthread", str(_SOURCE), "-o", str(path)], capture_output=True, text=True
        )
        if done.returncode:
            raise Unmeasurable(f"{_SOURCE.name} does not compile:\n{done.stderr.strip()}")
        library = ctypes.CDLL(str(path))  # stays loaded when the file is gone
    library.ceiling_multiply_add.argtypes = (ctypes.c_int, ctypes.c_size_t)
    library.ceiling_read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    return library
