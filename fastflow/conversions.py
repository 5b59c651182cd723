"""Conversions: one model in other words - another prediction, the other direction of time, another schedule.

Networks are trained to predict different things about the same path `x_t = alpha x_i + beta x_f`, with time running
either way and along different schedules. For a source `x_i ~ N(m_i, s_i I)` these all carry the same information, and
nothing here looks at data: only at `x`, `t` and what was predicted.

    >>> velocity = convert(noise, x, t, given="source_mean", wanted="velocity", schedule="vp")
    >>> w = reverse_time(v)  # for code whose time runs from data to noise
    >>> straight = change_schedule(v, "cosine", "linear")  # the same samples by another path

Predictions. With `e = E[x_i | x]` and `f = E[x_f | x]`,

    x = alpha e + beta f,    velocity = alpha' e + beta' f    (Fan 14, 15; Gao 3.2),    score = (m_i - e) / (alpha s_i),

so any one of velocity, e, f and the score gives the others by solving two linear equations (docs/theory.md, section 6).
Their determinant is the Wronskian `W = alpha beta' - alpha' beta`.

Time runs from 0 (source, noise) to 1 (target, data), here as everywhere, except in what `reverse_time` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, schedules
from .path import coefficients_at
from .schedules import Schedule

__all__ = ["PREDICTIONS", "change_schedule", "convert", "reverse_time"]

PREDICTIONS = ("velocity", "source_mean", "target_mean", "score")
"""The names that `convert` takes; those of the quantities of `VelocityField`."""

VelocityFunction = Callable[[Any, Any], np.ndarray]

_FLOAT64 = np.dtype(np.float64)


class _Path(NamedTuple):
    """A schedule at given times: arrays of the shape of the times, 0-d or (B,)."""

    alpha: np.ndarray
    beta: np.ndarray
    d_alpha: np.ndarray
    d_beta: np.ndarray
    wronskian: np.ndarray
    """`W = alpha beta' - alpha' beta`; infinite where alpha' is."""
    alpha_wronskian: np.ndarray
    """`alpha W`, finite even there."""
    square: np.ndarray
    """`alpha^2 + beta^2`."""
    growth: np.ndarray
    """`alpha alpha' + beta beta'`, half the derivative of the square; finite everywhere."""


def _path(schedule: Schedule, t: float | np.ndarray) -> _Path:
    alpha, beta, d_alpha, d_beta, alpha_d_alpha = coefficients_at(schedule, np.asarray(t))
    nothing = (alpha == 0.0) & (beta == 0.0)
    if nothing.any():
        index = int(np.argmax(nothing))
        raise ValueError(
            f"schedule {schedules.name_of(schedule)!r} has alpha = beta = 0 at {_time(t, index)}; "
            "accepted is one with a path there"
        )
    return _Path(
        alpha,
        beta,
        d_alpha,
        d_beta,
        alpha * d_beta - d_alpha * beta,
        alpha * alpha * d_beta - alpha_d_alpha * beta,
        alpha * alpha + beta * beta,
        alpha_d_alpha + beta * d_beta,
    )


# Predictions --------------------------------------------------------------------------------------------------

_Row = Callable[[_Path, float], tuple[Any, Any, Any, Any]]


class _Rule(NamedTuple):
    """`wanted = (factor of x * x + factor of given * given + factor of m_i * m_i) / divisor`, solved for each pair.

    Solved, and not chained from one elimination, so that each divides by no more than it must: where a row is finite
    it is as well conditioned as the pair itself.
    """

    divisor: str
    """What must not be zero, in words."""
    row: _Row
    """The three factors and the divisor, from the path and `s_i`."""


_W = "alpha beta' - alpha' beta"
_RULES: dict[tuple[str, str], _Rule] = {
    ("velocity", "source_mean"): _Rule(_W, lambda p, s: (p.d_beta, -p.beta, 0.0, p.wronskian)),
    ("velocity", "target_mean"): _Rule(_W, lambda p, s: (-p.d_alpha, p.alpha, 0.0, p.wronskian)),
    ("velocity", "score"): _Rule(f"alpha ({_W})", lambda p, s: (-p.d_beta, p.beta, p.wronskian, p.alpha_wronskian * s)),
    ("source_mean", "velocity"): _Rule("beta", lambda p, s: (p.d_beta, -p.wronskian, 0.0, p.beta)),
    ("source_mean", "target_mean"): _Rule("beta", lambda p, s: (1.0, -p.alpha, 0.0, p.beta)),
    ("source_mean", "score"): _Rule("alpha", lambda p, s: (0.0, -1.0, 1.0, p.alpha * s)),
    ("target_mean", "velocity"): _Rule("alpha", lambda p, s: (p.d_alpha, p.wronskian, 0.0, p.alpha)),
    ("target_mean", "source_mean"): _Rule("alpha", lambda p, s: (1.0, -p.beta, 0.0, p.alpha)),
    ("target_mean", "score"): _Rule("alpha", lambda p, s: (-1.0, p.beta, p.alpha, p.alpha * p.alpha * s)),
    ("score", "velocity"): _Rule("beta", lambda p, s: (p.d_beta, p.alpha_wronskian * s, -p.wronskian, p.beta)),
    ("score", "source_mean"): _Rule("1", lambda p, s: (0.0, -p.alpha * s, 1.0, 1.0)),
    ("score", "target_mean"): _Rule("beta", lambda p, s: (1.0, p.alpha * p.alpha * s, -p.alpha, p.beta)),
}

# What x alone tells, where the row of the pair is not finite: without a data term (beta = 0) x is the source point,
# without a source term (alpha = 0) the data point, and of the source is known what was known before (Fan 8, 9). Where
# W = 0 the velocity is along x. Each entry says where it holds, and is a row as above.
_Condition = Callable[[_Path], np.ndarray]
_FROM_X: dict[str, tuple[tuple[_Condition, _Row], ...]] = {
    "velocity": (
        (lambda p: p.wronskian == 0.0, lambda p, s: (p.growth, 0.0, 0.0, p.square)),
        # An infinite alpha' weighs the vanishing rest of E[x_i | x] - m_i, of which x tells nothing.
        (
            lambda p: (p.alpha == 0.0) & np.isfinite(p.d_alpha),
            lambda p, s: (p.d_beta, 0.0, p.d_alpha * p.beta, p.beta),
        ),
    ),
    "source_mean": (
        (lambda p: p.alpha == 0.0, lambda p, s: (0.0, 0.0, 1.0, 1.0)),
        (lambda p: p.beta == 0.0, lambda p, s: (1.0, 0.0, 0.0, p.alpha)),
    ),
    "target_mean": ((lambda p: p.alpha == 0.0, lambda p, s: (1.0, 0.0, 0.0, p.beta)),),
    "score": ((lambda p: p.beta == 0.0, lambda p, s: (-1.0, 0.0, p.alpha, p.alpha * p.alpha * s)),),
}


def convert(
    value: Any,
    x: Any,
    t: Any,
    *,
    given: str,
    wanted: str,
    schedule: str | Schedule = "linear",
    source_mean: Any = 0.0,
    source_variance: float = 1.0,
) -> np.ndarray:
    """Turn one prediction about the path at x and t into another.

    The names are those of the quantities of `VelocityField`: "velocity" `E[alpha' x_i + beta' x_f | x]`,
    "source_mean" `E[x_i | x]` (the noise prediction), "target_mean" `E[x_f | x]` (the denoiser, the data prediction)
    and "score" `grad log p_t(x)`.

    At the ends of time a prediction that is regular there gives all others that are; the limits are taken. A value
    that x alone determines (with `alpha = 0`: `E[x_i | x] = m_i`, `E[x_f | x] = x / beta`; with `beta = 0`:
    `E[x_i | x] = x / alpha`) is returned where the given prediction says nothing about it.

    Args:
        value: the prediction that is given; the shape of x.
        x: (B, *event) or one event, real and finite.
        t: scalar, (B,) or (B, 1), in [0, 1]. With one time for each query the first axis of x is the batch.
        given: which prediction `value` is; one of `PREDICTIONS`.
        wanted: which prediction to return; one of `PREDICTIONS`.
        schedule: name or `Schedule`; see `fastflow.schedules`.
        source_mean: `m_i`, a scalar or one event. Needed to and from the score, and at `alpha = 0`.
        source_variance: variance `s_i > 0` of the source. Needed to and from the score.

    Returns:
        Array of the shape and dtype of x (float64 for integer x), computed in float64. Never a view of an argument.

    Raises:
        TypeError: an argument is not of real numbers, or a name is not a string.
        ValueError: a shape, value or name that is not accepted; or a time at which the given prediction does not
            determine the one wanted. Those are, for schedules with `beta(0) = 0`, t = 0 from the source mean or score
            to the target mean or velocity, which tell nothing of the data there; for schedules with `alpha(1) = 0`,
            t = 1 to the score; where `alpha'` is infinite (t = 1 of vp and linear_vp), to the velocity from a mean,
            and between velocity and score unless `source_mean` is 0; and where `alpha beta' = alpha' beta` (t = 0 of
            polynomial), from the velocity to the target mean.
    """
    _check_prediction("given", given)
    _check_prediction("wanted", wanted)
    schedule = schedules.get(schedule)
    variance = _arrays.source_variance(source_variance)
    x, dtype, t = _queries(x, t)
    value = _arrays.real_array("value", value)
    if value.shape != x.shape:
        raise ValueError(f"value has shape {value.shape}; accepted is the shape of x, {x.shape}")
    value = _arrays.plain(value, _FLOAT64)
    _arrays.require_finite("value", value)
    mean = _source_mean(source_mean, x.shape, isinstance(t, float))
    if given == wanted:
        return value.astype(dtype)
    factors = _factors(given, wanted, schedule, t, variance, mean is not None)
    of_x, of_value, of_mean, divisor = (_column(factor, x) for factor in factors)
    result = of_x * x + of_value * value
    if mean is not None:
        result = result + of_mean * mean
    return np.asarray(result / divisor, dtype=dtype)


def _factors(
    given: str, wanted: str, schedule: Schedule, t: float | np.ndarray, variance: float, with_mean: bool
) -> np.ndarray:
    """The row of the pair at each time, (4,) or (4, B), from the rule or else from x alone; or ValueError."""
    rule = _RULES[given, wanted]
    with np.errstate(invalid="ignore"):  # what is not a number is replaced or refused below
        path = _path(schedule, t)
        factors = _stacked(rule.row(path, variance), path)
    used = factors if with_mean else factors[[0, 1, 3]]
    defined = np.isfinite(used).all(axis=0) & (factors[3] != 0.0)
    for condition, row in _FROM_X[wanted]:
        chosen = ~defined & condition(path)
        if chosen.any():
            factors = np.where(chosen, _stacked(row(path, variance), path), factors)
            defined |= chosen
    if not defined.all():
        index = int(np.argmin(defined))
        alpha, beta, d_alpha, d_beta = (float(np.atleast_1d(field)[index]) for field in path[:4])
        raise ValueError(
            f"wanted is {wanted!r}, which given {given!r} does not determine at {_time(t, index)} of schedule "
            f"{schedules.name_of(schedule)!r}, where alpha = {alpha:g}, beta = {beta:g}, alpha' = {d_alpha:g} and "
            f"beta' = {d_beta:g}; accepted are times at which {rule.divisor} is not 0 and alpha' is finite"
        )
    return factors


def _stacked(row: tuple[Any, ...], path: _Path) -> np.ndarray:
    return np.stack([np.broadcast_to(factor, path.alpha.shape) for factor in row])


def _check_prediction(name: str, value: Any) -> None:
    accepted = f"accepted is one of {', '.join(PREDICTIONS)}"
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}; {accepted}")
    if value not in PREDICTIONS:
        raise ValueError(f"{name} is {value!r}; {accepted}")


def _source_mean(value: Any, shape: tuple[int, ...], one_time: bool) -> np.ndarray | None:
    """The source mean, shaped as an event, or None where it is zero. With one time x itself may be the event."""
    alone = one_time and np.shape(_arrays.real_array("source_mean", value)) == shape
    event_shape = shape if alone else shape[1:]
    vector = _arrays.event_vector("source_mean", value, event_shape, math.prod(event_shape))
    return None if vector is None else vector.reshape(event_shape)


# Time ---------------------------------------------------------------------------------------------------------


def reverse_time(velocity: VelocityFunction) -> VelocityFunction:
    """The same flow in a time that runs from data to noise (Wu): `w(x, t) = -v(x, 1 - t)`.

    With `s = 1 - t`, a path `x_t` that follows `dx/dt = v(x, t)` from noise at t = 0 to data at t = 1 follows
    `dx/ds = w(x, s)` from data at s = 0 to noise at s = 1. Wu's path `a_s x_0 + b_s x_1`, with data `x_0` and noise
    `x_1`, is the one here with `alpha(t) = b(1 - t)` and `beta(t) = a(1 - t)`. Only velocities change sign: a score or
    a posterior mean at s is the one at `t = 1 - s`.

    Applied twice it gives back the velocity, at times that differ by the rounding of `1 - (1 - t)`.

    Args:
        velocity: a `VelocityField`, or a function of `x`, (B, *event) or one event, and `t`, a float or (B,) float64
            in [0, 1], that returns an array of the shape of x.

    Returns:
        A function of `x` and of a time t that is a scalar, (B,) or (B, 1), in [0, 1]. Its result has the shape of x
        and the dtype that `velocity` gives it. It raises TypeError or ValueError for a time that is not accepted or
        where `velocity` returned another shape, and passes on what `velocity` raises.

    Raises:
        TypeError: `velocity` cannot be called.
    """
    _check_callable(velocity)

    def reversed_velocity(x: Any, t: Any) -> np.ndarray:
        x = _arrays.real_array("x", x)
        return np.negative(_called(velocity, x, 1.0 - _arrays.query_times(t, x.shape[:1])))

    return reversed_velocity


# Schedules ----------------------------------------------------------------------------------------------------

# Two ratios beta / alpha that differ by no more than rounding are one: some units in the last place of each of the
# products compared.
_ROUNDING = 8 * 2.0**-52


def change_schedule(
    velocity: VelocityFunction, schedule_from: str | Schedule, schedule_to: str | Schedule
) -> VelocityFunction:
    """The velocity for `schedule_to` of the same source and data, from the one for `schedule_from`.

    Two paths between the same distributions differ only by a change of time and a scale: where the ratio
    `beta / alpha` of `schedule_from` at a time tau is that of `schedule_to` at t, `x_t` is distributed as `c x_tau`
    with `c = alpha_to(t) / alpha_from(tau) = beta_to(t) / beta_from(tau)`. Differentiating,

        v_to(x, t) = (c'/c) x + c tau' v_from(x / c, tau).

    So the result equals `VelocityField(data, schedule=schedule_to)` where `velocity` is
    `VelocityField(data, schedule=schedule_from)`, for every source mean and every variance, and a trained network can
    be sampled along a schedule that it was not trained on.

    Accuracy is that of tau: a time can be told from 1 only to 1e-16, so without variance, where the velocity grows
    like `1 / alpha`, the error relative to that is about `1e-16 / (1 - tau)`. It matters where `alpha_from` falls
    faster than `alpha_to`: from vp, t = 1 - 1e-6 of linear is tau = 1 - 1e-11.

    Args:
        velocity: a `VelocityField`, or a function of float64 `x`, (B, *event) or one event, and `tau`, a float or (B,)
            float64 in [0, 1], that returns a finite array of the shape of x.
        schedule_from: name or `Schedule` that `velocity` belongs to.
        schedule_to: name or `Schedule` wanted.

    Returns:
        A function of `x`, (B, *event) or one event, and `t`, scalar, (B,) or (B, 1), in [0, 1]. Its result has the
        shape and dtype of x (float64 for integer x). It raises TypeError or ValueError for an x or t that is not
        accepted, and ValueError where `velocity` returned another shape or a value that is not finite, and for times

        - whose ratio `beta / alpha` does not occur in `schedule_from` (the first of linear, from vp or ve, which
          never are pure noise; the last of linear, from ve or optimal_transport, which never are pure data);
        - at which `tau'` is infinite, so that `velocity` does not determine the result: t = 1 of vp and linear_vp,
          from schedules that end with finite `alpha'`; and t = 0 of schedules that start with `beta' > 0`, from
          polynomial, which does not.

        At t = 1 from vp or linear_vp `velocity` must have a source mean of zero: any other makes it unbounded there.

    Raises:
        TypeError: `velocity` cannot be called, or a schedule is neither a name nor a `Schedule`.
        ValueError: a name is unknown.
    """
    _check_callable(velocity)
    old, new = schedules.get(schedule_from), schedules.get(schedule_to)

    def changed_velocity(x: Any, t: Any) -> np.ndarray:
        x, dtype, t = _queries(x, t)
        change = _change(old, new, t)
        scale, rate, old_growth, new_growth = (_column(factor, x) for factor in change[1:])
        moved = x / scale
        velocity_there = _arrays.plain(_called(velocity, moved, change.tau), _FLOAT64)
        _arrays.require_finite("velocity(x, tau)", velocity_there)
        # c'/c is the difference of the two growths; together with the velocity the old one does not cancel near t = 1.
        return np.asarray(new_growth * x + (scale * rate) * (velocity_there - old_growth * moved), dtype=dtype)

    return changed_velocity


class _Change(NamedTuple):
    """From one schedule to another at each time t; arrays of the shape of t."""

    tau: float | np.ndarray
    """The time of the old schedule."""
    scale: np.ndarray
    """`c`, old positions to new ones."""
    rate: np.ndarray
    """`tau' = d tau / d t`."""
    old_growth: np.ndarray
    """Derivative of `log sqrt(alpha^2 + beta^2)` of the old schedule at tau."""
    new_growth: np.ndarray
    """The same of the new schedule at t."""


def _change(old: Schedule, new: Schedule, t: float | np.ndarray) -> _Change:
    """The change of time and scale at t, or ValueError.

    With the angle `theta = atan(beta / alpha)`, `theta' = W / (alpha^2 + beta^2)`, and equal angles give
    `tau' = theta_new' / theta_old'`. The scale is the projection of one pair (alpha, beta) on the other.
    """
    to = _path(new, t)
    tau = _matching_times(old, new, t)
    at = _path(old, tau)
    scale = (at.alpha * to.alpha + at.beta * to.beta) / at.square
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not a number is replaced or refused below
        rate = (to.wronskian * at.square) / (at.wronskian * to.square)
        # Where both are infinite, alpha W are finite, and alpha_old / alpha_new is 1 / c.
        limit = (to.alpha_wronskian * at.square) / (at.alpha_wronskian * to.square * scale)
    rate = np.where(np.isinf(at.wronskian) & np.isinf(to.wronskian), limit, rate)
    rate = np.where(to.wronskian == 0.0, 0.0, rate)  # the angle stands still, and the velocity is along x
    if not np.isfinite(rate).all():
        index = int(np.argmin(np.isfinite(rate)))
        raise ValueError(
            f"{_time(t, index)}: schedule_to {new.name!r} turns infinitely fast there beside schedule_from "
            f"{old.name!r} at its time {np.atleast_1d(tau)[index]:g}, so that the velocity does not determine the new "
            "one; accepted are times next to it"
        )
    return _Change(tau, scale, rate, at.growth / at.square, to.growth / to.square)


def _matching_times(old: Schedule, new: Schedule, t: float | np.ndarray) -> float | np.ndarray:
    """The times of `old` at which its `beta / alpha` is that of `new` at t; shaped as t."""
    times, inverse = np.unique(t, return_inverse=True)  # a batch often shares its time
    taus = [_matching_time(old, new, time) for time in times.tolist()]
    return taus[0] if isinstance(t, float) else np.array(taus, dtype=np.float64)[inverse]


def _matching_time(old: Schedule, new: Schedule, t: float) -> float:
    """tau with `alpha_old(tau) beta_new(t) = beta_old(tau) alpha_new(t)`.

    The difference of these products is accurate relative to either at both ends of time, where the angle or the ratio
    is not. If several tau fit, each is right.
    """
    from scipy.optimize import brentq  # takes longer to import than all of this package

    alpha, beta, *_ = new(t)

    def gap(tau: float) -> float:
        at = old(tau)
        return at.alpha * beta - at.beta * alpha

    first, last = old(0.0), old(1.0)
    for tau, end in ((0.0, first), (1.0, last)):
        if abs(gap(tau)) <= _ROUNDING * (abs(end.alpha * beta) + abs(end.beta * alpha)):
            return tau
    if (gap(0.0) > 0.0) == (gap(1.0) > 0.0):
        raise ValueError(
            f"t is {t}, where schedule_to {new.name!r} has alpha = {alpha:g} and beta = {beta:g}; accepted are times "
            f"whose ratio beta / alpha occurs in schedule_from {old.name!r}, which goes from {first.beta:g} / "
            f"{first.alpha:g} to {last.beta:g} / {last.alpha:g}"
        )
    tau = brentq(gap, 0.0, 1.0, xtol=1e-300, rtol=4 * 2.0**-52, maxiter=2000)
    # Never onto an end by rounding, where alpha or beta would be zero that are not.
    return min(max(tau, math.nextafter(0.0, 1.0)), math.nextafter(1.0, 0.0))


# Shared -------------------------------------------------------------------------------------------------------


def _queries(x: Any, t: Any) -> tuple[np.ndarray, np.dtype, float | np.ndarray]:
    """Checked x in float64, the dtype of the result, and checked times. The first axis of x is the batch, if any."""
    x = _arrays.real_array("x", x)
    matrix, _, dtype = _arrays.query_matrix(x, x.shape[1:], math.prod(x.shape[1:]))
    return matrix.reshape(x.shape).astype(np.float64, copy=False), dtype, _arrays.query_times(t, x.shape[:1])


def _column(factor: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A factor for all of x, or one for each of its rows, shaped to multiply x."""
    return np.reshape(factor, (-1,) + (1,) * (x.ndim - 1)) if np.ndim(factor) else factor


def _called(velocity: VelocityFunction, x: np.ndarray, t: float | np.ndarray) -> np.ndarray:
    result = _arrays.real_array("velocity(x, t)", velocity(x, t))
    if result.shape != x.shape:
        raise ValueError(f"velocity(x, t) has shape {result.shape}; accepted is the shape of x, {x.shape}")
    return result


def _check_callable(velocity: Any) -> None:
    if not callable(velocity):
        raise TypeError(
            f"velocity is {velocity!r} of type {type(velocity).__name__}; "
            "accepted is a VelocityField or a function of (x, t)"
        )


def _time(t: float | np.ndarray, index: int) -> str:
    """The time in a message."""
    return f"t = {t}" if isinstance(t, float) else f"t[{index}] = {t[index]}"
