"""Training: exact regression targets for whole batches, and the loss that remains when they are learned.

Flow matching regresses a network on the conditional velocity of the path that x was drawn from, whose mean given x is
the velocity of the field. Regressing on that mean itself, or on a mean over some of the data, has the same minimiser
and less noise (docs/theory.md, Minibatch targets).

Targets over a subset. Let j be the point that x was drawn from, and A a set of M points that holds j. The target

    T(x, A) = sum_{k in A} w_k v_k(x) / sum_{k in A} w_k

is `E[v_s | x, A]`, and so has the mean v(x) given x, if `P(A | j)` is the same for all j in A: then the posterior of
"which member of A gave x" is the posterior restricted to A. That holds whenever the rule that makes A from j knows no
more of the points than their indices and treats these alike, for exchanging two members of A then changes nothing.
Forcing j into a uniformly drawn set is such a rule; choosing by distance or mass is not, and keeping x with a j that
did not give it is none either.

It says nothing of other queries, so they may share their points: M are drawn once for all, the last is a spare, and
each query sees the first M - 1 and its own point, or the spare where its own is among them already. Each target has the
law above, M different points exactly; the targets of a batch are correlated, which a mean over the batch does not mind
in its expectation. One kernel call serves the shared points, and the single others are merged with it (Fan 22-26).
The set of all points that a batch was drawn from, padded to M, would serve too with equal masses, when the others are
drawn by index alone; with unequal ones their law favours the heavy points, `P(A | j)` depends on j, and the targets are
biased.

What remains. `E |u - v_s|^2 = E |u - v|^2 + E tr Cov(v_s | x_t)` for any u (Zhang 7, Khungurn Thm 3): the second term,
the mean of the velocity variance (Wu 3), is what a perfect network still shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _arrays, samplers
from .marginal import around, choose, own_variances
from .moments import Moments
from .path import Variances
from .schedules import name_of

if TYPE_CHECKING:
    from .backends import Points, Want
    from .field import Queries, VelocityField
    from .parts import Group, Part
    from .path import Path

TARGETS = ("velocity", "target_mean", "source_mean", "score")
"""The quantities that can be targets: those that are posterior means, so that a subset leaves them unbiased."""


class TrainingBatch(NamedTuple):
    """Draws from the path and what to regress on.

    Attributes:
        x: (B, *event), `x_t = alpha x_i + beta x_f`.
        t: (B,) times.
        target: (B, *event), of the dtype of x.
        index: (B,) int64, the data point that each x was drawn from.
    """

    x: np.ndarray
    t: np.ndarray
    target: np.ndarray
    index: np.ndarray


class LossFloor(NamedTuple):
    """The irreducible loss, estimated.

    Attributes:
        value: the estimate, a float, or (T,) for T times.
        standard_error: its standard error, likewise.
        num_samples: draws that went into each value.
    """

    value: float | np.ndarray
    standard_error: float | np.ndarray
    num_samples: int


# Targets ------------------------------------------------------------------------------------------------------


def targets(
    field: VelocityField,
    x: Any,
    t: Any,
    *,
    num_subset: int | None = None,
    index: Any = None,
    rng: int | np.random.Generator | None = None,
    label: Any = None,
    quantity: str = "velocity",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Regression targets; see `VelocityField.targets`, which this implements."""
    _check_quantity(quantity)
    if num_subset is None:
        return field._evaluate(x, t, (quantity,), label=label, out=out)[quantity]
    num_subset = _count("num_subset", num_subset, 1, field.num_points)
    q = field._queries(x, t)
    if index is None:
        raise ValueError("num_subset is given without index; accepted with it are the points that gave x, (B,)")
    places = _arrays.whole_numbers("index", index, q.batch_shape).reshape(-1)
    places = field._parts._indices("index", places)
    rng = samplers.generator("rng", rng)
    groups = field._parts.groups(label, None, None, len(q.x), False)
    if out is not None:
        _arrays.output_array(out, (*q.batch_shape, *field.event_shape), q.dtype)
    wants = [field._check_quantities((quantity,), field._path(q.some(g.rows).t, g.part)) for g in groups]
    value = np.empty_like(q.x)
    for group, want in zip(groups, wants, strict=True):
        rows = slice(None) if group.rows is None else group.rows
        moments, path = _subset_moments(field, q.some(group.rows), group, places[rows], num_subset, rng, want)
        value[rows] = field._quantities(moments, path, (quantity,), field._model)[quantity]
    result = field._shaped({quantity: value}, q)[quantity]
    if out is None:
        return result
    np.copyto(out, result)
    return out


def _subset_moments(
    field: VelocityField,
    q: Queries,
    group: Group,
    places: np.ndarray,
    num_subset: int,
    rng: np.random.Generator,
    want: Want,
) -> tuple[Moments, Path]:
    """Moments of queries under their subsets, as those of the field's whole model at the path that comes with them."""
    parts, part = field._parts, group.part
    path = field._path(q.t, parts.whole)
    candidates = _with_mass(part)
    count = part.points.count if candidates is None else len(candidates)
    if candidates is not None:
        known = np.isin(places, candidates)
        if not known.all():
            place = int(places[np.argmin(known)])
            raise ValueError(f"index holds {place}, a point without mass or not of the label; x cannot come from it")
    if isinstance(field._model.target, Variances) and np.any(path.singular):
        raise ValueError(
            "num_subset is given at t = 1 in a field where some points have no variance; accepted are t < 1, or "
            "num_subset None"
        )
    if num_subset >= count:
        return parts.joined(((part, part.moments(q.x, field._path(q.t, part), want)),), path), path
    drawn = rng.choice(count, size=num_subset, replace=False)
    drawn = drawn if candidates is None else candidates[drawn]
    shared, spare = np.sort(drawn[:-1]), drawn[-1]
    own = np.where(np.isin(places, shared), spare, places)
    single = parts.whole, _single_moments(parts.points, own, q.x, path)
    if not len(shared):
        return parts.joined((single,), path), path
    subset = parts.subset(shared)
    return parts.joined(((subset, subset.moments(q.x, field._path(q.t, subset), want)), single), path), path


def _single_moments(points: Points, index: np.ndarray, x: np.ndarray, path: Path) -> Moments:
    """Moments of each query (B, D) under one point of its own, with its share of the whole mass."""
    mean = points.rows(index)
    residual = x - np.reshape(path.beta, (-1, 1)) * mean
    if points.source_mean is not None:
        residual -= np.reshape(path.alpha, (-1, 1)) * points.source_mean
    variance = np.reshape(path.variance, (-1, 1))
    turned, gain, rotation = residual, None, None
    if points.variance is not None:
        own = own_variances(points, index)
        variance = variance + np.reshape(path.slope, (-1, 1)) * own
        constant, slope = (np.reshape(g, (-1, 1)) for g in path.gain)
        gain = (constant + slope * own) / variance
        if points.rotation is not None:
            rotation = points.rotation[index]
            turned = np.einsum("bd,bde->be", residual, rotation)
    size = x.shape[1]
    log_mass = -math.log(points.count) if points.log_mass is None else points.log_mass[index]
    terms = np.square(turned) / variance
    terms = terms.sum(axis=1) + np.log(variance).sum(axis=1) * (size // variance.shape[1])
    moments = Moments(log_mass - 0.5 * terms, mean.astype(x.dtype), residual.astype(x.dtype))
    if gain is None:
        return moments
    gained = turned * gain
    if rotation is not None:
        gained = np.einsum("be,bde->bd", gained, rotation)
    return Moments(
        moments.log_total,
        moments.mean,
        moments.residual,
        gain=np.broadcast_to(gain.mean(axis=1), len(x)),
        gained=gained.astype(x.dtype),
    )


def training_batch(
    field: VelocityField,
    batch_size: int,
    *,
    t: Any = None,
    num_subset: int | None = None,
    rng: int | np.random.Generator | None = None,
    label: Any = None,
    quantity: str = "velocity",
) -> TrainingBatch:
    """A batch drawn from the path; see `VelocityField.training_batch`, which this implements."""
    batch_size = _count("batch_size", batch_size, 0)
    _check_quantity(quantity)
    rng = samplers.generator("rng", rng)
    if t is None:
        t = rng.random(batch_size, dtype=field._dtype)
    else:
        t = np.array(np.broadcast_to(_arrays.query_times(t, (batch_size,)), batch_size))
    x, index = draw(field, batch_size, t, rng, label)
    options = {} if num_subset is None else {"num_subset": num_subset, "index": index, "rng": rng}
    return TrainingBatch(x, t, targets(field, x, t, label=label, quantity=quantity, **options), index)


# Draws from the path ------------------------------------------------------------------------------------------


def draw(
    field: VelocityField, num: int, t: float | np.ndarray, rng: np.random.Generator, label: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw x from the marginal p_t, and the data points that it comes from.

    Args:
        field: the field.
        num: how many.
        t: one time, or (num,) with one for each.
        rng: random numbers: first the data points, then the noise.
        label: the class to draw from, or one for each; None for all data.

    Returns:
        x, (num, *event), float32 if the field works on float32 data, else float64; and indices (num,).
    """
    t = _arrays.query_times(t, (num,))
    chosen = choose(field, num, rng, label)
    x = around(field, chosen, t, rng.standard_normal((num, field._size)))
    return x.astype(field._dtype).reshape((num, *field.event_shape)), chosen


def _with_mass(part: Part) -> np.ndarray | None:
    """Indices of the points of a part that have any mass, or None for all of the data."""
    points = part.points
    if points.log_mass is None:
        return points.index
    positive = np.flatnonzero(points.log_mass > 0.5 * _arrays.LOG_ZERO)
    return positive if points.index is None else points.index[positive]


# The floor of the loss ----------------------------------------------------------------------------------------


def cfm_loss_floor(
    field: VelocityField,
    t: Any = None,
    *,
    num_samples: int = 4096,
    seed: int | np.random.Generator | None = None,
    label: int | None = None,
    batch_size: int = 1024,
) -> LossFloor:
    """The irreducible loss; see `VelocityField.cfm_loss_floor`, which this implements."""
    num_samples = _count("num_samples", num_samples, 2)
    batch_size = _count("batch_size", batch_size, 1)
    if np.ndim(label):
        raise ValueError(f"label has shape {np.shape(label)}; accepted is one class, or None for all data")
    rng = samplers.generator("seed", seed)
    part = field._parts.groups(label, None, None, 1, False)[0].part
    if t is None or (isinstance(t, str) and t == "integrated"):
        _require_integrable(field, part)
        num_samples += num_samples % 2
        variances = _drawn_variances(field, _pairs_of_times(num_samples // 2, rng), rng, label, batch_size)
        a, b = variances.reshape(-1, 2).T
        # Two draws in each stratum give its variance without bias: (a - b)^2 / 4 is that of their mean.
        error = math.sqrt(np.sum(np.square(a - b) / 4.0)) / len(a)
        return LossFloor(float(variances.mean()), error, num_samples)
    if isinstance(t, str):
        raise ValueError(f"t is {t!r}; accepted is a time, an array of times (T,), or None for the integral over them")
    array = _arrays.real_array("t", t)
    if array.ndim > 1:
        raise ValueError(f"t has shape {array.shape}; accepted is a scalar or (T,)")
    times = np.atleast_1d(np.asarray(_arrays.query_times(array, array.shape or (1,))))
    path = field._path(times, part)
    field._require_regular("cfm_loss_floor", path)
    if np.any(~np.isfinite(path.d_alpha)):
        raise ValueError(
            f"the loss floor of schedule {name_of(field.schedule)} is infinite at t = 1; accepted is t < 1"
        )
    variances = _drawn_variances(field, np.repeat(times, num_samples), rng, label, batch_size)
    variances = variances.reshape(len(times), num_samples)
    value, error = variances.mean(axis=1), variances.std(axis=1, ddof=1) / math.sqrt(num_samples)
    if array.ndim == 0:
        return LossFloor(float(value[0]), float(error[0]), num_samples)
    return LossFloor(value, error, num_samples)


def _drawn_variances(
    field: VelocityField, times: np.ndarray, rng: np.random.Generator, label: int | None, batch_size: int
) -> np.ndarray:
    """Velocity variances at draws of x_t, one for each time. The draws do not depend on `batch_size`."""
    chosen = choose(field, len(times), rng, label)
    result = np.empty(len(times))
    for start in range(0, len(times), batch_size):
        some = slice(start, start + batch_size)
        x = around(field, chosen[some], times[some], rng.standard_normal((len(times[some]), field._size)))
        x = x.astype(field._dtype).reshape(-1, *field.event_shape)
        result[some] = field.velocity_variance(x, times[some], label=label)
    return result


def _pairs_of_times(strata: int, rng: np.random.Generator) -> np.ndarray:
    """Two times in each of the equal parts of [0, 1), one after the other."""
    times = (np.arange(strata)[:, None] + rng.random((strata, 2))) / strata
    return np.minimum(times, math.nextafter(1.0, 0.0)).reshape(-1)


def _require_integrable(field: VelocityField, part: Part) -> None:
    """Raise where the variance of the velocity grows like `alpha'^2 ~ 1 / (1 - t)` towards t = 1."""
    target = part.model.target
    largest = target if isinstance(target, float) else target.largest
    if largest > 0.0 and not math.isfinite(field.schedule(1.0).d_alpha):
        raise ValueError(
            f"the integral of the loss floor of schedule {name_of(field.schedule)} diverges at t = 1 with variance > 0"
            "; accepted are times t < 1, or a field with variance 0"
        )


# Checks -------------------------------------------------------------------------------------------------------


def _check_quantity(quantity: Any) -> None:
    if not isinstance(quantity, str) or quantity not in TARGETS:
        raise ValueError(f"quantity is {quantity!r}; accepted is one of {', '.join(TARGETS)}")


def _count(name: str, value: Any, least: int, most: int | None = None) -> int:
    accepted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; accepted is {accepted}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name} is {value}; accepted is {accepted}")
    return int(value)
