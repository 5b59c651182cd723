"""What the kernels share: the data and the queries as they take them, tasks, and partial sums.

A query's *state* is (reference m, Z, sum p (l - m), sum p^2), with its logits l and `p = exp(l - m)`. References and
logits leave out what is constant over the points: -log N, -(D/2) log variance and, far from the data,
-|e|^2 / (2 variance), where the variance is that of the widest component if they differ.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .vector import SUM, exp, fused, inner, jit, larger, log, take

FAR_LOGIT, FAR_SIZE = 100.0, 2000  # size of a logit, beside a typical D / 2 for D up to this, whose rounding is seen
LOWEST = -1e307  # stands for log 0 in references: finite, so that differences are not NaN

# How components differ in variance: not at all, by point, by direction, or by direction in axes of each point's own.
SHARED, POINTS, DIRECTIONS, TURNED = range(4)


class Data(NamedTuple):
    """The data as every kernel takes them; `index` is empty where all rows are points, `log_mass` where all masses are
    equal."""

    points: np.ndarray
    index: np.ndarray
    centre: np.ndarray
    squares: np.ndarray  # |mu'|^2
    log_mass: np.ndarray
    group_points: int


class Widths(NamedTuple):
    """How components differ in variance.

    Attributes:
        kind: SHARED, POINTS, DIRECTIONS or TURNED.
        values: their variances, (N,), (D,), or (N * D,) point after point; empty where they share one.
        largest: the largest of all, (1,), or that of each direction, (D,), for DIRECTIONS.
        log_ratio: log of the largest to the smallest, for POINTS; infinite where some are zero.
        rotation: (N, D, D), the axes of each point, or (0, 0, 0).
    """

    kind: int
    values: np.ndarray
    largest: np.ndarray
    log_ratio: float
    rotation: np.ndarray


class Asked(NamedTuple):
    """Which moments are computed; `differ` says that the components differ in variance."""

    mean: bool
    spread: bool
    trace: bool
    tangent: bool
    differ: bool


class Split(NamedTuple):
    """Tasks of one round: the groups base..base+slots-1, times parts of `task_queries` of `rows` queries."""

    base: int
    slots: int
    rows: int
    task_queries: int


# Numbers of a query. `variance`, `slope`, `gain` and `gain_slope` are its coefficients; `half` is 1 / (2 D) of the
# widest component, or 1/2 where directions differ; `square` is |e|^2; `offset` is what its logits lack; `exclude` is
# the point that it leaves out, or negative.
QUERY = np.dtype(
    [(name, "f8") for name in ("beta", "variance", "slope", "gain", "gain_slope", "half", "square", "offset")]
    + [("exclude", "i8"), ("far", "?")],
    align=True,
)


class Queries(NamedTuple):
    """A block of queries: their numbers (QUERY), `e`, and `x - alpha m_i` if the kernel takes that."""

    numbers: np.ndarray
    e: np.ndarray
    raw: np.ndarray


# --- queries and data, once ------------------------------------------------------------------------------------------


@inner()
def _centre_query(x, alpha, beta, source_mean, centre, e, raw):
    """`e = x - alpha m_i - beta c` with the errors of both products put back; `raw` leaves out the last term."""
    if source_mean.size:
        for k in range(e.size):
            mean = alpha * source_mean[k]
            mean_error = fused(alpha, source_mean[k], -mean)
            shift = beta * centre[k]
            error = mean_error + fused(beta, centre[k], -shift)
            value = np.float64(x[k]) - mean
            e[k] = (value - shift) - error
            raw[k] = value - mean_error
    else:
        for k in range(e.size):
            shift = beta * centre[k]
            value = np.float64(x[k])
            e[k] = (value - shift) - fused(beta, centre[k], -shift)
            raw[k] = value


@inner(fastmath=SUM)
def _square(vector):
    total = 0.0
    for k in range(vector.size):
        total += vector[k] * vector[k]
    return total


@jit()
def centre_queries(x, coefficients, source_mean, centre, largest, constant, widths, exclude, queries, e, raw):
    """The vectors and numbers of every query.

    `constant` is what all logits lack of their masses, `largest` the largest |mu'|. `raw` may have a single row.
    """
    size = x.shape[1]
    for b in range(x.shape[0]):
        column = min(b, coefficients.shape[1] - 1)
        alpha, beta, variance = coefficients[:3, column]
        _centre_query(x[b], alpha, beta, source_mean, centre, e[b], raw[min(b, raw.shape[0] - 1)])
        query = queries[b]
        query.beta = beta
        query.variance = variance
        query.square = _square(e[b])
        query.exclude = exclude[b] if exclude.size else -1
        widest = variance
        if widths.kind != SHARED:
            query.slope, query.gain, query.gain_slope = coefficients[3:, column]
            widest += query.slope * widths.largest[0]
        query.half = 0.5 / widest
        query.offset = constant - 0.5 * size * math.log(widest)
        excess = query.half * query.square
        if widths.kind == DIRECTIONS:
            query.half = 0.5
            query.offset = constant
            excess = 0.0
            for k in range(size):
                width = variance + query.slope * widths.largest[k]
                query.offset -= 0.5 * math.log(width)
                excess += 0.5 * e[b, k] * e[b, k] / width
        query.far = widths.kind != TURNED and math.sqrt(query.square) > 2.0 * beta * largest
        query.far &= excess > FAR_LOGIT + min(size, FAR_SIZE)
        if query.far:
            query.offset -= excess


@inner()
def place_of(index, j):
    """The row of the j-th point in the data."""
    return index[j] if index.size else j


@jit(fastmath=SUM)
def sum_points(points, index, start, stop, total):
    """Sum of the points start..stop-1, relative to the first of them all: a mean that a shift does not harm."""
    first = points[place_of(index, 0)]
    for j in range(start, stop):
        row = points[place_of(index, j)]
        for k in range(total.size):
            total[k] += np.float64(row[k]) - np.float64(first[k])


@jit(fastmath=SUM)
def point_squares(points, index, centre, start, stop, squares):
    """`|mu'|^2` of the points start..stop-1."""
    for j in range(start, stop):
        row = points[place_of(index, j)]
        total = 0.0
        for k in range(centre.size):
            offset = np.float64(row[k]) - centre[k]
            total += offset * offset
        squares[j] = total


# --- tasks and states ------------------------------------------------------------------------------------------------


@inner()
def next_task(counter, split):
    """Slot of the sums and range of queries of a task that nobody has taken, or a negative slot."""
    parts = (split.rows + split.task_queries - 1) // split.task_queries
    task = take(counter)
    if task >= split.slots * parts:
        return -1, 0, 0
    first = task % parts * split.task_queries
    return task // parts, first, min(first + split.task_queries, split.rows)


@inner()
def group_span(data, group):
    """First point of a group and of the next."""
    begin = group * data.group_points
    return begin, min(begin + data.group_points, data.squares.size)


@jit()
def clear(states, sums, first, last):
    for b in range(first, last):
        states[b, 0] = LOWEST
        states[b, 1:] = 0.0
        sums[b, :] = 0.0


@inner()
def raise_reference(state, row, reference, mean):
    """Express the state, and the sum of points, by a reference that is no smaller."""
    if reference == state[0]:
        return
    factor = exp(state[0] - reference)
    if factor > 0.0:
        state[2] = factor * (state[2] + state[1] * (state[0] - reference))
    else:
        state[2] = 0.0
    state[0] = reference
    state[1] *= factor
    state[3] *= factor * factor
    if mean:
        for k in range(row.size):
            row[k] *= factor


# --- one query and one chunk -----------------------------------------------------------------------------------------


@inner(fastmath=SUM)
def row_square(row, centre, e, beta):
    """`|e - beta mu'|^2`."""
    total = 0.0
    for k in range(centre.size):
        residual = e[k] - beta * (np.float64(row[k]) - centre[k])
        total += residual * residual
    return total


@inner(fastmath=SUM)
def row_product(row, centre, e):
    """`e . mu'`."""
    total = 0.0
    for k in range(centre.size):
        total += e[k] * (np.float64(row[k]) - centre[k])
    return total


@inner(fastmath={"contract"})
def scale_to_logits(logits, count, half, log_mass, start):
    """Squares to logits, in place; returns the largest."""
    best = -np.inf
    if log_mass.size:
        masses = log_mass[start : start + count]
        for j in range(count):
            logit = masses[j] - half * logits[j]
            logits[j] = logit
            best = larger(best, logit)
    else:
        for j in range(count):
            logit = -half * logits[j]
            logits[j] = logit
            best = larger(best, logit)
    return best


@inner()
def leave_out(logits, count, position, dead, best):
    """Give the point at `position` of a chunk the logit `dead`, if it lies there; returns the largest logit."""
    if 0 <= position < count:
        logits[position] = dead
        best = logits[position]
        for j in range(count):
            best = max(best, logits[j])
    return best


@inner(fastmath=SUM)
def weigh(logits, weights, count, reference):
    """Logits become differences to the reference; returns the sum of their weights."""
    total = 0.0
    for j in range(count):
        difference = logits[j] - reference
        weight = exp(difference)
        logits[j] = difference
        weights[j] = weight
        total += weight
    return total


@inner(fastmath=SUM)
def spread_sums(weights, differences, count):
    """`sum p (l - m)` and `sum p^2`, in float64. By itself, so that asking for it changes nothing else."""
    slope = 0.0
    collision = 0.0
    for j in range(count):
        weight = np.float64(weights[j])
        slope += weight * np.float64(differences[j])
        collision += weight * weight
    return slope, collision


@inner()
def add_chunk(logits, weights, count, best, state, row, asked):
    """Weights of a chunk from its exact logits, and their sums into the state."""
    raise_reference(state, row, max(best, state[0]), asked.mean)
    state[1] += weigh(logits, weights, count, state[0])
    if asked.spread:
        slope, collision = spread_sums(weights, logits, count)
        state[2] += slope
        state[3] += collision


# --- points that differ in variance ----------------------------------------------------------------------------------


class PointTerms(NamedTuple):
    """What the logits of a chunk take of each point, the same for all queries of one time.

    The logit is `constant - half |r|^2`, or for a far query `constant - half (|r|^2 - |e|^2 + deficit |e|^2)`; `gain`
    is gamma_j. What the logit has of D_j alone, `(size/2) log(D of the widest / D_j)`, is in the constant, its
    logarithm taken in float32 if there is an array `logs` of these. Or, if there is an array `power`, it is left out:
    weights are to be multiplied with its exponential, which `power` holds.
    """

    constant: np.ndarray
    half: np.ndarray
    deficit: np.ndarray
    gain: np.ndarray
    power: np.ndarray
    logs: np.ndarray


@inner(fastmath={"contract"})
def width_gains(query, own, inverse, gain):
    """1/D and gamma of components, or of directions of one, from their own variances."""
    variance, slope, at_zero, gain_slope = query.variance, query.slope, query.gain, query.gain_slope
    for j in range(own.size):
        reciprocal = 1.0 / (variance + slope * own[j])
        inverse[j] = reciprocal
        gain[j] = (at_zero + gain_slope * own[j]) * reciprocal


@inner(fastmath={"contract"})
def width_logs(query, own, logs):
    """`log(D / D of the widest)` of components, or of directions of one, from their own variances."""
    variance, slope, scale = query.variance, query.slope, 2.0 * query.half
    for j in range(own.size):
        logs[j] = log((variance + slope * own[j]) * scale)


@inner(fastmath={"contract"})
def _point_widths(query, own, half, gain, ratio):
    """1 / (2 D), gamma and (D of the widest / D) of points, from their own variances."""
    variance, slope, at_zero, gain_slope = query.variance, query.slope, query.gain, query.gain_slope
    widest = 0.5 / query.half
    for j in range(own.size):
        reciprocal = 1.0 / (variance + slope * own[j])
        half[j] = 0.5 * reciprocal
        gain[j] = (at_zero + gain_slope * own[j]) * reciprocal
        ratio[j] = widest * reciprocal


@inner(fastmath={"contract"})
def _raise_ratios(query, half, count, size, ratio):
    """`ratio^(size/2)` in place, by multiplication; the ratio is that of `_point_widths`."""
    whole, scale = size // 2, 1.0 / query.half
    bit = 1
    while 2 * bit <= whole:
        bit *= 2
    while bit > 1:
        bit //= 2
        if whole & bit:
            for j in range(count):
                ratio[j] = (ratio[j] * ratio[j]) * (scale * half[j])
        else:
            for j in range(count):
                ratio[j] *= ratio[j]
    if size == 1:
        for j in range(count):
            ratio[j] = math.sqrt(ratio[j])
    elif size % 2:
        for j in range(count):
            ratio[j] *= math.sqrt(scale * half[j])


@inner(fastmath={"contract"})
def _scaled_logs(values, count, factor, narrow):
    """`factor log(value)` in place; in float32 if there is an array `narrow` of these."""
    if narrow.size:
        for j in range(count):
            narrow[j] = values[j]
        for j in range(count):
            narrow[j] = log(narrow[j])
        for j in range(count):
            values[j] = factor * np.float64(narrow[j])
    else:
        for j in range(count):
            values[j] = factor * log(values[j])


@inner(forceinline=True, fastmath={"contract"})
def point_terms(data, widths, query, start, count, terms):
    """Fill the terms of a chunk's points for the time of a query; where directions differ, as far as masses go. The
    deficits are those of a far query, and no other's."""
    constant, half, deficit, gain = terms.constant, terms.half, terms.deficit, terms.gain
    if widths.kind == POINTS:
        own, size = widths.values[start : start + count], data.centre.size
        if terms.power.size:
            _point_widths(query, own, half, gain, terms.power)
            _raise_ratios(query, half, count, size, terms.power)
            constant[:count] = 0.0
        else:
            _point_widths(query, own, half, gain, constant)
            _scaled_logs(constant, count, 0.5 * size, terms.logs)
        if query.far:
            widest, shrinkage = widths.largest[0], query.slope * (2.0 * query.half)
            for j in range(count):
                deficit[j] = shrinkage * (widest - own[j])
    else:
        constant[:count] = 0.0
        half[:count] = query.half
        gain[:count] = 1.0
        deficit[:count] = 0.0
    if data.log_mass.size:
        for j in range(count):
            constant[j] += data.log_mass[start + j]


@inner()
def same_terms(query, other):
    """Whether two queries have the terms of points in common."""
    same = query.variance == other.variance and query.slope == other.slope and query.half == other.half
    same = same and query.beta == other.beta and query.far == other.far
    return same and query.gain == other.gain and query.gain_slope == other.gain_slope


# --- folding groups and finishing ------------------------------------------------------------------------------------


@jit(fastmath={"contract"})
def fold_sums(states, sums, slots, total_states, total_sums, asked, first, last):
    """Add groups to the totals, in their order, for the queries first..last-1."""
    for b in range(first, last):
        total = total_states[b]
        for slot in range(slots):
            state = states[slot, b]
            raise_reference(total, total_sums[b], max(total[0], state[0]), asked.mean)
            factor = exp(state[0] - total[0])
            if factor > 0.0:
                total[1] += factor * state[1]
                total[2] += factor * (state[2] + state[1] * (state[0] - total[0]))
                total[3] += factor * factor * state[3]
                if asked.mean:
                    row, part = total_sums[b], sums[slot, b]
                    for k in range(row.size):
                        row[k] += factor * part[k]


@jit()
def finish_states(queries, state, log_total, entropy, collision):
    """States to normalised moments; outputs that were not asked for are empty."""
    for b in range(queries.size):
        total = state[b, 1]
        log_total[b] = (state[b, 0] + math.log(total)) + queries[b].offset
        if entropy.size:
            entropy[b] = math.log(total) - state[b, 2] / total
            collision[b] = state[b, 3] / (total * total)


@jit()
def finish_means(centre, queries, e, state, sums, mean, residual):
    """Sums of points to their mean and that of the residuals."""
    for b in range(queries.size):
        beta = queries[b].beta
        row, values, point, rest = sums[b], e[b], mean[b], residual[b]
        inverse = 1.0 / state[b, 1]
        for k in range(centre.size):
            offset = row[k] * inverse
            point[k] = centre[k] + offset
            rest[k] = values[k] - beta * offset


# --- arrays ----------------------------------------------------------------------------------------------------------


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to, whether or not the caller's array can: numba compiles for one type of array,
    and two compilations of one kernel may differ by rounding."""
    view = array.view()
    view.flags.writeable = False
    return view


def spans(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(i, min(i + step, stop)) for i in range(start, stop, step)]


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Uninitialised array that starts on a cache line, so that vector loads do not straddle two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
