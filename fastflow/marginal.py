"""Draws from the marginals of the path: a data point by its mass, and x_t around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import Points

if TYPE_CHECKING:
    from .field import VelocityField


def choose(field: VelocityField, num: int, rng: np.random.Generator, label: Any) -> np.ndarray:
    """Draw data points by their masses: indices (num,)."""
    chosen = np.empty(num, dtype=np.int64)
    for group in field._parts.groups(label, None, None, num, False):
        rows = slice(None) if group.rows is None else group.rows
        points = group.part.points
        count = num if group.rows is None else len(group.rows)
        if points.log_mass is None:
            drawn = rng.integers(points.count, size=count)
        else:
            mass = np.exp(points.log_mass)
            drawn = rng.choice(points.count, size=count, p=mass / mass.sum())
        chosen[rows] = drawn if points.index is None else points.index[drawn]
    return chosen


def around(field: VelocityField, index: np.ndarray, t: float | np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Standard normal noise (n, D) to draws of x_t given the data point, `N(alpha m_i + beta mu_j, D_j)` (Khungurn 6).

    (n, D) float64 in the caller's coordinates.
    """
    points, model = field._parts.points, field._model
    path = field._path(t, field._parts.whole)
    variance = np.reshape(path.variance, (-1, 1))
    if points.variance is not None:
        variance = variance + np.reshape(path.slope, (-1, 1)) * own_variances(points, index)
    x = noise * np.sqrt(variance)
    if points.rotation is not None:
        x = np.einsum("be,bde->bd", x, points.rotation[index])
    x += np.reshape(path.beta, (-1, 1)) * points.rows(index)
    if model.source_mean is not None:
        x += np.reshape(path.alpha, (-1, 1)) * model.source_mean
    return x if model.frame is None else model.frame.leave(x, "vector")


def own_variances(points: Points, index: np.ndarray) -> np.ndarray:
    """Variances of some points that have their own, (n or 1, D or 1)."""
    own = points.variance if len(points.variance) == 1 else points.variance[index]
    return own[:, None] if own.ndim == 1 else own
