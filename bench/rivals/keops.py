"""KeOps on the processor: the same formula as a symbolic reduction, compiled in C++, without the (B, N) weights.

It compiles for seconds at the first call for each number of dimensions, and keeps what it compiled in the home folder.
Its threads are those of OpenMP.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import numpy as np

from . import Rival, factors


def available() -> bool:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and importlib.util.find_spec("pykeops") is not None


def prepare(data: np.ndarray, t: float, num_threads: int) -> Callable[[np.ndarray], np.ndarray]:
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read when the compiled code is loaded
    import pykeops

    pykeops.set_verbose(False)
    from pykeops.numpy import LazyTensor

    scale, square, gain = map(np.float32, factors(t))
    norms = np.einsum("nd,nd->n", data, data)
    points = LazyTensor(data[None, :, :])
    bias = LazyTensor((norms * square)[None, :, None])

    def call(x: np.ndarray) -> np.ndarray:
        logits = (LazyTensor((x * scale)[:, None, :]) | points) + bias
        v = logits.sumsoftmaxweight(points, axis=1)
        v -= x
        v *= gain
        return v

    return call


# Its sums run over all points one by one, which costs float32 a digit.
RIVAL = Rival("keops", available=available, prepare=prepare, needs="pykeops and a C++ compiler", compiles=True)
