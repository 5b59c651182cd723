"""The end of time: posterior weights where the component variance D is zero.

At t = 1 without target variance the weights tend to the nearest data point (Gao 4.11). Points at exactly the same
distance share by their masses. The kernels see a tiny variance instead of zero (`SINGULAR_VARIANCE`), which settles
who is nearest; beside logits of that size the masses of equally near points are lost, and are put back here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .backends import Points, Prepared
from .moments import Moments

# Elements of the blocks of logits held at a time: 4 MB of float64.
LOGIT_BLOCK = 1 << 19

# With the stand-in variance, a logit within this of zero belongs to a point at distance zero: the smallest distance
# that a float64 can show costs far more.
ON_POINT = 1e30


def nearest(
    prepared: Prepared, points: Points, x: np.ndarray, coefficients: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices and weights of the nearest points of each query; `coefficients` hold the stand-in variance."""
    count = len(points.data)
    step = max(1, LOGIT_BLOCK // max(1, len(x)))
    largest = np.full(len(x), -np.inf)
    found: list[list[np.ndarray]] = [[] for _ in x]
    for start in range(0, count, step):
        block = prepared.logits(x, coefficients, start, min(start + step, count))
        for query, row in enumerate(block):
            top = row.max()
            if abs(top) < ON_POINT:
                top = -ON_POINT
            if top > largest[query]:
                largest[query] = top
                found[query] = []
            if top == largest[query]:
                found[query].append(start + np.flatnonzero(row >= top))
    result = []
    for lists in found:
        index = np.concatenate(lists)
        log_mass = np.zeros(len(index)) if points.log_mass is None else points.log_mass[index]
        weights = np.exp(log_mass - log_mass.max())
        result.append((index, weights / weights.sum()))
    return result


def limit_moments(
    moments: Moments,
    singular: np.ndarray,
    prepared: Prepared,
    points: Points,
    x: np.ndarray,
    coefficients: np.ndarray,
) -> Moments:
    """`moments` with those of the singular queries, rows of the boolean (B,) array, replaced by their limit."""
    rows = np.flatnonzero(singular)
    if not len(rows):
        return moments
    coefficients = np.broadcast_to(coefficients, (3, len(x)))[:, rows]
    limits = nearest(prepared, points, x[rows], np.ascontiguousarray(coefficients))
    fields = {
        name: None if getattr(moments, name) is None else getattr(moments, name).copy()
        for name in ("mean", "residual", "entropy", "collision")
    }
    for row, (index, weights), (alpha, beta, _) in zip(rows, limits, coefficients.T, strict=True):
        if fields["mean"] is not None:
            mean = weights @ points.data[index].astype(np.float64)
            origin = 0.0 if points.source_mean is None else alpha * points.source_mean
            fields["mean"][row] = mean
            fields["residual"][row] = x[row] - origin - beta * mean
        if fields["entropy"] is not None:
            positive = weights[weights > 0.0]
            fields["entropy"][row] = -np.sum(positive * np.log(positive))
            fields["collision"][row] = np.sum(weights * weights)
    return replace(moments, **fields)
