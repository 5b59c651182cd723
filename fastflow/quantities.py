"""Quantities: posterior moments in, velocity, score, log density and the rest out.

The algebra of docs/theory.md, and nothing of tiles or threads. A new quantity is one function and one row of
`QUANTITIES`, or of `PRODUCTS` where it takes a direction u.

A component's own means and velocity are affine in its point and its residuals (see `Pair`); `_Affine` holds such a map,
and averages, traces of covariances and covariance products of them all follow from the moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .model import Model
from .moments import Moments
from .path import SINGULAR_VARIANCE, Pair, Path

# With the stand-in variance, a log total within this of zero belongs to a query on a point. Moments that tell their
# distance do not need it.
_ON_POINT = 1e30


_FLOAT32_LARGEST, _FLOAT32_SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


class Quantity(NamedTuple):
    """How a quantity is computed: `compute(moments, path, model)`, and which moments it reads."""

    compute: Callable[[Moments, Path, Model], np.ndarray]
    mean: bool = False
    spread: bool = False
    trace: bool = False
    regular: bool = False  # True where the quantity does not exist when D = 0
    kind: str = "scalar"  # "vector" where it moves as a point does, "covector" where as a gradient


class Product(NamedTuple):
    """A product of a matrix with a direction u.

    Attributes:
        psi: `path -> _Affine`, the function of a component whose inner product with u is psi_j.
        compute: `(moments, u, path, model) -> (B, D)`.
        kind: how u and the result move: "vector" or "covector", for each.
    """

    psi: Callable[[Path], _Affine]
    compute: Callable[[Moments, np.ndarray, Path, Model], np.ndarray]
    kind: tuple[str, str]


class _Affine(NamedTuple):
    """`f_j = mean mu_j + residual r_j + gained gamma_j r_j + const` of each component j."""

    mean: Any
    residual: Any
    gained: Any

    def span(self, path: Path) -> Any:
        """The factor of mu_j, with `r_j = e - beta mu_j` written out."""
        return self.mean - self.residual * path.beta

    def average(self, moments: Moments) -> np.ndarray:
        """`E[f_j]` short of the constant."""
        result = _times(self.residual, moments.residual)
        if _is_used(self.mean):
            result += _times(self.mean, moments.mean)
        if moments.gained is not None and _is_used(self.gained):  # it may have overflowed where it does not count
            with np.errstate(invalid="ignore"):
                gained = _times(self.gained, moments.gained)
            if not isinstance(self.gained, float) and not self.gained.all():
                gained[self.gained == 0.0] = 0.0
            result += gained
        return result

    def trace(self, other: _Affine, moments: Moments, path: Path) -> np.ndarray:
        """`tr Cov_w(f_j, g_j)`."""
        own, others = self.span(path), other.span(path)
        result = own * others * moments.trace
        if moments.gained is not None:
            result += (own * other.gained + others * self.gained) * moments.cross
            result += self.gained * other.gained * moments.gained_trace
        return result

    def product(self, moments: Moments, path: Path) -> np.ndarray:
        """`Cov_w(f_j, psi_j)`."""
        result = moments.mean_product * _factor(self.span(path), moments.mean_product)
        if moments.gained_product is not None:
            result += moments.gained_product * _factor(self.gained, moments.gained_product)
        return result


def _velocities(path: Path) -> _Affine:
    """`v_j = alpha' m_i + beta' mu_j + (alpha alpha' s_i + beta beta' s_fj) / D_j r_j` (Fan 46, Khungurn Thm 1)."""
    return _Affine(path.d_beta, *path.rate)


def _targets(path: Path) -> _Affine:
    """`E[x_f | x, j] = mu_j + (beta s_fj / D_j) r_j` (Fan 19, 21)."""
    return _Affine(1.0, *(path.beta * f for f in path.share))


def _sources(path: Path) -> _Affine:
    """`E[x_i | x, j] = m_i + (alpha s_i / D_j) r_j` (Fan 21)."""
    return _Affine(0.0, *path.source_gain)


def _scores(path: Path) -> _Affine:
    """`grad_x log N(x; alpha m_i + beta mu_j, D_j I) = -r_j / D_j`."""
    return _Affine(0.0, *(-f for f in path.inverse))


def _is_used(factor: Any) -> bool:
    return not (isinstance(factor, float) and factor == 0.0)


def _times(value: Any, moments: np.ndarray) -> np.ndarray:
    """A per-query coefficient times (B, D) moments, in their dtype. Where that is too narrow for a query's coefficient
    the product, which need not be, is formed in float64."""
    if moments.dtype == np.float32:
        size = np.abs(value)
        beyond = ((size > _FLOAT32_LARGEST) & (size < math.inf)) | ((size < _FLOAT32_SMALLEST) & (size > 0.0))
        if beyond.any():
            with np.errstate(over="ignore", under="ignore"):  # what is beyond float32 even so is infinite, or zero
                wide = moments.astype(np.float64)
                product = (wide * _factor(value, wide)).astype(np.float32)
                if not beyond.all():  # the others as they would be without these
                    product = np.where(beyond[:, None], product, moments * _factor(value, moments))
                return product
    return moments * _factor(value, moments)


def _factor(value: Any, like: np.ndarray) -> Any:
    """A per-query coefficient, shaped and typed to multiply (B, D) moments without widening them."""
    return value if isinstance(value, float) else value.astype(like.dtype)[:, None]


def _expected(pair: Pair, moments: Moments) -> Any:
    """`E[residual + gained gamma_j]`."""
    return pair.residual if moments.gain is None else pair.residual + pair.gained * moments.gain


def _applied(pair: Pair, u: np.ndarray, moments: Moments) -> np.ndarray:
    """`E[residual + gained gamma_j] u`."""
    result = u * _factor(pair.residual, u)
    if moments.gain_product is not None:
        result += moments.gain_product * _factor(pair.gained, u)
    return result


def _velocity(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`v = alpha' m_i + sum_j w_j (v_j - alpha' m_i)` (Fan 14, 46; Gao 3.2)."""
    velocity = _velocities(path).average(moments)
    if model.source_mean is not None:
        velocity += (np.reshape(path.d_alpha, (-1, 1)) * model.source_mean).astype(velocity.dtype)
    return velocity


def _target_mean(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`E[x_f | x]` (Fan 19, 21)."""
    return moments.mean if model.target == 0.0 else _targets(path).average(moments)


def _source_mean(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`E[x_i | x]` (Fan 21)."""
    mean = _sources(path).average(moments)
    if model.source_mean is not None:
        mean += model.source_mean.astype(mean.dtype)
    return mean


def _score(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`grad log p_t = -sum_j w_j r_j / D_j`."""
    return _scores(path).average(moments)


def _log_density(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`log p_t(x) = log_total - (d/2) log 2 pi` (Gao 4.3); where D = 0, the limit: +inf on a point, else -inf."""
    density = moments.log_total - 0.5 * model.size * math.log(2.0 * math.pi) - model.log_volume
    if np.any(path.singular):
        if model.target == 0.0:
            on_point = moments.log_total > -_ON_POINT if moments.distance is None else moments.distance == 0.0
            limit = np.where(on_point, np.inf, -np.inf)
        else:  # only points without variance have no density, and they are seen from nowhere but themselves
            on_point = moments.log_total > -0.45 * model.size * math.log(SINGULAR_VARIANCE)
            limit = np.where(on_point, np.inf, density)
        density = np.where(path.singular, limit, density)
    return density


def _entropy(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`-sum_j w_j log w_j`, in nats."""
    return moments.entropy


def _effective_sample_size(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`1 / sum_j w_j^2`."""
    return 1.0 / moments.collision


def _velocity_variance(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`tr Cov(v_s | x) = tr Cov_w(v_j) + d (alpha' beta - alpha beta')^2 s_i E[s_fj / D_j]` (Wu 3)."""
    velocities = _velocities(path)
    between = velocities.trace(velocities, moments, path)
    variance = between + model.size * _turn(path, model) * _expected(path.share, moments)
    return variance if model.scale is None else model.scale * variance  # None: the field takes the trace outside


def _turn(path: Path, model: Model) -> Any:
    """`(alpha' beta - alpha beta')^2 s_i`, by which `s_fj / D_j` is multiplied in the variance of component j."""
    return (path.d_alpha * path.beta - path.alpha * path.d_beta) ** 2 * model.source_variance


def _divergence(moments: Moments, path: Path, model: Model) -> np.ndarray:
    """`div v = d E[rate_j] + tr Cov_w(v_j, g_j)`, with g_j the score of component j."""
    trace = _velocities(path).trace(_scores(path), moments, path)
    return model.size * _expected(path.rate, moments) + trace


def _jvp(moments: Moments, u: np.ndarray, path: Path, model: Model) -> np.ndarray:
    """`(dv/dx) u = E[rate_j] u + Cov_w(v_j, g_j . u)`."""
    return _applied(path.rate, u, moments) + _velocities(path).product(moments, path)


def _target_covariance(moments: Moments, u: np.ndarray, path: Path, model: Model) -> np.ndarray:
    """`Cov(x_f | x) u = alpha^2 s_i E[s_fj / D_j] u + Cov_w(E[x_f | x, j], E[x_f | x, j] . u)` (Fan 19)."""
    width = path.alpha * path.alpha * model.source_variance
    within = _applied(Pair(*(width * f for f in path.share)), u, moments)
    return within + _targets(path).product(moments, path)


def _velocity_covariance(moments: Moments, u: np.ndarray, path: Path, model: Model) -> np.ndarray:
    """`Cov(v_s | x) u`, whose trace is the velocity variance."""
    within = _applied(Pair(*(_turn(path, model) * f for f in path.share)), u, moments)
    return within + _velocities(path).product(moments, path)


QUANTITIES: dict[str, Quantity] = {
    "velocity": Quantity(_velocity, mean=True, kind="vector"),
    "target_mean": Quantity(_target_mean, mean=True, kind="vector"),
    "source_mean": Quantity(_source_mean, mean=True, kind="vector"),
    "score": Quantity(_score, mean=True, regular=True, kind="covector"),
    "log_density": Quantity(_log_density),
    "entropy": Quantity(_entropy, spread=True),
    "effective_sample_size": Quantity(_effective_sample_size, spread=True),
    "velocity_variance": Quantity(_velocity_variance, mean=True, trace=True, regular=True),
    "divergence": Quantity(_divergence, mean=True, trace=True, regular=True),
}

PRODUCTS: dict[str, Product] = {
    "jvp": Product(_scores, _jvp, ("vector", "vector")),
    # The velocity is an affine function and a multiple of the score where the source is isotropic, as it is in the
    # frame (docs/theory.md): there the Jacobian is symmetric, and its transpose differs in how u moves alone.
    "vjp": Product(_scores, _jvp, ("covector", "covector")),
    "target_covariance_product": Product(_targets, _target_covariance, ("covector", "vector")),
    "velocity_covariance": Product(_velocities, _velocity_covariance, ("covector", "vector")),
}
