"""Random samplers: the marginals of the flow, by other paths than those of its ODE.

Path switching, the memoryless sampler (Wu 2-3). A step from t to s draws the ends of a path through x from the exact
posterior and follows that path: `(x_i, x_f) ~ p(x_i, x_f | x_t = x)`, then `x <- alpha(s) x_i + beta(s) x_f`.

    A step is exact however long it is. If x has the law p_t, then x, x_i and x_f together have the law of
    (x_t, x_i, x_f) on the paths x_t = alpha(t) x_i + beta(t) x_f: the law of x times the conditional law of the ends
    given x. So (x_i, x_f) have the law of source and target, and the new x that of x_s. By induction all steps have the
    exact marginals, forwards and backwards, for every number of steps, if the first point has (Wu 2). The number of
    steps decides how much the end depends on the start: one step draws it anew, many follow the ODE (Wu 3), each going
    astray by `h (v_s - v)`, whose sum has a variance of the order of the step h.

The SDE `dx = (v + g(t)^2 S / 2) dt + g(t) dW`, with the score S, by Euler and Maruyama. Its Fokker-Planck equation is
the continuity equation of the ODE, since `p_t S = grad p_t` makes the drift's part cancel the diffusion. Backwards
`dx = (v - g^2 S / 2) dt + g dW` in the same way. Here exactness holds in the limit of small steps only. With a full
source covariance, `g^2 Sigma_i` takes the place of `g^2 I`.

How much noise. Without variance the score is `-(E[x_i] - m_i) / (alpha s_i)`, and grows like 1/alpha towards the data:
g^2 should fall like alpha. The default for the number eta is

    g^2 = eta^2 2 s_i alpha beta |omega| / (alpha^2 + beta^2),    omega = alpha beta' - alpha' beta,

for the linear schedule `eta^2 2 s_i t (1 - t) / (t^2 + (1 - t)^2)`. It is zero where beta is, and where alpha is if
omega is finite there (for vp and linear_vp, whose omega grows like 1/alpha, g stays finite). With the angle
`tan theta = beta / alpha` it is `eta^2 s_i (alpha^2 + beta^2) |theta'| sin 2 theta`, so the noise of a stretch of the
path does not depend on the clock of the schedule. Towards the data and for eta = 1 it tends to
`2 s_i alpha omega / beta`, the noise of diffusion models. The drift that it adds without variance is
`eta^2 beta |theta'| (m_i - E[x_i])`, finite wherever the velocity is.

SDEs with any g have the same marginals, also with g constant in each step. A step takes the smaller of the values of g
at its two ends: so no step brings more noise to the place it leads to than belongs there. The step into a time without
variance is the frozen one of `samplers`, without noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays

if TYPE_CHECKING:
    from .field import VelocityField

Noise = float | Callable[[float], float]


def noise_levels(field: VelocityField, noise: Any, times: np.ndarray, only_limit: bool) -> list[float]:
    """g of each step between the `times`.

    Args:
        field: the field, whose schedule and source the default shape follows.
        noise: eta, or g as a function of t.
        times: (T,) the grid.
        only_limit: whether the last step ends where nothing is evaluated; it has no noise.

    Raises:
        TypeError, ValueError: `noise` is neither a number of at least 0 nor a function with such values.
    """
    steps = len(times) - 1
    if callable(noise):
        seen = times[:-1] if only_limit else times
        levels = [_arrays.real_number(f"noise({t!r})", noise(t), minimum=0.0) for t in seen.tolist()]
    else:
        eta = _arrays.real_number("noise", noise, minimum=0.0)
        levels = [eta * _shape(field, t) if eta else 0.0 for t in times.tolist()]
    inside = [min(pair) for pair in itertools.pairwise(levels)]
    return inside + [0.0] * (steps - len(inside))


def _shape(field: VelocityField, t: float) -> float:
    """g for eta = 1. Written with `alpha alpha'`, which is finite where alpha' is not."""
    alpha, beta, _, d_beta, alpha_d_alpha = field.schedule(t)
    turn = abs(alpha * alpha * d_beta - alpha_d_alpha * beta)  # alpha |omega|
    return math.sqrt(2.0 * field._model.source_variance * turn * abs(beta) / (alpha * alpha + beta * beta))


def follow_path(
    field: VelocityField, x: np.ndarray, t: float, stop: float, rng: np.random.Generator, label: Any
) -> np.ndarray:
    """One step of path switching from t to stop, (B, *event) or one event to the same."""
    x_i, x_f = field._draw(field._queries(x, t), rng, label)
    end = field.schedule(stop)
    return (end.alpha * x_i + end.beta * x_f).astype(x.dtype).reshape(x.shape)


def maruyama_step(
    field: VelocityField, x: np.ndarray, t: float, stop: float, g: float, rng: np.random.Generator, **options: Any
) -> np.ndarray:
    """One step of the SDE from t to stop with noise g > 0, (B, *event) or one event to the same."""
    found = field.evaluate(x, t, ("velocity", "score"), **options)
    score = found["score"]
    noise = rng.standard_normal(x.shape)
    frame = field._model.frame
    if frame is not None:

        def framed(change: Callable[[np.ndarray], np.ndarray], value: np.ndarray) -> np.ndarray:
            return change(value.reshape(-1, field._size)).reshape(x.shape)

        score = framed(lambda v: frame.leave(frame.enter(v, "covector"), "vector"), score)  # Sigma_i times it
        noise = framed(lambda v: frame.leave(v, "vector"), noise)
    length = abs(stop - t)
    moved = x + (stop - t) * found["velocity"] + (0.5 * g * g * length) * score + (g * math.sqrt(length)) * noise
    return moved.astype(x.dtype)
