"""The formula in NumPy, float32 throughout, its two products done by BLAS. This is the baseline of all ratios.

    v = (softmax(x Sᵀ t/(1-t)² - |s|² t²/(2 (1-t)²)) S - x) / (1-t)

The squared norms are computed once. The factor of the logits goes to the queries and the normalisation to the result,
both far smaller than the weights. The (B, N) weights live in one buffer, kept from call to call, so that no call pays
for fresh pages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import BASELINE, Rival, factors


def prepare(data: np.ndarray, t: float, num_threads: int) -> Callable[[np.ndarray], np.ndarray]:
    # The threads of BLAS are set by whoever runs the benchmark (machine.equal_threads).
    scale, square, gain = map(np.float32, factors(t))
    bias = np.einsum("nd,nd->n", data, data)
    bias *= square
    buffers: dict[int, np.ndarray] = {}

    def call(x: np.ndarray) -> np.ndarray:
        count = len(x)
        if count not in buffers:
            buffers[count] = np.empty((count, len(data)), dtype=np.float32)
        weights = np.matmul(x * scale, data.T, out=buffers[count])
        weights += bias
        weights -= weights.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        v = weights @ data
        v /= weights.sum(axis=1, keepdims=True)
        v -= x
        v *= gain
        return v

    return call


RIVAL = Rival(BASELINE, available=lambda: True, prepare=prepare)
