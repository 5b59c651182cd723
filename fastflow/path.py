"""The numbers of the Gaussian path at given times: schedule and variances in, per-query coefficients out.

This is the one place where a schedule meets the variances (docs/theory.md, section 2), and where what a schedule says
is checked: a class of the caller's own may say anything.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ._arrays import LARGEST_FACTOR, SMALLEST_COMPONENT, shown
from .schedules import Coefficients, Schedule, name_of

# Stands in for D where D = 0 (t = 1 without target variance). The weights then come out as nearly their limit, the
# nearest data point: distances that differ in the last bit of a float64 differ in the exponent by far more than the 745
# that underflows. The limit itself, with its ties, is found in limit.py.
SINGULAR_VARIANCE = 1e-120

# Derivatives of a schedule may be this large: times the largest point, and divided by the smallest component variance,
# they do not overflow.
_LARGEST_SLOPE = 1e150

_FIELDS = Coefficients._fields
_LIMITS = (LARGEST_FACTOR, LARGEST_FACTOR, math.inf, _LARGEST_SLOPE, _LARGEST_SLOPE)  # of each of the fields


class Variances(NamedTuple):
    """The range of target variances, where points or directions differ in theirs."""

    smallest: float
    largest: float


class Pair(NamedTuple):
    """A factor of each component's residual: `residual * r_j + gained * gamma_j r_j`.

    `gained` is zero where all components share one variance, and no `gamma_j` exist.
    """

    residual: Any
    gained: Any


class Path(NamedTuple):
    """Coefficients at one time (floats) or one time per query (float64 arrays of shape (B,)).

    With `D_j = alpha^2 s_i + beta^2 s_fj` (Fan 49), component j of the marginal is `N(alpha m_i + beta mu_j, D_j I)`.
    Every quantity multiplies residuals by one of three functions of D_j. Where all points share one variance these
    are numbers. Where they do not, the kernels sum `r_j` and `gamma_j r_j`, and the three are combinations of both:
    `alpha^2 s_i / D_j + beta^2 s_fj / D_j = 1`, so any two of 1, 1/D_j and s_fj/D_j give the third. `gamma_j` is
    `1 / D_j`, or `s_fj / D_j` while `beta^2 s_fj <= alpha^2 s_i` for all j, which keeps the division that
    the third takes well conditioned at both ends of time.

    Attributes:
        alpha, beta, d_alpha, d_beta: the schedule and its time derivatives.
        variance: D, or the source's part `alpha^2 s_i` of it where the points differ in variance;
            `SINGULAR_VARIANCE` where it is zero.
        slope: what the variance of a point is multiplied with in D_j: `beta^2`, or None where all share one.
        gain: `(constant, slope)` with `gamma_j = (constant + slope s_fj) / D_j`, or None.
        inverse: the `Pair` of `1 / D_j`, by which the score multiplies r_j.
        share: the `Pair` of `s_fj / D_j`, for `E[x_f | x, j] = mu_j + beta (s_fj / D_j) r_j` (Fan 21).
        rate: the `Pair` of `(alpha alpha' s_i + beta beta' s_fj) / D_j`, for the velocity (Fan 46). Where D = 0 it is
            `beta' / beta`, which makes the same formula give the finite limit (Fan 9).
        source_gain: the `Pair` of `alpha s_i / D_j`, for `E[x_i | x]` (Fan 21); zero where D = 0, which gives the
            limit `m_i` there (Fan 9).
        singular: whether some D_j = 0, as a bool or (B,) array.
    """

    alpha: Any
    beta: Any
    d_alpha: Any
    d_beta: Any
    variance: Any
    slope: Any
    gain: tuple[Any, Any] | None
    inverse: Pair
    share: Pair
    rate: Pair
    source_gain: Pair
    singular: Any

    @property
    def span(self) -> Any:
        """`beta' - rate.residual beta`: the factor of mu_j in a component's velocity, r_j written out."""
        return self.d_beta - self.rate.residual * self.beta

    def kernel_coefficients(self) -> np.ndarray:
        """(3, 1) or (3, B) float64: alpha, beta and variance, as the backends take them; where the points differ in
        variance (6, 1) or (6, B), with slope and the two numbers of gain below."""
        rows = (self.alpha, self.beta, self.variance)
        if self.gain is not None:
            rows = (*rows, self.slope, *self.gain)
        if isinstance(self.alpha, float):
            return np.array(rows)[:, None]
        return np.array(np.broadcast_arrays(*rows))


def coefficients_at(schedule: Schedule, t: float | np.ndarray) -> Coefficients:
    """What the schedule says at `t` (a float or a float64 array), checked.

    Raises TypeError or ValueError, naming the schedule and the time, unless these are five numbers (for each time) in
    the range that can be computed with; only `d_alpha` may be infinite.
    """
    found = schedule(t)
    if not isinstance(found, tuple) or len(found) != len(_FIELDS):
        size = f" of {len(found)}" if isinstance(found, tuple) else ""
        raise TypeError(
            f"{_named(schedule)} returned a {type(found).__name__}{size}; accepted are Coefficients, {len(_FIELDS)} "
            "numbers for each time"
        )
    alpha, beta, d_alpha, d_beta, product = found
    if type(alpha) is type(beta) is type(d_alpha) is type(d_beta) is type(product) is float:
        large = abs(alpha) <= LARGEST_FACTOR and abs(beta) <= LARGEST_FACTOR
        if not (large and d_alpha == d_alpha and abs(d_beta) <= _LARGEST_SLOPE and abs(product) <= _LARGEST_SLOPE):
            _refuse(schedule, np.array(found), t)
        return found
    arrays = [np.asarray(value) for value in found]
    for name, array in zip(_FIELDS, arrays, strict=True):
        if array.dtype.kind not in "fiu" or array.shape not in ((), np.shape(t)):
            raise TypeError(
                f"{_named(schedule)} returned {name} = {shown(array)} for t = {shown(t)}; accepted is one real number "
                "for each time"
            )
    table = np.array(np.broadcast_arrays(*arrays, t)[:-1], dtype=np.float64)
    if not (np.abs(table.T) <= _LIMITS).all():
        _refuse(schedule, table, t)
    return Coefficients(*(float(row) if isinstance(t, float) else row[...] for row in table))


def _named(schedule: Schedule) -> str:
    return f"schedule {name_of(schedule)!r}"


def _refuse(schedule: Schedule, table: np.ndarray, t: float | np.ndarray) -> None:
    """Raise ValueError for the first coefficient that is out of range."""
    for name, values, limit in zip(_FIELDS, table, _LIMITS, strict=True):
        bad = ~(np.abs(values) <= limit)
        if np.any(bad):
            where = int(np.argmax(bad))
            number, time = float(np.ravel(values)[where]), float(np.ravel(t)[where])
            accepted = f"a finite number of at most {limit:g} in magnitude" if limit < math.inf else "a number"
            raise ValueError(f"{_named(schedule)} has {name} = {number} at t = {time}; accepted is {accepted}")


def _check_smallest(schedule: Schedule, smallest: Any, beta: Any, t: float | np.ndarray) -> None:
    """Raise ValueError where there is no path (alpha = beta = 0), or too narrow a one to compute with.

    Args:
        smallest: the smallest D_j at each time.
    """
    smallest = np.asarray(smallest)
    bad = ~(smallest >= SMALLEST_COMPONENT) & ((smallest != 0.0) | (np.square(beta) == 0.0))
    if not bad.any():
        return
    where = int(np.argmax(bad))
    time, variance = float(np.ravel(t)[where]), float(np.ravel(smallest)[where])
    if variance == 0.0:
        raise ValueError(
            f"{_named(schedule)} has alpha = beta = 0 at t = {time}; accepted is one with a path there, or another time"
        )
    raise ValueError(
        f"{_named(schedule)} leaves a component the variance {variance:g} at t = {time}, alpha^2 source_variance + "
        f"beta^2 variance; accepted is 0, or at least {SMALLEST_COMPONENT:g}"
    )


def path_at(schedule: Schedule, t: float | np.ndarray, source_variance: float, target: float | Variances) -> Path:
    """Evaluate the schedule at `t` (a float or (B,) float64) and combine it with the variances.

    `target` is the variance that all points share, or the range of theirs. Raises what `coefficients_at` does, and
    ValueError at a time with alpha = beta = 0.
    """
    coefficients = coefficients_at(schedule, t)
    alpha, beta, d_alpha, d_beta, alpha_d_alpha = coefficients
    smallest = target.smallest if isinstance(target, Variances) else target
    variance = alpha * alpha * source_variance + beta * beta * smallest
    wide = variance >= SMALLEST_COMPONENT
    if wide is not True and not np.all(wide):
        _check_smallest(schedule, variance, beta, t)
    if isinstance(target, Variances):
        return _pointwise(coefficients, source_variance, target)
    drift = alpha_d_alpha * source_variance + beta * d_beta * target
    if isinstance(variance, float):
        singular = not variance > 0.0
        safe = SINGULAR_VARIANCE if singular else variance
        rate = d_beta / beta if singular else drift / safe
        gain = 0.0 if singular else alpha * source_variance / safe
    else:
        singular = ~(variance > 0.0)
        safe = np.where(singular, SINGULAR_VARIANCE, variance)
        rate = np.where(singular, d_beta / np.where(singular, beta, 1.0), drift / safe)
        gain = np.where(singular, 0.0, alpha * source_variance / safe)
    return Path(
        *(alpha, beta, d_alpha, d_beta, safe, None, None),
        inverse=Pair(1.0 / safe, 0.0),
        share=Pair(target / safe, 0.0),
        rate=Pair(rate, 0.0),
        source_gain=Pair(gain, 0.0),
        singular=singular,
    )


def _pointwise(coefficients: Any, source_variance: float, target: Variances) -> Path:
    """The path where the points differ in variance; see `Path` for the choice of gamma."""
    alpha, beta, d_alpha, d_beta, alpha_d_alpha = coefficients
    where = _where if isinstance(alpha, float) else np.where
    source, slope = alpha * alpha * source_variance, beta * beta
    safe = where(source > 0.0, source, SINGULAR_VARIANCE)
    singular = (source == 0.0) & (target.smallest == 0.0)
    by_share = slope * target.largest <= source  # gamma_j = s_fj / D_j
    one = where(by_share, safe, slope)  # what the third function is divided by: never zero
    # 1/D_j and s_fj/D_j as combinations of 1 and gamma_j
    inverse = Pair(where(by_share, 1.0 / one, 0.0), where(by_share, -slope / one, 1.0))
    share = Pair(where(by_share, 0.0, 1.0 / one), where(by_share, 1.0, -source / one))
    drift, growth = alpha_d_alpha * source_variance, beta * d_beta
    rate = Pair(
        where(by_share, drift, growth) / one,
        where(by_share, growth - drift * slope / one, drift - growth * source / one),
    )
    source_gain = Pair(*(alpha * source_variance * i for i in inverse))
    gain = (where(by_share, 0.0, 1.0), where(by_share, 1.0, 0.0))
    return Path(
        *(alpha, beta, d_alpha, d_beta, safe, slope, gain),
        inverse=inverse,
        share=share,
        rate=rate,
        source_gain=source_gain,
        singular=singular,
    )


def _where(condition: bool, yes: float, no: float) -> float:
    """`np.where` for numbers, which takes a tenth of its time."""
    return yes if condition else no
