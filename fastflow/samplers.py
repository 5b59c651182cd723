"""Samplers: the flow `dx = v(x, t) dt` of a field, followed from one time to another, and random ways with its law.

From t = 0 to t = 1 it carries noise to data, from 1 to 0 data to noise. Methods that walk a given grid of times are
rows of one table, walked by one stepper: Runge-Kutta methods with their Butcher tableaux, and the random ones of
`stochastic`. The adaptive one is SciPy's Dormand-Prince pair.

Times that only a limit can reach. At t = 1 a field without variance has `alpha = 0` and no density, only point
masses: the flow into that time is well defined and ends on a data point, the flow out of it is not. A step into such a
time therefore evaluates nothing there. It freezes the posterior at the step's start, `x = alpha E[x_i] + beta E[x_f]`
with the alpha and beta of the step's end, which follows the flow exactly once one data point holds all the weight
(it is the deterministic DDIM step, and for the linear schedule the Euler step). The same step serves where `alpha'` is
infinite and the source mean is not zero, so that the velocity is unbounded though the flow is not. Path switching needs
no such step: it draws a data point, and its own way there is exact.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _arrays, stochastic
from ._optional import require
from .marginal import around, choose
from .path import path_at
from .schedules import name_of

if TYPE_CHECKING:
    from .field import VelocityField

Callback = Callable[[int, float, np.ndarray], Any]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method.

    Attributes:
        nodes: where in the step each stage is evaluated, from 0 to 1.
        stages: for each stage, the factors of the slopes of the stages before it.
        weights: factor of each slope in the step.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def step(self, run: _Run, x: np.ndarray, t: float, stop: float) -> np.ndarray:
        """From x at t to stop."""
        length = stop - t
        slopes: list[np.ndarray] = []

        def moved(factors: tuple[float, ...]) -> np.ndarray:
            result = x
            for factor, slope in zip(factors, slopes, strict=True):
                if factor:
                    result = result + (length * factor) * slope
            return result

        for node, factors in zip(self.nodes, self.stages, strict=True):
            at = stop if node == 1.0 else t + node * length  # the end itself, not the end to rounding
            slopes.append(run.velocity(moved(factors), at))
        return moved(self.weights)

    def into_limit(self, run: _Run, x: np.ndarray, t: float, stop: float) -> np.ndarray:
        """From x at t to stop, which is only a limit."""
        return run.frozen_step(x, t, stop)


TABLEAUX: dict[str, Tableau] = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": Tableau(
        (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}


class PathSwitching:
    """The memoryless sampler; see `stochastic`."""

    def step(self, run: _Run, x: np.ndarray, t: float, stop: float) -> np.ndarray:
        """From x at t to stop."""
        run.evaluations += run.batch
        return stochastic.follow_path(run.field, x, t, stop, run.rng, run.options.get("label"))

    into_limit = step  # on a path nothing is special there


class EulerMaruyama:
    """The SDE with the noise levels of the run; see `stochastic`. A step without noise is Euler's."""

    def step(self, run: _Run, x: np.ndarray, t: float, stop: float) -> np.ndarray:
        """From x at t to stop."""
        g = run.levels[run.steps]
        if g == 0.0:
            return TABLEAUX["euler"].step(run, x, t, stop)
        run.evaluations += run.batch
        return stochastic.maruyama_step(run.field, x, t, stop, g, run.rng, **run.options)

    def into_limit(self, run: _Run, x: np.ndarray, t: float, stop: float) -> np.ndarray:
        """From x at t to stop, which is only a limit."""
        return run.frozen_step(x, t, stop)


GridMethod = Tableau | PathSwitching | EulerMaruyama

# The methods that walk a grid of times.
STEPS: dict[str, GridMethod] = {
    **TABLEAUX,
    "path_switching": PathSwitching(),
    "sde": EulerMaruyama(),
}

METHODS = (*TABLEAUX, "dopri5", *(name for name in STEPS if name not in TABLEAUX))

# The adaptive method stops short of a time that only a limit can reach, where alpha has fallen to this share of its
# value at the start, and takes the frozen step from there. By then a sample may still hesitate only between data points
# within about 12 * 1e-4 standard deviations of the source of each other (further apart, the log of the ratio of their
# weights exceeds 10 with near certainty), and can be off by no more than that. Measured on 1,000 points in the plane,
# 0.005 apart: 1e-2 leaves 87 of 100 samples between points, 1e-3 lands within 1e-7, 1e-4 exactly; each further tenth
# costs 12 (linear) to 130 (linear_vp) evaluations beside 200 to 500.
_LAST_ALPHA = 1e-4


class Trajectory(NamedTuple):
    """What an integration gives.

    Attributes:
        times: (T,) float64, the time grid.
        final: states at the last time, in the shape of the starting points.
        path: (T, B, *event) states at all times, or None if not kept.
        evaluations: queries of the field, summed over the batch.
    """

    times: np.ndarray
    final: np.ndarray
    path: np.ndarray | None
    evaluations: int


def sample(
    field: VelocityField, num_or_x0: Any, *, return_path: bool = False, **options: Any
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Follow the flow of `field`; see `VelocityField.sample`, which this implements.

    Args:
        field: the field.
        num_or_x0: how many starting points to draw, or the starting points.
        return_path: return all states.
        **options: as for `integrate`.

    Returns:
        The final states, or `(times, path)` with `return_path`.
    """
    result = integrate(field, num_or_x0, keep_path=return_path, **options)
    return (result.times, result.path) if return_path else result.final


def integrate(
    field: VelocityField,
    num_or_x0: Any,
    *,
    steps: Any = 50,
    method: str = "euler",
    t_span: tuple[float, float] | None = None,
    seed: int | np.random.Generator | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    keep_path: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    noise: stochastic.Noise = 1.0,
    label: Any = None,
    guidance: float = 0.0,
) -> Trajectory:
    """Follow the flow of `field` and also tell what it took.

    Arguments and errors are those of `VelocityField.sample`; `keep_path` says whether to keep the states at all times.
    """
    _check_method(method)
    times = time_grid(steps, t_span)
    rtol, atol = _tolerance("rtol", rtol), _tolerance("atol", atol)
    rng = generator("seed", seed)
    if not callable(noise):
        _arrays.real_number("noise", noise, minimum=0.0)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is {type(callback).__name__}; accepted is a function of (step, t, x), or None")
    num = start = None
    if isinstance(num_or_x0, int | np.integer) and not isinstance(num_or_x0, bool):
        num = _draw_count(num_or_x0)
    else:
        start = _given_points(field, num_or_x0)
    only_limit = _only_limit(field, times, method)
    if only_limit[:-1].any():
        raise ValueError(_no_start(field, float(times[np.argmax(only_limit)])))
    levels = stochastic.noise_levels(field, noise, times, bool(only_limit[-1])) if method == "sde" else []
    if label is None and guidance != 0.0:
        raise ValueError("guidance is given without label; accepted is a class to guide towards")
    if method == "path_switching" and guidance != 0.0:
        raise ValueError("guidance is given with path_switching, which follows paths of the data; accepted is 0")
    with _progress(progress, times, method) as show:
        if num is not None:
            start = starting_points(field, num, float(times[0]), rng, label)
        options = {} if label is None else {"label": label, "guidance": guidance}
        run = _Run(field, start, callback, show, options, rng, levels)
        x = start.astype(_arrays.compute_dtype(start.dtype))  # a copy: the caller's memory is left alone
        if method == "dopri5":
            final, path = _adaptive(run, x, times, bool(only_limit[-1]), keep_path, rtol, atol)
        else:
            final, path = _fixed(run, x, times, bool(only_limit[-1]), keep_path, STEPS[method])
    return Trajectory(times, run.result(final), path if path is None else run.result(path), run.evaluations)


def starting_points(
    field: VelocityField, num: int, t: float, rng: np.random.Generator, label: Any = None
) -> np.ndarray:
    """Draw from the marginal p_t: a data point by its mass, then `N(alpha m_i + beta mu_j, D_j)`.

    Args:
        field: the field.
        num: how many points.
        t: the time. Where `beta(t) = 0` this is the source alone and no data point is drawn.
        rng: random numbers: first the noise, then the data points.
        label: the class to draw from, or one for each point; None for all data.

    Returns:
        (num, *event), float32 if the field works on float32 data, else float64.
    """
    noise = rng.standard_normal((num, field._size))
    if field.schedule(t).beta == 0.0:
        field._parts.groups(label, None, None, num, False)  # the label is checked though nothing depends on it
        index = np.zeros(num, dtype=np.int64)
    else:
        index = choose(field, num, rng, label)
    return around(field, index, t, noise).astype(field._dtype).reshape((num, *field.event_shape))


def time_grid(steps: Any, t_span: Any = None) -> np.ndarray:
    """The times of an integration, ends included.

    Args:
        steps: a number of equal steps, at least 1, or the (T,) times themselves, T >= 2, in [0, 1] and strictly
            increasing or strictly decreasing.
        t_span: first and last time for a number of steps; None, the only choice beside a grid of times, is (0, 1).

    Returns:
        (T,) float64.

    Raises:
        TypeError, ValueError: anything else.
    """
    accepted = "a whole number of steps of at least 1, or a 1-D array of at least 2 times"
    if isinstance(steps, int | np.integer) and not isinstance(steps, bool):
        if not 1 <= steps <= _arrays.LARGEST_COUNT:
            accepted = f"{accepted}; at most {_arrays.LARGEST_COUNT:g} of them"
            raise ValueError(f"steps is {_arrays.shown(steps)}; accepted is {accepted}")
        start, stop = _ends((0.0, 1.0) if t_span is None else t_span)
        times = start + (stop - start) * (np.arange(steps + 1) / float(steps))
        times[-1] = stop
        return times
    array = _arrays.real_array("steps", steps)
    if array.ndim != 1 or array.size < 2 or array.dtype.kind == "b":
        found = f"has shape {array.shape}" if array.ndim else f"is {steps!r}"
        raise ValueError(f"steps {found}; accepted is {accepted}")
    if t_span is not None:
        raise ValueError(f"t_span is {t_span!r} beside a grid of times in steps; accepted is one of the two")
    times = array.astype(np.float64)
    inside = (times >= 0.0) & (times <= 1.0)
    if not inside.all():
        index = int(np.argmin(inside))
        raise ValueError(f"steps[{index}] is {times[index]}; times must lie in [0, 1] (0 = source, 1 = data)")
    forward = np.diff(times) * (1.0 if times[-1] > times[0] else -1.0) > 0.0
    if not forward.all():
        index = int(np.argmin(forward))
        raise ValueError(
            f"steps[{index}] is {times[index]} and steps[{index + 1}] is {times[index + 1]}; "
            "times must be strictly increasing or strictly decreasing"
        )
    return times


# Integration --------------------------------------------------------------------------------------------------


class _Run:
    """One integration: the field, and what is counted and told along the way."""

    def __init__(
        self,
        field: VelocityField,
        x: np.ndarray,
        callback: Callback | None,
        show: Callable[[float], None],
        options: dict[str, Any],
        rng: np.random.Generator | None = None,
        levels: Sequence[float] = (),
    ):
        self.field, self.options = field, options
        self.rng, self.levels = rng, levels
        self.dtype = x.dtype
        self.batch = math.prod(x.shape[: x.ndim - len(field.event_shape)])
        self.callback, self.show = callback, show
        self.evaluations = self.steps = 0
        self.time = math.nan

    def velocity(self, x: np.ndarray, t: float) -> np.ndarray:
        self.evaluations += self.batch
        return self.field.velocity(x, t, **self.options)

    def frozen_step(self, x: np.ndarray, t: float, stop: float) -> np.ndarray:
        """From t to stop with the posterior held as it is at t."""
        self.evaluations += self.batch
        means = self.field.evaluate(x, t, ("source_mean", "target_mean"), **self.options)
        end = self.field.schedule(stop)
        return end.alpha * means["source_mean"] + end.beta * means["target_mean"]

    def done(self, x: np.ndarray, t: float) -> None:
        """A step has led to x at t."""
        if self.callback is not None:
            view = x.view()
            view.flags.writeable = False
            self.callback(self.steps, t, view)
        self.steps += 1
        self.time = t
        self.show(t)

    def result(self, x: np.ndarray) -> np.ndarray:
        return x.astype(self.dtype, copy=False)


def _fixed(
    run: _Run, x: np.ndarray, times: np.ndarray, only_limit: bool, keep_path: bool, method: GridMethod
) -> tuple[np.ndarray, np.ndarray | None]:
    """Walk the grid with a method of `STEPS`; the last step is another one if its end is only a limit."""
    path = np.empty((len(times), *x.shape), dtype=x.dtype) if keep_path else None
    if path is not None:
        path[0] = x
    grid = times.tolist()
    for index, (t, stop) in enumerate(itertools.pairwise(grid), start=1):
        step = method.into_limit if only_limit and index == len(grid) - 1 else method.step
        x = step(run, x, t, stop)
        if path is not None:
            path[index] = x
        run.done(x, stop)
    return x, path


def _adaptive(
    run: _Run, x: np.ndarray, times: np.ndarray, only_limit: bool, keep_path: bool, rtol: float, atol: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Dormand-Prince by SciPy, in float64; the way into an end that is only a limit is one frozen step."""
    from scipy.integrate import solve_ivp  # takes longer to import than all of this package

    first, last = float(times[0]), float(times[-1])
    stop = _time_of_last_alpha(run.field, first, last) if only_limit else last
    low, high = min(first, stop), max(first, stop)
    inside = (times >= low) & (times <= high)  # the other times lie in the frozen step
    wanted = times[inside] if keep_path else times[:0]

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        t = min(max(float(t), low), high)  # the sum of a time and a step may pass the end by a rounding error
        return run.velocity(y.reshape(x.shape), t).reshape(-1)

    def accepted(t: float, y: np.ndarray) -> float:
        """An event without a zero: SciPy evaluates events at the start and after each accepted step."""
        if t != first:
            run.done(y.reshape(x.shape), float(t))
        return 1.0

    solution = solve_ivp(
        slope,
        (first, stop),
        x.astype(np.float64).reshape(-1),
        method="RK45",
        t_eval=wanted if stop in wanted else np.append(wanted, stop),
        events=accepted,
        rtol=rtol,
        atol=atol,
    )
    if not solution.success:
        raise RuntimeError(f"dopri5 stopped after t = {run.time}: {solution.message}")
    states = [y.reshape(x.shape) for y in solution.y.T]
    frozen = [run.frozen_step(states[-1], stop, t) for t in times[~inside].tolist()]
    if frozen:
        run.done(frozen[-1], last)
    path = np.stack([x, *states[1 : len(wanted)], *frozen]) if keep_path else None
    return (frozen or states)[-1], path


def _time_of_last_alpha(field: VelocityField, first: float, last: float) -> float:
    """A time between first and last where |alpha| has just not fallen to `_LAST_ALPHA` of its first value."""
    least = _LAST_ALPHA * abs(field.schedule(first).alpha)
    before, after = first, last
    for _ in range(60):  # halvings: more than the bits of a float64
        middle = 0.5 * (before + after)
        if abs(field.schedule(middle).alpha) > least:
            before = middle
        else:
            after = middle
    return before


@contextlib.contextmanager
def _progress(wanted: bool, times: np.ndarray, method: str) -> Iterator[Callable[[float], None]]:
    """A progress bar as a function of the time reached; one that does nothing unless wanted."""
    if not wanted:
        yield lambda t: None
        return
    tqdm = require("tqdm", extra="progress").tqdm
    first, span = float(times[0]), abs(float(times[-1] - times[0]))
    if method in STEPS:
        with tqdm(total=len(times) - 1, desc=method, unit="step") as bar:
            yield lambda t: bar.update(1)
    else:  # the number of steps is not known beforehand
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.3f}/{total:g} of time [{elapsed}<{remaining}]"
        with tqdm(total=span, desc=method, bar_format=form) as bar:
            yield lambda t: bar.update(abs(t - first) - bar.n)


# Checks -------------------------------------------------------------------------------------------------------


def _check_method(method: Any) -> None:
    if not isinstance(method, str):
        raise TypeError(f"method is {type(method).__name__}; accepted is one of {', '.join(METHODS)}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; accepted is one of {', '.join(METHODS)}")


def _tolerance(name: str, value: Any) -> float:
    return _arrays.real_number(name, value, positive=True)


def generator(name: str, seed: Any) -> np.random.Generator:
    """Random numbers from what a caller passed as the argument `name`."""
    if seed is None or isinstance(seed, np.random.Generator):
        return np.random.default_rng(seed)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        accepted = "a whole number of at least 0, a numpy.random.Generator or None"
        raise TypeError(f"{name} is {_arrays.shown(seed)}; accepted is {accepted}")
    if seed < 0:
        raise ValueError(f"{name} is {_arrays.shown(seed)}; accepted is a whole number of at least 0")
    return np.random.default_rng(int(seed))


def _draw_count(num: int | np.integer) -> int:
    if not 0 <= num <= _arrays.LARGEST_COUNT:
        raise ValueError(
            f"num_or_x0 is {_arrays.shown(num)}; accepted is how many points to draw, at least 0 and at most "
            f"{_arrays.LARGEST_COUNT:g}, or starting points"
        )
    return int(num)


def _given_points(field: VelocityField, x0: Any) -> np.ndarray:
    """Checked starting points, in the dtype of the result; not a copy where none is needed."""
    try:
        matrix, batch_shape, dtype = _arrays.query_matrix(x0, field.event_shape, field._size)
    except (TypeError, ValueError) as error:
        raise type(error)(f"num_or_x0 is not a whole number, and not starting points x: {error}") from None
    return matrix.reshape((*batch_shape, *field.event_shape)).astype(dtype, copy=False)


def _ends(t_span: Any) -> tuple[float, float]:
    array = _arrays.real_array("t_span", t_span)
    if array.shape != (2,):
        raise ValueError(f"t_span is {t_span!r}; accepted is a pair (first time, last time)")
    first, last = (float(t) for t in array)
    if not (0.0 <= first <= 1.0 and 0.0 <= last <= 1.0):
        raise ValueError(f"t_span is ({first}, {last}); times must lie in [0, 1] (0 = source, 1 = data)")
    if first == last:
        raise ValueError(f"t_span is ({first}, {last}); the two times must differ")
    return first, last


def _only_limit(field: VelocityField, times: np.ndarray, method: str) -> np.ndarray:
    """Which times a method reaches only as a limit: no variance is left there, or the velocity is unbounded."""
    model = field._model
    path = path_at(field.schedule, times, model.source_variance, model.target)
    moves_by_velocity = method != "path_switching"
    unbounded = ~np.isfinite(path.d_alpha) if moves_by_velocity and model.source_mean is not None else False
    return path.singular | unbounded


def _no_start(field: VelocityField, t: float) -> str:
    if field._model.target == 0.0:
        why, cure = "the distribution has no width, so no flow out of it is defined", "or a field with variance > 0"
    else:
        why, cure = "the velocity is unbounded", "or a field with source_mean 0"
    return (
        f"the flow of schedule {name_of(field.schedule)!r} cannot start from or pass through t = {t:g}, where {why}; "
        f"accepted is a time slightly off it (1e-3 is a good distance), {cure}"
    )
