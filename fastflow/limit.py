"""The end of time: posterior weights of points without variance where the source has none left either (D = 0).

At t = 1 without target variance the weights tend to the nearest data point, and points at exactly the same distance
share by their masses (Gao 4.11, docs/theory.md section 7). Nothing in between: a rounding error would give all of the
weight to the wrong point. So the nearest points are found exactly, for the alpha and beta that the schedule gives, in
three steps, of which each passes on all points that it cannot tell from the nearest:

1. a matrix product for all queries, with a bound of its rounding errors;
2. coordinate by coordinate in float64, likewise with a bound;
3. in whole numbers: a float64 is one, times a power of two.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ._arrays import LOG_ZERO
from .backends import Points
from .moments import Moments
from .path import SINGULAR_VARIANCE

# Elements of the blocks of logits or distances held at a time: 4 MB of float64.
LOGIT_BLOCK = 1 << 19

_EPSILON = float(np.finfo(np.float64).eps)  # twice the largest relative error of one operation
# Added to the bounds for each coordinate: products below the range of float64 lose more than their last digits.
_LEAST = 1e-300


class Nearest(NamedTuple):
    """The points nearest to a query.

    Attributes:
        index: their positions among the points, increasing.
        weights: their shares of the weight, which is zero for all others.
        log_mass: log of the sum of their masses.
        distance: of each of them from the query, `|r_j|`.
    """

    index: np.ndarray
    weights: np.ndarray
    log_mass: float
    distance: float


def nearest(
    points: Points, x: np.ndarray, coefficients: np.ndarray, exclude: np.ndarray | None, eligible: np.ndarray | None
) -> list[Nearest]:
    """The nearest points of each query (B, D), among those that have mass.

    Args:
        points: the points.
        x: the queries.
        coefficients: (3 or more, B): alpha and beta of each in the first rows.
        exclude: (B,) the point that each leaves out, negative for none; or None.
        eligible: (N,) which points count; None for all.

    Returns:
        For each query; without points, and at an infinite distance, where it has none.
    """
    x = x.astype(np.float64)
    if points.log_mass is not None:
        massive = points.log_mass > 0.5 * LOG_ZERO
        eligible = massive if eligible is None else eligible & massive
    found = []
    mean = np.zeros(x.shape[1]) if points.source_mean is None else points.source_mean
    for row, index in enumerate(_screened(points, x, mean, coefficients, exclude, eligible)):
        query = _Query(x[row], mean, float(coefficients[0, row]), float(coefficients[1, row]))
        if len(index) > 1:
            index = _narrowed(points, index, query)
        if len(index) > 1:
            index = _settled(points, index, query)
        if not len(index):
            found.append(Nearest(index, np.empty(0), -math.inf, math.inf))
            continue
        residual = query.offset - query.beta * points.rows(index[:1])[0]
        log_mass = np.full(len(index), -math.log(points.count)) if points.log_mass is None else points.log_mass[index]
        weights = np.exp(log_mass - log_mass.max())
        total = weights.sum()
        log_total = float(log_mass.max()) + math.log(total)
        found.append(Nearest(index, weights / total, log_total, math.hypot(*residual.tolist())))
    return found


class _Query(NamedTuple):
    """A query (D,), the source's mean (D,), and alpha and beta at its time."""

    x: np.ndarray
    mean: np.ndarray
    alpha: float
    beta: float

    @property
    def offset(self) -> np.ndarray:
        """`x - alpha m_i`."""
        return self.x - self.alpha * self.mean


def _screened(
    points: Points,
    x: np.ndarray,
    mean: np.ndarray,
    coefficients: np.ndarray,
    exclude: np.ndarray | None,
    eligible: np.ndarray | None,
) -> list[np.ndarray]:
    """For each query the points that `|r|^2 - |e|^2` from a matrix product cannot tell from the nearest."""
    count, size = points.count, x.shape[1]
    alpha, beta = coefficients[:2, :, None]
    origin, centre = alpha * mean, points.rows(slice(0, 1))
    offset = (x - origin) - beta * centre
    reach = np.linalg.norm(offset, axis=1, keepdims=True)
    # What the roundings of offset may add up to, in norm.
    norms = (np.linalg.norm(v, axis=1, keepdims=True) for v in (x, origin, beta * centre))
    noise = 2.0 * _EPSILON * sum(norms)
    lowest = np.full((len(x), 1), np.inf)  # what the least cannot exceed
    rows, places, bounds = [], [], []
    step = max(1, LOGIT_BLOCK // max(len(x), size))
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        own = points.rows(block) - centre
        squares = np.square(own).sum(axis=1)
        length = np.abs(beta) * np.sqrt(squares + size * _LEAST)  # not less than it is, though a square underflows
        values = np.square(beta) * squares - 2.0 * beta * (offset @ own.T)
        error = 1.01 * length * (2.0 * noise + (size + 8) * _EPSILON * (reach + length)) + size * _LEAST
        if eligible is not None:
            values[:, ~eligible[block]] = np.inf
        if exclude is not None:
            left_out = np.flatnonzero((exclude >= start) & (exclude < block.stop))
            values[left_out, exclude[left_out] - start] = np.inf
        lowest = np.minimum(lowest, (values + error).min(axis=1, keepdims=True))
        some, place = np.nonzero((values - error <= lowest) & (values < np.inf))
        rows.append(some)
        places.append(place + start)
        bounds.append((values - error)[some, place])
    row, place, bound = (np.concatenate(parts) for parts in (rows, places, bounds))
    left = bound <= lowest[row, 0]
    row, place = row[left], place[left]
    order = np.argsort(row, kind="stable")
    return np.split(place[order], np.searchsorted(row[order], np.arange(1, len(x))))


def _narrowed(points: Points, index: np.ndarray, query: _Query) -> np.ndarray:
    """Those of some points that sums of squared differences cannot tell from the nearest."""
    size = len(query.x)
    step = max(1, LOGIT_BLOCK // size)
    origin, offset = query.alpha * query.mean, query.offset
    moved = np.where(origin != 0.0, np.abs(origin) + np.abs(offset), 0.0)
    lower, lowest = np.empty(len(index)), np.inf
    for start in range(0, len(index), step):
        shift = query.beta * points.rows(index[start : start + step])
        residual = np.abs(offset - shift)
        noise = _EPSILON * (residual + moved + (0.0 if query.beta == 1.0 else np.abs(shift)))
        squares = np.square(residual).sum(axis=1)
        error = (noise * (2.0 * residual + noise)).sum(axis=1) + (size + 4) * _EPSILON * squares + size * _LEAST
        lower[start : start + step] = squares - error
        lowest = min(lowest, float((squares + error).min()))
    return index[lower <= lowest]


def _settled(points: Points, index: np.ndarray, query: _Query) -> np.ndarray:
    """Those of some points that are nearest, exactly."""
    rows, same = np.unique(points.rows(index), axis=0, return_inverse=True)
    if len(rows) == 1:
        return index
    data, beta = _whole(rows), _whole(np.array(query.beta))
    terms = [_whole(query.x), _product(_whole(np.array(-query.alpha)), _whole(query.mean))]
    terms.append(_product((-beta[0], beta[1]), data))
    least = min(exponent for _, exponent in terms)
    residual = sum(number * 2 ** (exponent - least) for number, exponent in terms)
    squares = (residual * residual).sum(axis=1)
    return index[(squares == squares.min()).astype(bool)[same.reshape(-1)]]


# Whole numbers (an array of Python's, of any size) and the power of two that they are multiplied with.
_Whole = tuple[np.ndarray, int]


def _whole(values: np.ndarray) -> _Whole:
    """Floats as whole numbers, exactly."""
    mantissa, exponent = np.frexp(values)
    numbers = (mantissa * 2.0**53).astype(np.int64)
    least = int(exponent[numbers != 0].min()) if numbers.any() else 0
    above = np.where(numbers != 0, exponent - least, 0)
    return numbers.astype(object) * 2 ** above.astype(object), least - 53


def _product(a: _Whole, b: _Whole) -> _Whole:
    return a[0] * b[0], a[1] + b[1]


def limit_moments(
    moments: Moments, found: list[tuple[int, Nearest]], points: Points, x: np.ndarray, coefficients: np.ndarray
) -> Moments:
    """`moments` with those of some queries, rows and what is nearest to them, replaced by their limit.

    Only moments of points that share the variance zero have one: the mean, the residual and the spread.
    """
    if not found:
        return moments
    limit = moments.map(lambda name, array: np.array(array))
    distance, tied = np.zeros(len(x)), np.full(len(x), -np.inf)
    constant = -0.5 * x.shape[1] * math.log(SINGULAR_VARIANCE)
    coefficients = np.broadcast_to(coefficients, (len(coefficients), len(x)))
    for row, (index, weights, log_mass, length) in found:
        distance[row], tied[row] = length, log_mass
        limit.log_total[row] = constant + log_mass - 0.5 * length * length / SINGULAR_VARIANCE
        if limit.mean is not None:
            alpha, beta = coefficients[:2, row]
            mean = weights @ points.rows(index)
            origin = 0.0 if points.source_mean is None else alpha * points.source_mean
            limit.mean[row] = mean
            limit.residual[row] = x[row] - origin - beta * mean
        if limit.entropy is not None:
            positive = weights[weights > 0.0]
            limit.entropy[row] = -np.sum(positive * np.log(positive))
            limit.collision[row] = np.sum(weights * weights)
        if limit.gained is not None:  # of points without variance among others: r_j = 0
            limit.gain[row], limit.gained[row] = coefficients[4, row] / coefficients[2, row], 0.0
    return replace(limit, distance=distance, tied=tied)


def no_moments(x: np.ndarray, mean: bool, spread: bool) -> Moments:
    """Moments of queries (B, D) whose values are still to be filled in."""
    vectors = [np.empty_like(x) if mean else None for _ in range(2)]
    numbers = [np.empty(len(x)) if spread else None for _ in range(2)]
    return Moments(np.empty(len(x)), *vectors, *numbers)
