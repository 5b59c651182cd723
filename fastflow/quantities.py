"""Quantities: posterior moments in, velocity, score, log density and the rest out.

The algebra of MATH.md (Posterior means, velocity, score), and nothing of tiles or threads. A new quantity is one
function and one row of `QUANTITIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .limit import ON_POINT
from .moments import Moments
from .path import Path


class Model(NamedTuple):
    """What a quantity may need of the field besides the moments.

    Attributes:
        source_mean: (D,) float64, or None where it is zero.
        source_variance: variance `s_i` of the source.
        target_variance: variance `s_f` of each data point.
        size: D, the number of values in an event.
    """

    source_mean: np.ndarray | None
    source_variance: float
    target_variance: float
    size: int


class Quantity(NamedTuple):
    """How a quantity is computed: `compute(moments, path, model)`, and which moments it reads."""

    compute: Callable[[Moments, Path, Model], np.ndarray]
    mean: bool = False
    spread: bool = False
    regular: bool = False  # True where the quantity does not exist when D = 0


def _factor(value: Any, like: np.ndarray) -> Any:
    """A per-query coefficient, shaped and typed to multiply (B, D) moments without widening them."""
    return value if isinstance(value, float) else value.astype(like.dtype)[:, None]


def _combine(moments: Moments, mean_factor: Any, residual_factor: Any) -> np.ndarray:
    """`mean_factor * mean + residual_factor * residual`."""
    result = moments.residual * _factor(residual_factor, moments.residual)
    result += moments.mean * _factor(mean_factor, moments.mean)
    return result


def _velocity(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`v = alpha' m_i + beta' E[mu] + rate E[r]` (Fan 46, with the shared variance taken out of the sum)."""
    velocity = _combine(moments, path.d_beta, path.rate)
    if model.source_mean is not None:
        velocity += (np.reshape(path.d_alpha, (-1, 1)) * model.source_mean).astype(velocity.dtype)
    return velocity


def _target_mean(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`E[x_f | x] = E[mu] + (beta s_f / D) E[r]` (Fan 19, 21)."""
    if model.target_variance == 0.0:
        return moments.mean
    return _combine(moments, 1.0, path.beta * model.target_variance / path.variance)


def _source_mean(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`E[x_i | x] = m_i + (alpha s_i / D) E[r]` (Fan 21)."""
    mean = moments.residual * _factor(path.source_gain, moments.residual)
    if model.source_mean is not None:
        mean += model.source_mean.astype(mean.dtype)
    return mean


def _score(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`grad log p_t = -E[r] / D`."""
    return moments.residual * _factor(-1.0 / path.variance, moments.residual)


def _log_density(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`log p_t(x) = log_total - (d/2) log 2 pi` (Gao 4.3); where D = 0, the limit: +inf on a point, else -inf."""
    density = moments.log_total - 0.5 * model.size * math.log(2.0 * math.pi)
    if np.any(path.singular):
        on_point = moments.log_total > -ON_POINT
        density = np.where(path.singular, np.where(on_point, np.inf, -np.inf), density)
    return density


def _entropy(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`-sum_j w_j log w_j`, in nats."""
    return moments.entropy


def _effective_sample_size(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`1 / sum_j w_j^2`."""
    return 1.0 / moments.collision


QUANTITIES: dict[str, Quantity] = {
    "velocity": Quantity(_velocity, mean=True),
    "target_mean": Quantity(_target_mean, mean=True),
    "source_mean": Quantity(_source_mean, mean=True),
    "score": Quantity(_score, mean=True, regular=True),
    "log_density": Quantity(_log_density),
    "entropy": Quantity(_entropy, spread=True),
    "effective_sample_size": Quantity(_effective_sample_size, spread=True),
}
