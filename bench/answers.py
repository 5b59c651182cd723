"""The right answers, in float64, by residuals: a time counts only with a right result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np

from fastflow.backends.cores import usable_cores

from .cases import TIME, Case, Points

# The project's limit for float32 results, relative to the largest component of each velocity.
LIMIT = 1e-5

# Values converted to float64 at a time: what is made of them stays in the caches.
_BLOCK = 15_000


def check(case: Case, v: np.ndarray, limit: float | None = None) -> float:
    """The largest relative error of `v` over the checked queries; ArithmeticError if it is above the limit or NaN."""
    limit = LIMIT if limit is None else limit
    rows, right = _expected(case)
    if v.shape != (case.num_queries, case.dim):
        raise ArithmeticError(f"{case.name}: the result has shape {v.shape}")
    error = relative_error(v[rows], right)
    if not error <= limit:
        raise ArithmeticError(f"{case.name}: relative error {error:.2g} against float64 is above {limit:g}")
    return error


def relative_error(v: np.ndarray, right: np.ndarray) -> float:
    """The largest difference of any component over the largest component of its row; NaN where v has one."""
    difference = np.abs(v.astype(np.float64) - right).max(axis=1)
    return float(np.max(difference / np.abs(right).max(axis=1)))


def expected(points: Points, x: np.ndarray, t: float) -> np.ndarray:
    """Velocities (B, d) of the queries x (B, d), float64: linear schedule, equal weights, no variance.

    The logits come from residuals x - t mu, which lose no digits as t -> 1; block by block, merged by their largest.
    Each core takes a part of the queries.
    """
    parts = np.array_split(x.astype(np.float64), min(len(x), usable_cores()))
    with ThreadPoolExecutor(len(parts)) as pool:
        return np.concatenate(list(pool.map(partial(_expected_part, points, t), parts)))


def _expected_part(points: Points, t: float, x: np.ndarray) -> np.ndarray:
    largest = np.full(len(x), -np.inf)
    total = np.zeros(len(x))
    weighted = np.zeros_like(x)
    rows = max(1, _BLOCK // x.shape[1])
    residuals = np.empty((rows, x.shape[1]))
    for start in range(0, len(points.stored), rows):
        values = points.block(start, start + rows)
        logits = np.empty((len(x), len(values)))
        moved = t * values
        for row, query in zip(logits, x, strict=True):
            residual = np.subtract(query, moved, out=residuals[: len(values)])
            np.einsum("nd,nd->n", residual, residual, out=row)
        logits /= -2.0 * (1.0 - t) ** 2
        new = np.maximum(largest, logits.max(axis=1))
        weights = np.exp(logits - new[:, None])
        keep = np.exp(largest - new)
        total = total * keep + weights.sum(axis=1)
        weighted = weighted * keep[:, None] + weights @ values
        largest = new
    return (weighted / total[:, None] - x) / (1.0 - t)


@cache
def _expected(case: Case) -> tuple[list[int], np.ndarray]:
    """First, middle and last query of the case, and their velocities."""
    rows = sorted({0, case.num_queries // 2, case.num_queries - 1})
    return rows, expected(case.points(), case.queries()[rows], TIME)
