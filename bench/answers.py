"""The right answers, in float64, for a few queries of each case: a time counts only with a right result."""

from __future__ import annotations

from functools import cache

import numpy as np

from .cases import TIME, Case

# The project's limit for float32 results, relative to the largest component of each velocity.
LIMIT = 1e-5

_ROWS = 4096  # data points converted to float64 at a time


def check(case: Case, v: np.ndarray) -> float:
    """The largest relative error of `v` over the checked queries; ArithmeticError if it is above the limit or NaN."""
    rows, expected = _expected(case)
    if v.shape != (case.num_queries, case.dim):
        raise ArithmeticError(f"{case.name}: the result has shape {v.shape}")
    difference = np.abs(v[rows].astype(np.float64) - expected).max(axis=1)
    error = float(np.max(difference / np.abs(expected).max(axis=1)))
    if not error <= LIMIT:
        raise ArithmeticError(f"{case.name}: relative error {error:.2g} against float64 is above {LIMIT:g}")
    return error


@cache
def _expected(case: Case) -> tuple[list[int], np.ndarray]:
    """First, middle and last query of the case, and their velocities from residuals, block by block."""
    rows = sorted({0, case.num_queries // 2, case.num_queries - 1})
    x = case.queries()[rows].astype(np.float64)
    largest = np.full(len(x), -np.inf)
    total = np.zeros(len(x))
    weighted = np.zeros_like(x)
    for start in range(0, case.num_points, _ROWS):
        points = case.data()[start : start + _ROWS].astype(np.float64)
        square = np.stack([np.square(query - TIME * points).sum(axis=1) for query in x])
        logits = -square / (2.0 * (1.0 - TIME) ** 2)
        new = np.maximum(largest, logits.max(axis=1))
        weights = np.exp(logits - new[:, None])
        keep = np.exp(largest - new)
        total = total * keep + weights.sum(axis=1)
        weighted = weighted * keep[:, None] + weights @ points
        largest = new
    return rows, (weighted / total[:, None] - x) / (1.0 - TIME)
