"""Schedules: the coefficients of the path ``x_t = alpha(t) x_i + beta(t) x_f``.

Time runs from ``t = 0`` (source, noise) to ``t = 1`` (target, data); ``alpha`` multiplies the
source point ``x_i`` and ``beta`` the data point ``x_f`` (Fan 1, Gao 1.1). A schedule is a small
immutable object; calling it with a time returns its :class:`Coefficients`::

    >>> Linear()(0.25)
    Coefficients(alpha=0.75, beta=0.25, d_alpha=-1.0, d_beta=1.0, alpha_d_alpha=-0.75)
    >>> get("vp") == VP(beta_min=0.1, beta_max=20.0)
    True

Accuracy. As ``t -> 1`` everything that is computed from a schedule is divided by powers of
``alpha``, so ``alpha`` must keep its *relative* accuracy there. Every named schedule is therefore
written in ``s = 1 - t``, which floating point gives exactly for ``1/2 <= t <= 1``, and is exact at
both ends of time where mathematics gives 0 or 1. Elsewhere coefficients are right to a few units in
the last place (times ``1 + T/2`` for :class:`VP`, whose exponent ``T`` is itself rounded).

Scalars and arrays. A scalar time gives Python floats, an array gives float64 arrays of the same
shape. Both run the same formula, with the same elementary functions (those of :mod:`math`, mapped
over the elements of an array), so that they agree bit for bit, and an evaluation does not depend
on how a batch of times is split.

A schedule does not check that ``t`` lies in [0, 1]; its callers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arrays import shown

__all__ = [
    "VE",
    "VP",
    "Coefficients",
    "Cosine",
    "Custom",
    "Linear",
    "LinearVP",
    "OptimalTransport",
    "Polynomial",
    "Schedule",
    "get",
    "names",
]

FloatArray = NDArray[np.float64]


class Coefficients(NamedTuple):
    """What a schedule says about one time, or about each time of an array.

    Every field is a Python float (scalar ``t``) or a float64 array of the shape of ``t``. Time has
    no unit, so all fields are plain numbers: factors of positions and of velocities.
    """

    alpha: float | FloatArray
    """Factor of the source point."""
    beta: float | FloatArray
    """Factor of the data point."""
    d_alpha: float | FloatArray
    """Time derivative of ``alpha``; infinite at ``t = 1`` for :class:`VP` and :class:`LinearVP`."""
    d_beta: float | FloatArray
    """Time derivative of ``beta``."""
    alpha_d_alpha: float | FloatArray
    """``alpha * d_alpha``, half the derivative of ``alpha**2``: finite even where ``d_alpha`` is
    infinite, and then its limit. It is what the velocity of a smoothed component needs (Fan 46)."""


# --- elementary functions, for a float and for an array ----------------------------------------


class _Functions(NamedTuple):
    """The functions that formulas may use, so that one formula serves floats and arrays."""

    sqrt: Callable[[Any], Any]
    sin: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    expm1: Callable[[Any], Any]
    log: Callable[[Any], Any]
    pow: Callable[[Any, Any], Any]
    divide: Callable[[Any, Any], Any]


def _log(x: float) -> float:
    """``log`` with its limit at 0, where ``math.log`` raises."""
    return math.log(x) if x != 0.0 else -math.inf


def _divide(a: float, b: float) -> float:
    """``a / b`` with IEEE division by (positive) zero, where Python raises."""
    return a / b if b != 0.0 else a * math.inf


def _mapped(function: Callable[..., float], num_args: int) -> Callable[..., FloatArray]:
    """``function`` applied to each element.

    NumPy's own loops are faster, but differ from ``math`` in the last bits, by machine and version.
    A time costs about 0.1 microseconds this way, little beside the evaluation that needs it.
    """
    ufunc = np.frompyfunc(function, num_args, 1)

    def apply(*args: Any) -> FloatArray:
        return np.asarray(ufunc(*args), dtype=np.float64)

    return apply


_SCALAR = _Functions(math.sqrt, math.sin, math.exp, math.expm1, _log, math.pow, _divide)
# Square root and division are correctly rounded everywhere, so NumPy's are the same functions.
_ARRAY = _Functions(
    np.sqrt,
    _mapped(math.sin, 1),
    _mapped(math.exp, 1),
    _mapped(math.expm1, 1),
    _mapped(_log, 1),
    _mapped(math.pow, 2),
    np.divide,
)

# NamedTuple's own constructor takes twice as long, which counts in the smallest evaluations.
_new_tuple = tuple.__new__


# --- the base class ----------------------------------------------------------------------------


class Schedule:
    """Base class of all schedules: immutable, hashable, compared by parameters.

    ``schedule(t)`` returns the :class:`Coefficients` at ``t``. To add a schedule of your own use
    :class:`Custom`.
    """

    name: str
    """Short name; for the named schedules the one that :func:`get` accepts."""

    def __call__(self, t: float | ArrayLike) -> Coefficients:
        """Coefficients at time ``t``.

        Args:
            t: a real number, or an array of them of any shape.

        Returns:
            Python floats for a number, float64 arrays of the shape of ``t`` (0-d included) for an
            array.

        Raises:
            TypeError: ``t`` is neither a real number nor an array of real numbers.
        """
        if type(t) is float:  # first and alone: this line is on the path of the smallest calls
            return _new_tuple(Coefficients, self._five(self._formula(t, 1.0 - t, _SCALAR)))
        if isinstance(t, Real):
            return self(float(t))
        times = np.asarray(t)
        if times.dtype.kind not in "fiu":
            raise TypeError(
                f"t must be a real number or an array of real numbers, not {type(t).__name__} of dtype {times.dtype}"
            )
        times = times.astype(np.float64, copy=False)
        out = np.empty((len(Coefficients._fields), *times.shape))
        with np.errstate(divide="ignore"):  # an infinite d_alpha is meant
            for i, value in enumerate(self._five(self._formula(times, 1.0 - times, _ARRAY))):
                try:
                    out[i, ...] = value  # fills in constants, and never hands out an alias of t
                except (TypeError, ValueError) as error:
                    name = Coefficients._fields[i]
                    raise TypeError(
                        f"schedule {type(self).__name__} gives a {name} that is no real number for each time: {error}"
                    ) from None
        return Coefficients(*(out[i, ...] for i in range(len(out))))

    def _five(self, values: Any) -> tuple[Any, ...]:
        """What `_formula` returned, if it has the right length."""
        if type(values) is tuple and len(values) == 5:
            return values
        found = f"{len(values)} values" if isinstance(values, tuple) else f"a {type(values).__name__}"
        raise TypeError(
            f"schedule {type(self).__name__} gives {found}; accepted is a tuple of {', '.join(Coefficients._fields)}"
        )

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        """The five coefficients at ``t``, given ``s = 1 - t`` and elementary functions ``m``.

        ``t`` and ``s`` are both floats or both float64 arrays; constants may stay scalars.
        ``0.0 - x`` in place of ``-x`` keeps a minus off the zeros.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define its coefficients")


# --- validation --------------------------------------------------------------------------------


def _real(owner: str, argument: str, value: object, low: float, high: float, accepted: str) -> float:
    """``value`` as a float in [low, high], or an error that names the argument."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{owner}: {argument} must be {accepted}, not {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not low <= number <= high:  # also refuses NaN
        raise ValueError(f"{owner}: {argument} must be {accepted}, not {shown(value)}")
    return number


# Bounds of the positive parameters: far outside any use, and inside them neither a square nor a
# ratio of two of them overflows or underflows.
_TINY, _HUGE = 1e-150, 1e150
_POSITIVE = f"a positive finite number (between {_TINY:g} and {_HUGE:g})"


# --- the named schedules -----------------------------------------------------------------------


@dataclass(frozen=True)
class Linear(Schedule):
    """Straight paths: ``alpha = 1 - t``, ``beta = t`` (Gao 4.1, Fan 38); the default."""

    name = "linear"

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        return s, t, -1.0, 1.0, t - 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Constant speed along a quarter circle: ``alpha = cos(pi t / 2)``, ``beta = sin(pi t / 2)``.

    Variance preserving, ``alpha**2 + beta**2 = 1``. The cosine is computed as
    ``sin(pi (1 - t) / 2)``, which is exactly 0 at ``t = 1``.
    """

    name = "cosine"

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        half_pi = math.pi / 2
        alpha = m.sin(half_pi * s)
        beta = m.sin(half_pi * t)
        d_alpha = 0.0 - half_pi * beta
        return alpha, beta, d_alpha, half_pi * alpha, alpha * d_alpha + 0.0


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Power of time: ``alpha = 1 - t**n``, ``beta = t**n`` with real ``n >= 1``.

    :class:`Linear` with its time reparametrised; ``n = 1`` is :class:`Linear`. ``alpha`` is
    computed as ``-expm1(n log t)``.

    Args:
        n: the exponent. Below 1 the derivative ``n t**(n - 1)``, and with it every velocity, is
            infinite at ``t = 0``; such exponents are refused.
    """

    name = "polynomial"

    n: float = 2.0

    def __post_init__(self) -> None:
        accepted = (
            "a finite number >= 1 (below 1 the derivative n t**(n - 1), and with it the velocity, is infinite at t = 0)"
        )
        n = _real("Polynomial", "n", self.n, 1.0, _HUGE, accepted)
        object.__setattr__(self, "n", n)

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        n = self.n
        alpha = 0.0 - m.expm1(n * m.log(t))
        d_beta = n * m.pow(t, n - 1.0)
        d_alpha = 0.0 - d_beta
        return alpha, m.pow(t, n), d_alpha, d_beta, alpha * d_alpha + 0.0


@dataclass(frozen=True)
class LinearVP(Schedule):
    """Variance preserving with linear data factor: ``alpha = sqrt(1 - t**2)``, ``beta = t``.

    ``alpha' = -t / alpha`` is ``-inf`` at ``t = 1``; ``alpha alpha' = -t`` is finite everywhere.
    ``alpha`` is computed as ``sqrt((1 - t)(1 + t))``.
    """

    name = "linear_vp"

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        alpha = m.sqrt(s * (1.0 + t))
        alpha_d_alpha = 0.0 - t
        return alpha, t, m.divide(alpha_d_alpha, alpha), 1.0, alpha_d_alpha


@dataclass(frozen=True)
class VP(Schedule):
    """Variance-preserving diffusion with a linear noise rate (Song et al. 2021).

    With diffusion time ``s = 1 - t`` and noise rate ``b(s) = beta_min + s (beta_max - beta_min)``::

        T     = s**2 (beta_max - beta_min) / 2 + s beta_min          (the integral of b)
        beta  = exp(-T / 2),           beta' = b beta / 2
        alpha = sqrt(1 - exp(-T)),     alpha alpha' = -b beta**2 / 2

    ``alpha**2 + beta**2 = 1``. At ``t = 1``, ``alpha = 0`` and ``alpha'`` is ``-inf``. At ``t = 0``
    ``beta`` is small but not 0 (0.0066 for the defaults): a sampler that starts from pure noise
    there makes that small error.

    Args:
        beta_min: noise rate at the data, positive.
        beta_max: noise rate at the noise end, at least ``beta_min``.
    """

    name = "vp"

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        low = _real("VP", "beta_min", self.beta_min, _TINY, _HUGE, _POSITIVE)
        high = _real("VP", "beta_max", self.beta_max, _TINY, _HUGE, _POSITIVE)
        if low > high:
            raise ValueError(f"VP: beta_min must not exceed beta_max, but beta_min={low!r} and beta_max={high!r}")
        object.__setattr__(self, "beta_min", low)
        object.__setattr__(self, "beta_max", high)

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        low = self.beta_min
        span = self.beta_max - low
        total = s * (low + s * (0.5 * span))
        half_rate = 0.5 * (low + s * span)
        beta = m.exp(-0.5 * total)
        alpha = m.sqrt(0.0 - m.expm1(-total))
        d_beta = half_rate * beta
        alpha_d_alpha = 0.0 - d_beta * beta
        return alpha, beta, m.divide(alpha_d_alpha, alpha), d_beta, alpha_d_alpha


@dataclass(frozen=True)
class VE(Schedule):
    """Variance-exploding diffusion (Song et al. 2021): ``beta = 1``, log-linear noise level.

    ``alpha = sigma_min**t * sigma_max**(1 - t)``, so ``alpha' = alpha log(sigma_min / sigma_max)``.
    The source is the unit noise that ``alpha`` scales. At ``t = 0``, ``x_0 = sigma_max x_i + x_f``:
    sampling starts from noise of standard deviation ``sigma_max``. At ``t = 1`` noise of standard
    deviation ``sigma_min`` is left.

    Args:
        sigma_min: noise level (a standard deviation) at the data end, positive.
        sigma_max: noise level at the noise end, above ``sigma_min``.
    """

    name = "ve"

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        low = _real("VE", "sigma_min", self.sigma_min, _TINY, _HUGE, _POSITIVE)
        high = _real("VE", "sigma_max", self.sigma_max, _TINY, _HUGE, _POSITIVE)
        if low >= high:
            raise ValueError(f"VE: sigma_min must be less than sigma_max, but sigma_min={low!r} and sigma_max={high!r}")
        object.__setattr__(self, "sigma_min", low)
        object.__setattr__(self, "sigma_max", high)

    @cached_property
    def _log_ratio(self) -> float:
        """``log(sigma_min / sigma_max)``, by ``log1p`` where the ratio is near 1."""
        low, high = self.sigma_min, self.sigma_max
        return math.log1p((low - high) / high) if 2.0 * low > high else math.log(low / high)

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        # Two powers, not the exponential of a weighted mean of logarithms: exact at both ends.
        alpha = m.pow(self.sigma_min, t) * m.pow(self.sigma_max, s)
        d_alpha = alpha * self._log_ratio
        return alpha, 1.0, d_alpha, 0.0, alpha * d_alpha


@dataclass(frozen=True)
class OptimalTransport(Schedule):
    """Conditional optimal-transport path (Lipman et al. 2023; Khungurn, eq. 6).

    ``alpha = 1 - (1 - sigma_min) t``, ``beta = t``: straight paths that stop at noise of standard
    deviation ``sigma_min`` around each data point, so nothing is singular at ``t = 1``. Computed as
    ``alpha = (1 - t) + sigma_min t``, which is exactly ``sigma_min`` there.

    Args:
        sigma_min: noise left at ``t = 1`` (a standard deviation, in units of the source's), from 0
            (which is :class:`Linear`) to 1.
    """

    name = "optimal_transport"

    sigma_min: float = 1e-4

    def __post_init__(self) -> None:
        accepted = "a number between 0 and 1"
        value = _real("OptimalTransport", "sigma_min", self.sigma_min, 0.0, 1.0, accepted)
        object.__setattr__(self, "sigma_min", value)

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        alpha = s + self.sigma_min * t
        d_alpha = self.sigma_min - 1.0
        return alpha, t, d_alpha, 1.0, alpha * d_alpha + 0.0


# --- user-defined schedules --------------------------------------------------------------------

# Step of the complex-step derivative f'(t) = Im f(t + ih) / h. There is no subtraction, hence no
# cancellation, so h may be as small as we like: at 8e-31 the truncation error, of relative size
# h**2, is nothing even for very steep functions, while h f' stays far from underflow, even in
# single precision. A power of two makes the division exact.
_STEP = 2.0**-100

# A complex-step slope above this, at a point where the function itself is 0, may come from a branch
# point such as that of sqrt(1 - t**2) at t = 1 (slope 1/sqrt(h), about 1e15): it is infinite if it
# falls with a longer step.
_STEEP = 1e6
_LONG_STEP = 2.0**-60

# Where complex-step derivatives are compared with difference quotients: no round numbers, since
# pieces of a piecewise schedule meet at those.
_PROBES = (0.2113, 0.4871, 0.8317)

RealFunction = Callable[[Any], Any]


@dataclass(frozen=True, repr=False)
class Custom(Schedule):
    """A schedule given by functions of time.

    The functions are called with one Python number at a time, also for an array of times. So
    functions written for a scalar and functions written for arrays both serve; each must return one
    number. For large arrays of times a named schedule is much faster.

    A derivative that is not given is taken by the complex step ``Im f(t + ih) / h``, which has no
    truncation error: it is as accurate as the chain rule in floating point. For that the function
    is called with a *complex* number and must be analytic: made of arithmetic and of NumPy's (or
    cmath's) functions, without ``abs``, comparisons, ``math``, or conversions to float. A function
    that cannot do this is refused when the schedule is made; give its derivative then. (The check
    compares with difference quotients at three times.)

    ``alpha`` and ``beta`` must be finite on [0, 1], for a field at most 1e10 in magnitude, and never
    both zero. Negative values are accepted: only the sign of
    the source's or the data's contribution turns. ``d_alpha`` may be infinite where ``alpha`` is
    exactly 0 (as for ``alpha = sqrt(1 - t**2)`` at ``t = 1``) if ``alpha**2`` is smooth there;
    ``alpha_d_alpha`` is then taken at the neighbouring floating-point time, inwards. As ``t -> 1``
    results are only as accurate as ``alpha``: prefer ``sqrt((1 - t) * (1 + t))`` to
    ``sqrt(1 - t**2)``.

    Equality and hash are those of the functions and the name; pickling works as far as the
    functions can be pickled (module-level functions can, lambdas cannot).

    Args:
        alpha: factor of the source, a function of ``t`` in [0, 1].
        beta: factor of the data, likewise.
        d_alpha: time derivative of ``alpha``, or None for the complex step.
        d_beta: time derivative of ``beta``, or None for the complex step.
        name: a name for messages.

    Raises:
        TypeError: an argument is not a function, or a function does not accept complex numbers
            and its derivative is not given.
        ValueError: a function returned something other than one finite number, or does not carry
            the imaginary part. Both can also be raised later, for the time at which they happen.
    """

    alpha: RealFunction
    beta: RealFunction
    d_alpha: RealFunction | None = None
    d_beta: RealFunction | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"Custom: name must be a string, not {self.name!r}")
        for label in ("alpha", "beta", "d_alpha", "d_beta"):
            function = getattr(self, label)
            optional = label.startswith("d_")
            if not callable(function) and not (optional and function is None):
                accepted = "a function of t or None" if optional else "a function of t"
                raise TypeError(f"Custom: {label} must be {accepted}, not {function!r}")
        for label in ("alpha", "beta"):
            if getattr(self, "d_" + label) is None:
                self._check_complex_step(label)

    def __repr__(self) -> str:
        parts = []
        for label in ("alpha", "beta", "d_alpha", "d_beta"):
            function = getattr(self, label)
            parts.append(f"{label}={getattr(function, '__qualname__', repr(function))}")
        return f"Custom({', '.join(parts)}, name={self.name!r})"

    def _formula(self, t: Any, s: Any, m: _Functions) -> tuple[Any, ...]:
        if isinstance(t, float):
            return self._at(t)
        rows = [self._at(time) for time in t.ravel().tolist()]
        columns = np.array(rows, dtype=np.float64).reshape(-1, len(Coefficients._fields)).T
        return tuple(column.reshape(t.shape) for column in columns)

    def _at(self, t: float) -> tuple[float, ...]:
        alpha, d_alpha = self._value_and_slope("alpha", t)
        beta, d_beta = self._value_and_slope("beta", t)
        if not math.isfinite(d_beta):
            raise self._not_finite("d_beta", t, d_beta)
        alpha_d_alpha = alpha * d_alpha
        if not math.isfinite(alpha_d_alpha):
            if alpha != 0.0 or math.isnan(d_alpha):
                raise self._not_finite("d_alpha", t, d_alpha)
            inner = math.nextafter(t, 0.5)
            value, slope = self._value_and_slope("alpha", inner)
            alpha_d_alpha = value * slope
            if not math.isfinite(alpha_d_alpha):
                raise self._not_finite("d_alpha", inner, slope)
        return alpha, beta, d_alpha, d_beta, alpha_d_alpha

    def _value_and_slope(self, label: str, t: float) -> tuple[float, float]:
        """``alpha`` or ``beta`` and its derivative at ``t``; the value is finite."""
        value = self._call(label, t)
        if not math.isfinite(value):
            raise self._not_finite(label, t, value)
        if getattr(self, "d_" + label) is not None:
            return value, self._call("d_" + label, t)
        slope = self._complex_step(label, t)
        if value == 0.0 and abs(slope) > _STEEP and abs(self._complex_step(label, t, _LONG_STEP)) < 0.5 * abs(slope):
            slope = math.copysign(math.inf, slope)
        return value, slope

    def _call(self, label: str, t: float) -> float:
        """The function of that label at the real time ``t``, as a float."""
        value = getattr(self, label)(t)
        if type(value) is float:
            return value
        return float(self._one_number(label, t, value, "fiu"))

    def _complex_step(self, label: str, t: float, step: float = _STEP) -> float:
        z = complex(t, step)
        try:
            value = getattr(self, label)(z)
        except TypeError as error:
            raise TypeError(
                f"{self._where(label, z)} failed ({error}). Without d_{label} the derivative is "
                f"taken by calling {label} with complex numbers; make it accept them (NumPy "
                f"functions do, those of math do not), or give d_{label}"
            ) from error
        return complex(self._one_number(label, z, value, "fiuc")).imag / step

    def _check_complex_step(self, label: str) -> None:
        """Refuse a function through which the imaginary part does not pass."""
        for t in _PROBES:
            value, slope = self._value_and_slope(label, t)
            coarse, fine = ((self._call(label, t + h) - self._call(label, t - h)) / (2.0 * h) for h in (1e-4, 5e-5))
            # Where the two quotients disagree (steep or noisy functions), so much is forgiven.
            allowed = 1e-3 * (abs(value) + abs(fine)) + 10.0 * abs(coarse - fine)
            if not abs(slope - fine) <= allowed:
                raise ValueError(
                    f"{self._where(label, t)}: the complex-step derivative is {slope:.6g}, but the "
                    f"slope of the function is {fine:.6g}. Part of {label} loses the imaginary "
                    f"part of t (abs, real and conversions to float do); give d_{label}"
                )

    def _one_number(self, label: str, t: complex, value: object, kinds: str) -> Any:
        array = np.asarray(value)
        if array.shape != ():
            raise ValueError(
                f"{self._where(label, t)} returned an array of shape {array.shape}; functions are "
                f"called with one number and must return one number"
            )
        if array.dtype.kind not in kinds:
            raise TypeError(
                f"{self._where(label, t)} returned {value!r} of type {type(value).__name__}; accepted is a real number"
            )
        return array[()]

    def _not_finite(self, label: str, t: float, value: float) -> ValueError:
        accepted = "a finite number for every t in [0, 1]"
        if label == "d_alpha":
            accepted += ", or an infinite one where alpha is exactly 0 and alpha * d_alpha tends to a finite limit"
        return ValueError(f"{self._where(label, t)} is {value!r}; accepted is {accepted}")

    def _where(self, label: str, t: complex) -> str:
        return f"Custom schedule {self.name!r}: {label}({t!r})"


def name_of(schedule: Schedule) -> str:
    """What messages call a schedule: its name, or that of its class where the class gives none."""
    return getattr(schedule, "name", type(schedule).__name__)


# --- by name -----------------------------------------------------------------------------------

# Schedules are immutable, so one instance of each can be shared.
_REGISTRY: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Linear(),
        Cosine(),
        Polynomial(),
        LinearVP(),
        VP(),
        VE(),
        OptimalTransport(),
    )
}


def names() -> tuple[str, ...]:
    """The names that :func:`get` accepts."""
    return tuple(_REGISTRY)


def get(schedule: str | Schedule) -> Schedule:
    """The schedule of that name, with its default parameters; a schedule is returned as it is.

    Raises:
        ValueError: the name is unknown.
        TypeError: the argument is neither a string nor a schedule.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str):
        try:
            return _REGISTRY[schedule]
        except KeyError:
            known = ", ".join(repr(name) for name in _REGISTRY)
            message = f"unknown schedule {schedule!r}; known names are {known}"
            raise ValueError(message) from None
    raise TypeError(
        f"schedule must be a name or a Schedule instance, not {schedule!r} of type {type(schedule).__name__}"
    )
