"""The numbers of the Gaussian path at given times: schedule and variances in, per-query coefficients out.

This is the one place where a schedule meets the variances (MATH.md, Setting). With one shared target variance,
component j of the marginal at time t is `N(alpha m_i + beta mu_j, D I)` with `D = alpha^2 s_i + beta^2 s_f`, and
everything that the kernels and the quantities need are the few numbers below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .schedules import Schedule

# Stands in for D where D = 0 (t = 1 without target variance). The weights then come out as their limit, the nearest
# data point: distances that differ in the last bit of a float64 differ in the exponent by far more than the 745 that
# underflows, and squared distances up to 1e180 do not overflow. What becomes of ties is in limit.py.
SINGULAR_VARIANCE = 1e-120


class Path(NamedTuple):
    """Coefficients at one time (floats) or one time per query (float64 arrays of shape (B,)).

    Attributes:
        alpha, beta, d_alpha, d_beta: the schedule and its time derivatives.
        variance: `D = alpha^2 s_i + beta^2 s_f` (Fan 49), with `SINGULAR_VARIANCE` where it is zero.
        rate: `(alpha alpha' s_i + beta beta' s_f) / D`, the factor of the residual in the velocity (Fan 46);
            `beta' / beta` where D = 0, which makes the same formula give the finite limit (Fan 9).
        source_gain: `alpha s_i / D`, the factor of the residual in `E[x_i | x]` (Fan 21); zero where D = 0, so
            that the formula gives the limit `m_i` there (Fan 9).
        singular: whether D = 0, as a bool or (B,) array.
    """

    alpha: Any
    beta: Any
    d_alpha: Any
    d_beta: Any
    variance: Any
    rate: Any
    source_gain: Any
    singular: Any

    def kernel_coefficients(self) -> np.ndarray:
        """(3, 1) or (3, B) float64: alpha, beta and variance, as the backends take them."""
        rows = (self.alpha, self.beta, self.variance)
        if isinstance(self.alpha, float):
            return np.array(((rows[0],), (rows[1],), (rows[2],)))
        return np.array(rows)


def path_at(schedule: Schedule, t: float | np.ndarray, source_variance: float, target_variance: float) -> Path:
    """Evaluate the schedule at `t` (a float or (B,) float64) and combine it with the two variances."""
    alpha, beta, d_alpha, d_beta, alpha_d_alpha = schedule(t)
    variance = alpha * alpha * source_variance + beta * beta * target_variance
    drift = alpha_d_alpha * source_variance + beta * d_beta * target_variance
    if isinstance(variance, float):
        if variance > 0.0:
            gain = alpha * source_variance / variance
            return Path(alpha, beta, d_alpha, d_beta, variance, drift / variance, gain, False)
        return Path(alpha, beta, d_alpha, d_beta, SINGULAR_VARIANCE, d_beta / beta, 0.0, True)
    singular = ~(variance > 0.0)
    safe = np.where(singular, SINGULAR_VARIANCE, variance)
    rate = np.where(singular, d_beta / np.where(singular, beta, 1.0), drift / safe)
    gain = np.where(singular, 0.0, alpha * source_variance / safe)
    return Path(alpha, beta, d_alpha, d_beta, safe, rate, gain, singular)
