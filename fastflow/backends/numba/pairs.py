"""The `pairs` kernel: every moment, for components of any variance, from float64 residuals of every pair.

For a query and a chunk of points it computes the logits, then the normalised moments of the chunk about the chunk's
own averages, and merges them into those of the chunks before by the law of total covariance, as `moments.merge` does
for parts of the data and `_fold` for groups. Covariances therefore never cancel.

A *tile* holds vectors of a chunk's points. In few dimensions tiles lie by direction, points side by side in the vector
lanes; in many by point, the data themselves being the tile of points, and what carries no weight is then passed over.

What all queries of one time share, the terms of each point, is computed once per chunk. Where each query has a time of
its own they are the larger part of the work, and most of that is the logarithm of D_j. So in few dimensions, unless
variances differ by orders of magnitude, logits leave it out, and weights are multiplied with the power of D_j.
To keep logs and powers of the variances small they are taken relative to the widest component.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba.extending import register_jitable

from ..._arrays import LOG_ZERO
from .columns import COLUMN_CHUNK, SMALL_SIZE, fill_columns
from .common import (
    DIRECTIONS,
    POINTS,
    TURNED,
    PointTerms,
    clear,
    finish_states,
    group_span,
    leave_out,
    next_task,
    place_of,
    point_terms,
    raise_reference,
    read_only,
    same_terms,
    spread_sums,
    weigh,
    width_gains,
    width_logs,
)
from .plan import Plan
from .vector import SUM, exp, inner, jit, larger, log

if TYPE_CHECKING:
    from .. import Tangent
    from . import Compiled
    from .common import Asked, Queries

TILE_BYTES = 1 << 18  # of the points of a chunk by point: stay in a core's second cache level
AXES_BYTES = 1 << 18  # of the axes of a chunk's points
CUT = 90.0  # weights below exp(-this) of the largest are dropped: they show in no sum
POWER_RANGE = 200.0  # log of powers up to which these are multiplied in: exp(-CUT - this) is still a normal number
LEAST_WEIGHT = 1e-300  # has a logarithm, and shows in no sum

# A state goes on with these scalars, after its first four numbers; a row of sums holds vectors, in this order: the
# mean of mu', that of gamma_j r_j, Cov(mu', psi), Cov(gamma_j r_j, psi) and E[gamma_j] u, those that there are.
GAIN, TILT, TRACE, CROSS, GAINED_TRACE, NUMBERS = range(4, 10)

# Vectors of a query that `_prepare` makes: its residual is `BASE - FACTOR mu'`, scaled to unit variance if directions
# differ; gamma_j of directions; and what psi_j multiplies mu' and gamma_j r_j with.
BASE, FACTOR, DIRECTION_GAIN, SLOPE, DIRECTION = range(5)
# And scalars: psi_j at a point in the centre, short of its `u . gamma_j r_j`; the factor of that; and the average over
# directions of the directions' gamma.
OFFSET, OF_GAINED, AVERAGE_GAIN = range(3)


class Tile(NamedTuple):
    """Vectors of points: the i-th is `values[rows[i]] - centre`, or the column `columns[:, i]` where they lie by
    direction. Two arrays, of which one is used, so that a kernel is compiled once for both."""

    values: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    centre: np.ndarray
    by_direction: bool


class Space(NamedTuple):
    """Arrays of one thread.

    Attributes:
        by_direction: how the tiles lie. chunk: points of a chunk. cut: CUT, beside what powers may change.
        columns: the tile of mu' by direction, or empty.
        gained, turned: the tiles of gamma_j r_j, and of r_j in the axes of point j.
        axes: those of the points, [d][e][point] or [point][d][e].
        terms: of each point; its gain is the average over directions where they differ.
        inverse, gains: 1/D and gamma of each point and direction, where the axes differ.
        logits, weights, psi, products: of each point.
        all, chosen: positions in the chunk of its points, and of those with weight. places, chosen_places: their rows
            in the data.
        state, row: moments of a chunk. lines, zeros: of each direction.
    """

    by_direction: bool
    chunk: int
    cut: float
    columns: np.ndarray
    gained: np.ndarray
    turned: np.ndarray
    axes: np.ndarray
    terms: PointTerms
    inverse: np.ndarray
    gains: np.ndarray
    logits: np.ndarray
    weights: np.ndarray
    psi: np.ndarray
    products: np.ndarray
    all: np.ndarray
    chosen: np.ndarray
    places: np.ndarray
    chosen_places: np.ndarray
    state: np.ndarray
    row: np.ndarray
    lines: np.ndarray
    zeros: np.ndarray


# --- sums over a tile, along each point or across them ---------------------------------------------------------------


@inner(forceinline=True, fastmath={"contract"})
def _residual(base, factor, value, centre):
    """`base - factor (value - centre)`, in this order. By itself, so that no sum that may change its order takes it
    apart: were `base` and `centre` put together, the result would round as the centre does."""
    return base - factor * (np.float64(value) - centre)


@inner(fastmath=SUM)
def _squares(tile, count, base, factor, out):
    """`|base - factor v_i|^2` of each vector of the tile, factor by direction."""
    values, columns, centre = tile.values, tile.columns, tile.centre
    if tile.by_direction:
        for k in range(base.size):
            line, value, slope = columns[k], base[k], factor[k]
            if k == 0:
                for i in range(count):
                    residual = value - slope * line[i]
                    out[i] = residual * residual
            else:
                for i in range(count):
                    residual = value - slope * line[i]
                    out[i] += residual * residual
    else:
        whole = count - count % 2  # two at a time, which share the reading of the three vectors
        for i in range(0, whole, 2):
            row, other = values[tile.rows[i]], values[tile.rows[i + 1]]
            total = other_total = 0.0
            for k in range(base.size):
                value, slope, middle = base[k], factor[k], centre[k]
                residual = _residual(value, slope, row[k], middle)
                other_residual = _residual(value, slope, other[k], middle)
                total += residual * residual
                other_total += other_residual * other_residual
            out[i], out[i + 1] = total, other_total
        for i in range(whole, count):
            row = values[tile.rows[i]]
            total = 0.0
            for k in range(base.size):
                residual = _residual(base[k], factor[k], row[k], centre[k])
                total += residual * residual
            out[i] = total


@inner(fastmath=SUM)
def _dots(tile, count, vector, out):
    """`vector . v_i`."""
    values, columns, centre = tile.values, tile.columns, tile.centre
    if tile.by_direction:
        out[:count] = 0.0
        for k in range(vector.size):
            line, value = columns[k], vector[k]
            for i in range(count):
                out[i] += value * line[i]
    else:
        for i in range(count):
            row = values[tile.rows[i]]
            total = 0.0
            for k in range(vector.size):
                total += vector[k] * (np.float64(row[k]) - centre[k])
            out[i] = total


@inner(fastmath=SUM)
def _trace(tile, count, weights, mean):
    """`sum_i weights_i |v_i - mean|^2`."""
    values, columns, centre = tile.values, tile.columns, tile.centre
    trace = 0.0
    if tile.by_direction:
        for k in range(mean.size):
            line, value = columns[k], mean[k]
            for i in range(count):
                deviation = line[i] - value
                trace += weights[i] * (deviation * deviation)
    else:
        for i in range(count):
            row = values[tile.rows[i]]
            total = 0.0
            for k in range(mean.size):
                deviation = _residual(mean[k], 1.0, row[k], centre[k])
                total += deviation * deviation
            trace += weights[i] * total
    return trace


@inner(fastmath=SUM)
def _cross_traces(tile, gained, count, weights, mean, gained_mean):
    """`sum_i weights_i (v_i - mean) . (g_i - gained_mean)` and `sum_i weights_i |g_i - gained_mean|^2`."""
    values, columns, others, centre = tile.values, tile.columns, gained.values, tile.centre
    cross = trace = 0.0
    if tile.by_direction:
        for k in range(mean.size):
            line, other_line, value, other_value = columns[k], others[k], mean[k], gained_mean[k]
            for i in range(count):
                deviation = other_line[i] - other_value
                weighted = weights[i] * deviation
                cross += weighted * (line[i] - value)
                trace += weighted * deviation
    else:
        for i in range(count):
            row, other_row = values[tile.rows[i]], others[gained.rows[i]]
            product = total = 0.0
            for k in range(mean.size):
                deviation = other_row[k] - gained_mean[k]
                product -= _residual(mean[k], 1.0, row[k], centre[k]) * deviation
                total += deviation * deviation
            cross += weights[i] * product
            trace += weights[i] * total
    return cross, trace


@inner(fastmath=SUM)
def _weighted(tile, count, weights, base, factor, out):
    """`sum_i weights_i (base - factor v_i)`."""
    values, columns, centre = tile.values, tile.columns, tile.centre
    if tile.by_direction:
        for k in range(base.size):
            line, value = columns[k], base[k]
            total = 0.0
            for i in range(count):
                total += weights[i] * (value - factor * line[i])
            out[k] = total
    else:
        out[: base.size] = 0.0
        whole = count - count % 4  # four at a time, so that `out` is read and written less often
        for i in range(0, whole, 4):
            a, b = values[tile.rows[i]], values[tile.rows[i + 1]]
            c, d = values[tile.rows[i + 2]], values[tile.rows[i + 3]]
            wa, wb, wc, wd = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            for k in range(base.size):
                value, middle = base[k], centre[k]
                total = wa * _residual(value, factor, a[k], middle)
                total += wb * _residual(value, factor, b[k], middle)
                total += wc * _residual(value, factor, c[k], middle)
                total += wd * _residual(value, factor, d[k], middle)
                out[k] += total
        for i in range(whole, count):
            a, wa = values[tile.rows[i]], weights[i]
            for k in range(base.size):
                out[k] += wa * _residual(base[k], factor, a[k], centre[k])


@inner(fastmath={"contract"})
def _gained_residuals(tile, count, e, beta, gain, positions, direction_gain, out):
    """`gamma_i (e - beta v_i)`, gamma of the point at `positions[i]` times that of the direction."""
    values, columns, centre = tile.values, tile.columns, tile.centre
    if tile.by_direction:
        for k in range(e.size):
            line, gained, value, factor = columns[k], out[k], e[k], direction_gain[k]
            for i in range(count):
                gained[i] = gain[i] * (factor * (value - beta * line[i]))
    else:
        for i in range(count):
            row, gained, factor = values[tile.rows[i]], out[i], gain[positions[i]]
            for k in range(e.size):
                residual = _residual(e[k], beta, row[k], centre[k])
                gained[k] = factor * (direction_gain[k] * residual)


# --- sums over points ------------------------------------------------------------------------------------------------


@inner(fastmath=SUM)
def _total(weights, values, count):
    """`sum_i weights_i values_i`."""
    total = 0.0
    for i in range(count):
        total += weights[i] * values[i]
    return total


@inner(fastmath={"contract"})
def _scale(values, count, factor):
    for i in range(count):
        values[i] *= factor


@inner(fastmath={"contract"})
def _add(values, count, factor, others):
    """`values += factor others`."""
    for i in range(count):
        values[i] += factor * others[i]


@inner(fastmath=SUM)
def _gain_weights(weights, count, gain, positions, by_direction, out):
    """`weights_i gamma_i`, gamma of the point at `positions[i]`; returns their sum."""
    total = 0.0
    if by_direction:
        for i in range(count):
            out[i] = weights[i] * gain[i]
            total += out[i]
    else:
        for i in range(count):
            out[i] = weights[i] * gain[positions[i]]
            total += out[i]
    return total


@inner(fastmath={"contract"})
def _weigh_deviations(weights, count, values, average):
    """`weights_i (average - values_i)` in place of the values."""
    for i in range(count):
        values[i] = weights[i] * (average - values[i])


# --- the axes of each point ------------------------------------------------------------------------------------------


@inner(fastmath=SUM)
def _turn(tile, count, base, factor, axes, positions, out):
    """`Q_i^T (base - factor v_i)` of each vector, at `positions[i]` of `axes` and of `out`."""
    values, columns, centre, size = tile.values, tile.columns, tile.centre, base.size
    if tile.by_direction:
        out[:, :count] = 0.0
        for d in range(size):
            line, value, slope = columns[d], base[d], factor[d]
            for k in range(size):
                axis, turned = axes[d, k], out[k]
                for i in range(count):
                    turned[i] += (value - slope * line[i]) * axis[i]
    else:
        for i in range(count):
            j = positions[i]
            row, turned = values[tile.rows[i]], out[j]
            turned[:] = 0.0
            for d in range(size):
                residual, axis = _residual(base[d], factor[d], row[d], centre[d]), axes[j, d]
                for k in range(size):
                    turned[k] += residual * axis[k]


@inner(fastmath=SUM)
def _turn_back(tile, count, gains, axes, out):
    """`Q_i (gamma_i v_i)` of each vector, which is in the axes of its point."""
    values, size = tile.values, axes.shape[1]
    if tile.by_direction:
        out[:, :count] = 0.0
        for d in range(size):
            back = out[d]
            for k in range(size):
                axis, line, gain = axes[d, k], values[k], gains[k]
                for i in range(count):
                    back[i] += axis[i] * (gain[i] * line[i])
    else:
        for i in range(count):
            j = tile.rows[i]
            row, gain, back = values[j], gains[j], out[i]
            for d in range(size):
                axis = axes[j, d]
                total = 0.0
                for k in range(size):
                    total += axis[k] * (gain[k] * row[k])
                back[d] = total


@inner(fastmath=SUM)
def _scaled_squares(tile, count, inverse, out):
    """`sum_k inverse_ik v_ik^2` of each vector."""
    values = tile.values
    if tile.by_direction:
        out[:count] = 0.0
        for k in range(values.shape[0]):
            line, scale = values[k], inverse[k]
            for i in range(count):
                out[i] += scale[i] * line[i] * line[i]
    else:
        for i in range(count):
            row, scale = values[i], inverse[i]
            total = 0.0
            for k in range(row.size):
                total += scale[k] * row[k] * row[k]
            out[i] = total


@inner()
def _copy(source, out):
    for k in range(out.size):
        out[k] = source[k]


# --- logits of a chunk -----------------------------------------------------------------------------------------------


@inner()
def _fill(data, widths, start, count, space):
    """A chunk's points, or their rows in the data, and their axes, into their tiles."""
    size = data.centre.size
    if space.by_direction:
        fill_columns(data, start, count, space.columns)
        if widths.kind == TURNED:
            for d in range(size):
                for k in range(size):
                    axis = space.axes[d, k]
                    for i in range(count):
                        axis[i] = widths.rotation[start + i, d, k]
    else:
        for i in range(count):
            space.places[i] = place_of(data.index, start + i)
            if widths.kind == TURNED:
                for d in range(size):
                    _copy(widths.rotation[start + i, d], space.axes[i, d])


@inner(forceinline=True, fastmath={"contract"})
def _fill_terms(data, widths, query, start, count, space):
    """The terms of each point of a chunk for the time of a query."""
    terms, size = space.terms, data.centre.size
    point_terms(data, widths, query, start, count, terms)
    if widths.kind == TURNED:
        inverse, gains, logs = space.lines[0], space.lines[1], space.lines[2]
        terms.half[:count] = 0.5
        terms.gain[:count] = 0.0
        for i in range(count):
            own = widths.values[(start + i) * size : (start + i + 1) * size]
            width_gains(query, own, inverse, gains)
            width_logs(query, own, logs)
            for k in range(size):
                terms.constant[i] -= 0.5 * logs[k]
                terms.gain[i] += gains[k] / size
                place = (k, i) if space.by_direction else (i, k)
                space.inverse[place], space.gains[place] = inverse[k], gains[k]


@inner(fastmath={"contract"})
def _finish_logits(squares, count, square, terms):
    """Squares to logits, in place; returns the largest. `square` is |e|^2 of a far query."""
    constant, half, deficit = terms.constant, terms.half, terms.deficit
    best = -np.inf
    if square > 0.0:
        for i in range(count):
            squares[i] += square * deficit[i]
    for i in range(count):
        logit = constant[i] - half[i] * squares[i]
        squares[i] = logit
        best = larger(best, logit)
    return best


@inner(forceinline=True)
def _chunk_logits(data, widths, query, vectors, count, space, logits):
    """Logits of the chunk whose tile and terms are in place; returns the largest."""
    tile = Tile(data.points, space.columns, space.places, data.centre, space.by_direction)
    base, factor = vectors[BASE], vectors[FACTOR]
    if widths.kind == TURNED:
        _turn(tile, count, base, factor, space.axes, space.all, space.turned)
        turned = Tile(space.turned, space.turned, space.all, space.zeros, space.by_direction)
        _scaled_squares(turned, count, space.inverse, logits)
    elif query.far:  # |r|^2 - |e|^2, see the notes of the package
        slopes = space.lines[0]
        for k in range(base.size):
            slopes[k] = -2.0 * base[k] * factor[k]
        _squares(tile, count, space.zeros, factor, logits)
        _dots(tile, count, slopes, space.products)
        _add(logits, count, 1.0, space.products)
    else:
        _squares(tile, count, base, factor, logits)
    return _finish_logits(logits, count, query.square if query.far else 0.0, space.terms)


@jit()
def _pairs_logits(data, queries, e, widths, vectors, scalars, start, stop, out, out_at, space):
    """Logits of the points start..stop-1, into the columns from `out_at` on."""
    for begin in range(start, stop, space.chunk):
        count = min(space.chunk, stop - begin)
        _fill(data, widths, begin, count, space)
        for b in range(e.shape[0]):
            query = queries[b]
            if b == 0 or not same_terms(query, queries[b - 1]):
                _fill_terms(data, widths, query, begin, count, space)
            _chunk_logits(data, widths, query, vectors[b], count, space, out[b, out_at : out_at + count])
        out_at += count


# --- moments of a chunk, and their merge -----------------------------------------------------------------------------


@inner(fastmath=SUM)
def _weigh(logits, weights, count, power, reference):
    """`weigh` where the logits leave out a power; they are not changed. Also returns the largest weight."""
    total = largest = 0.0
    for j in range(count):
        weight = exp(logits[j] - reference) * power[j]
        weights[j] = weight
        total += weight
        largest = larger(largest, weight)
    return total, largest


@inner()
def _log_weights(weights, count, largest, logs):
    """Logs of weights relative to the largest, which are zero where a single point has them all."""
    for j in range(count):
        logs[j] = log(larger(weights[j] / largest, LEAST_WEIGHT))


@inner()
def _choose(logits, count, floor, places, chosen, chosen_places):
    """Move the logits of at least `floor` together, and note whose they are; returns their number."""
    found = 0
    for j in range(count):
        if logits[j] >= floor:
            logits[found] = logits[j]
            chosen[found] = j
            chosen_places[found] = places[j]
            found += 1
    return found


@inner(forceinline=True)
def _average_chunk(data, widths, query, e, vectors, scalars, found, asked, space):
    """Moments of the chosen points of a chunk from their normalised weights, into `space.row` and `space.state`."""
    size, weights, products, zeros = e.size, space.weights, space.products, space.zeros
    state, sums = space.state, space.row
    by_direction = space.by_direction
    chosen, places = (space.all, space.places) if by_direction else (space.chosen, space.chosen_places)
    tile = Tile(data.points, space.columns, places, data.centre, by_direction)
    gained = Tile(space.gained, space.gained, space.all, zeros, by_direction)
    turned = Tile(space.turned, space.turned, chosen, zeros, by_direction)
    mean = sums[:size]
    _weighted(tile, found, weights, zeros, -1.0, mean)
    gained_mean = sums[size : 2 * size] if asked.differ else mean
    gain, direction_gain = 0.0, vectors[DIRECTION_GAIN]
    if asked.differ:
        gain = _gain_weights(weights, found, space.terms.gain, chosen, by_direction, products)
        state[GAIN] = gain * scalars[AVERAGE_GAIN]
        if widths.kind == TURNED:
            _turn_back(turned, found, space.gains, space.axes, space.gained)
            _weighted(gained, found, weights, zeros, -1.0, gained_mean)
        elif asked.trace or asked.tangent:
            _gained_residuals(tile, found, e, query.beta, space.terms.gain, chosen, direction_gain, space.gained)
            _weighted(gained, found, weights, zeros, -1.0, gained_mean)
        else:
            _weighted(tile, found, products, e, query.beta, gained_mean)
            for k in range(size):
                gained_mean[k] *= direction_gain[k]
    if asked.trace:
        state[TRACE] = _trace(tile, found, weights, mean)
        if asked.differ:
            state[CROSS], state[GAINED_TRACE] = _cross_traces(tile, gained, found, weights, mean, gained_mean)
    if asked.tangent:
        psi = space.psi
        _dots(tile, found, vectors[SLOPE], psi)
        if asked.differ:
            _dots(gained, found, vectors[DIRECTION], products)
            _add(psi, found, scalars[OF_GAINED], products)
        tilt = _total(weights, psi, found)
        state[TILT] = scalars[OFFSET] + tilt
        _weigh_deviations(weights, found, psi, tilt)  # with these the average is a covariance
        after = 2 * size if asked.differ else size
        _weighted(tile, found, psi, mean, 1.0, sums[after : after + size])
        if asked.differ:
            _weighted(gained, found, psi, gained_mean, 1.0, sums[3 * size : 4 * size])
            turned_gain = sums[4 * size :]
            if widths.kind == TURNED:
                _turn(tile, found, vectors[DIRECTION], zeros, space.axes, chosen, space.turned)
                _turn_back(turned, found, space.gains, space.axes, space.gained)
                _weighted(gained, found, weights, zeros, -1.0, turned_gain)
            else:
                for k in range(size):
                    turned_gain[k] = gain * direction_gain[k] * vectors[DIRECTION, k]


@inner(fastmath=SUM)
def _distance_product(a, b, c, d):
    """`(a - b) . (c - d)`."""
    total = 0.0
    for k in range(a.size):
        total += (a[k] - b[k]) * (c[k] - d[k])
    return total


@inner(fastmath={"contract"})
def _approach(own, other, share):
    """`own += share (other - own)`."""
    for k in range(own.size):
        own[k] += share * (other[k] - own[k])


@inner(fastmath={"contract"})
def _approach_product(own, other, share, mean, other_mean, factor):
    """`own += share (other - own) + factor (other_mean - mean)`."""
    for k in range(own.size):
        own[k] += share * (other[k] - own[k]) + factor * (other_mean[k] - mean[k])


@inner()
def _merge(state, sums, other, others, asked, size):
    """Merge the moments of another part, which is not changed, by the law of total covariance."""
    if other[1] == 0.0:
        return
    raise_reference(state, sums, max(state[0], other[0]), False)
    before = state[1]
    factor = exp(other[0] - state[0])
    mass = factor * other[1]
    if mass == 0.0:
        return
    state[2] += factor * (other[2] + other[1] * (other[0] - state[0]))
    state[3] += factor * factor * other[3]
    state[1] += mass
    if not asked.mean:
        return
    if before == 0.0:
        _copy(other[4:], state[4:])
        _copy(others, sums)
        return
    share = mass / state[1]
    between = share * (1.0 - share)
    mean, other_mean = sums[:size], others[:size]
    if asked.trace:
        product = _distance_product(other_mean, mean, other_mean, mean)
        state[TRACE] += share * (other[TRACE] - state[TRACE]) + between * product
    if asked.tangent:
        tilt = between * (other[TILT] - state[TILT])
        state[TILT] += share * (other[TILT] - state[TILT])
        after = 2 * size if asked.differ else size
        _approach_product(sums[after : after + size], others[after : after + size], share, mean, other_mean, tilt)
    if asked.differ:
        gained, other_gained = sums[size : 2 * size], others[size : 2 * size]
        state[GAIN] += share * (other[GAIN] - state[GAIN])
        if asked.trace:
            product = _distance_product(other_mean, mean, other_gained, gained)
            state[CROSS] += share * (other[CROSS] - state[CROSS]) + between * product
            product = _distance_product(other_gained, gained, other_gained, gained)
            state[GAINED_TRACE] += share * (other[GAINED_TRACE] - state[GAINED_TRACE]) + between * product
        if asked.tangent:
            part, other_part = sums[3 * size : 4 * size], others[3 * size : 4 * size]
            _approach_product(part, other_part, share, gained, other_gained, tilt)
            _approach(sums[4 * size :], others[4 * size :], share)
        _approach(gained, other_gained, share)
    _approach(mean, other_mean, share)


@jit()
def _pairs_task(data, queries, e, widths, vectors, scalars, split, counter, states, sums, asked, space):
    """Tasks of the `pairs` kernel, until there are none."""
    part, logits, weights, power = space.state, space.logits, space.weights, space.terms.power
    slot, first, last = next_task(counter, split)
    while slot >= 0:
        clear(states[slot], sums[slot], first, last)
        begin, stop = group_span(data, split.base + slot)
        for start in range(begin, stop, space.chunk):
            count = min(space.chunk, stop - start)
            _fill(data, widths, start, count, space)
            for b in range(first, last):
                query, state = queries[b], states[slot, b]
                if b == first or not same_terms(query, queries[b - 1]):
                    _fill_terms(data, widths, query, start, count, space)
                best = _chunk_logits(data, widths, query, vectors[b], count, space, logits)
                best = leave_out(logits, count, query.exclude - start, LOG_ZERO, best)
                floor = max(best, state[0]) - space.cut
                if best < floor:
                    continue
                found = count
                if not space.by_direction:
                    found = _choose(logits, count, floor, space.places, space.chosen, space.chosen_places)
                if power.size:
                    total, largest = _weigh(logits, weights, found, power, best)
                    if asked.spread:
                        _log_weights(weights, found, largest, logits)
                    best += math.log(largest)
                else:
                    total, largest = weigh(logits, weights, found, best), 1.0
                part[0], part[1] = best, total / largest
                if asked.spread:
                    slope, collision = spread_sums(weights, logits, found)
                    part[2], part[3] = slope / largest, collision / (largest * largest)
                if asked.mean:
                    _scale(weights, found, 1.0 / total)
                    _average_chunk(data, widths, query, e[b], vectors[b], scalars[b], found, asked, space)
                _merge(state, sums[slot, b], part, space.row, asked, e.shape[1])
        slot, first, last = next_task(counter, split)


@register_jitable
def _vector_count(asked):
    """How many vectors a row of sums holds."""
    count = 2 if asked.differ else 1
    if asked.tangent:
        count += 3 if asked.differ else 1
    return count


@jit()
def _fold(states, sums, slots, total_states, total_sums, asked, first, last):
    """Add groups to the totals, in their order, for the queries first..last-1."""
    size = sums.shape[2] // _vector_count(asked)
    for b in range(first, last):
        for slot in range(slots):
            _merge(total_states[b], total_sums[b], states[slot, b], sums[slot, b], asked, size)


@jit()
def _prepare(queries, e, widths, centre, direction, factors, vectors, scalars):
    """What the kernel takes of each query: see BASE and OFFSET. `direction` and `factors` are empty where there is no
    tangent."""
    size = e.shape[1]
    for b in range(queries.size):
        query, own = queries[b], vectors[b]
        scalars[b] = 0.0
        for k in range(size):
            own[BASE, k] = e[b, k]
            own[FACTOR, k] = query.beta
            own[DIRECTION_GAIN, k] = 1.0
            if widths.kind == DIRECTIONS:
                inverse = 1.0 / (query.variance + query.slope * widths.largest[k])
                own[BASE, k] *= math.sqrt(inverse)
                own[FACTOR, k] *= math.sqrt(inverse)
                own[DIRECTION_GAIN, k] = (query.gain + query.gain_slope * widths.largest[k]) * inverse
            scalars[b, AVERAGE_GAIN] += own[DIRECTION_GAIN, k]
        scalars[b, AVERAGE_GAIN] /= size
        if direction.size:
            of_residual, of_gained, of_mean = factors[:, b]
            scalars[b, OF_GAINED] = of_gained
            for k in range(size):
                u = np.float64(direction[b, k])
                own[DIRECTION, k] = u
                own[SLOPE, k] = u * (of_mean - of_residual * query.beta)
                scalars[b, OFFSET] += u * (of_residual * e[b, k] + of_mean * centre[k])


class Pairs(Plan):
    """The plan of the `pairs` kernel."""

    kernel = staticmethod(_pairs_task)
    fold = staticmethod(_fold)
    logits = staticmethod(_pairs_logits)
    numbers = NUMBERS

    def __init__(self, prepared: Compiled, asked: Asked):
        size, self.widths, self.asked = prepared.size, prepared.widths, asked
        self.by_direction = size <= SMALL_SIZE
        row_bytes = prepared.points[0].nbytes
        self.chunk = COLUMN_CHUNK if self.by_direction else min(256, max(8, TILE_BYTES // row_bytes // 4 * 4))
        if self.widths.kind == TURNED:
            self.chunk = min(self.chunk, max(8, AXES_BYTES // (8 * size * size) // 4 * 4))
        queries = 256 if self.by_direction else 32
        super().__init__(prepared, self.chunk, queries, _vector_count(asked) * size)

    def prepare(self, queries: Queries, tangent: Tangent | None) -> tuple:
        count, size = queries.e.shape
        vectors, scalars = np.empty((count, 5, size)), np.empty((count, 3))
        direction, factors = (np.empty((0, size)), np.empty((3, 0))) if tangent is None else tangent
        factors = np.ascontiguousarray(factors)
        centre = self.data.centre
        _prepare(queries.numbers, queries.e, self.widths, centre, read_only(direction), factors, vectors, scalars)
        return self.widths, vectors, scalars

    def workspace(self) -> tuple:
        widths, size = self.widths, len(self.data.centre)
        narrow_range = 0.5 * size * widths.log_ratio <= POWER_RANGE
        return self._space(self.by_direction and widths.kind == POINTS and narrow_range)

    def logits_workspace(self) -> tuple:
        return self._space(False)

    def _space(self, has_power: bool) -> tuple:
        chunk, size, asked = self.chunk, len(self.data.centre), self.asked
        differ, turned = asked.differ and asked.mean, self.widths.kind == TURNED

        def tile(there: bool) -> np.ndarray:
            shape = (size, chunk) if self.by_direction else (chunk, size)
            return np.empty(shape if there else (0, 0))

        axes = (0, 0, 0)
        if turned:
            axes = (size, size, chunk) if self.by_direction else (chunk, size, size)
        columns, points = tile(self.by_direction), np.empty((8, chunk))
        return (
            Space(
                self.by_direction,
                chunk,
                CUT + POWER_RANGE if has_power else CUT,
                columns,
                *(tile(there) for there in (differ, turned)),
                np.empty(axes),
                PointTerms(*points[:4], np.empty(chunk if has_power else 0), np.empty(0, np.float32)),
                *(tile(turned) for _ in range(2)),
                *points[4:],
                np.arange(chunk),
                *np.empty((3, chunk), np.int64),
                np.zeros(NUMBERS),
                np.empty(self.columns),
                np.empty((3, size)),
                np.zeros(size),
            ),
        )

    def finish(self, queries: Queries, states: np.ndarray, sums: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
        finish_states(queries.numbers, states, *(outputs[name] for name in ("log_total", "entropy", "collision")))
        places = {"gain": GAIN, "tilt": TILT, "trace": TRACE, "cross": CROSS, "gained_trace": GAINED_TRACE}
        for name, place in places.items():
            if len(outputs[name]):
                outputs[name][:] = states[:, place]
        if len(outputs["mean"]):
            size = len(self.data.centre)
            averages = (sums[:, k : k + size] for k in range(0, self.columns, size))
            offset = next(averages)
            outputs["mean"][:] = self.data.centre + offset
            outputs["residual"][:] = queries.e - queries.numbers["beta"][:, None] * offset
            for name in ("gained", "mean_product", "gained_product", "gain_product"):
                if len(outputs[name]):
                    outputs[name][:] = next(averages)
