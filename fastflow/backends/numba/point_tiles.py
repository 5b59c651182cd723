"""The `point_tiles` kernel: that of `tiles` for points that differ in variance.

The inner products `y.mu'` with `y = e / |e|` come from the tiles, in T. The logits are put together from them in
float64, `log C_j - (d/2) log D_j - (|e|^2 - 2 beta |e| y.mu'_j + beta^2 |mu'_j|^2) / (2 D_j)`; what all queries of one
time share in this is computed once per chunk. Beside `sum p mu'` a row of sums holds `sum p gamma_j r_j`, which a chunk
adds as `e sum p gamma_j - beta sum p gamma_j mu'_j`, and `sum p gamma_j`.

A query is sharp (see `tiles`) if it were with the narrowest variance. The bound on the rounding of a logit is inverse
to the point's own, and so each point is screened by its own bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..._arrays import LOG_ZERO
from .blocks import CHUNK, ROWS
from .common import (
    LOWEST,
    PointTerms,
    aligned,
    clear,
    group_span,
    leave_out,
    next_task,
    place_of,
    point_terms,
    raise_reference,
    row_product,
    row_square,
    same_terms,
    spread_sums,
)
from .rows import add_row
from .tiles import FEW_WEIGHTS, HEAVY_WEIGHT, NARROW_DEAD, SHARP_ERROR, TilePlan, add_tile, screen_chunk, sum_weights
from .vector import SUM, exp, inner, jit, larger

if TYPE_CHECKING:
    from .. import Tangent
    from .common import Queries

# Up to which D, and which log of the ratio of variances, float32 logs serve float32 queries: off by some 1e-8 of
# themselves or of 1, they change logits by D / 2 of that. And the ratio has to be in the range of float32.
NARROW_LOG_SIZE, NARROW_LOG_RANGE = 64, 69.0

# Numbers of a query in the screening: |e|; the rounding bound of a logit times 2 D; the largest gamma; whether it is
# sharp or lonely.
SCREEN = np.dtype(
    [("norm", "f8"), ("error", "f8"), ("top_gain", "f8"), ("sharp", "?"), ("lonely", "?")],
    align=True,
)


class Space(NamedTuple):
    """Arrays of one thread.

    Attributes:
        tile, turned, products, weights: as in `tiles`; products are `y.mu'`.
        gained_weights: weights times gamma, relative to the largest gamma. gain, gained_gain: by query of a task, the
            factors by which the sums of both enter.
        terms: of each point of the chunk.
        base: `constant - level / 2`, with the level `beta^2 |mu'|^2 / D`.
        half, level, relative_gain: the half of `terms`, the level, and gamma_j relative to the largest, in T.
        logits, differences, exact, chosen: of a query and a chunk; differences of logits in T.
    """

    tile: np.ndarray
    turned: np.ndarray
    products: np.ndarray
    weights: np.ndarray
    gained_weights: np.ndarray
    gain: np.ndarray
    gained_gain: np.ndarray
    terms: PointTerms
    base: np.ndarray
    half: np.ndarray
    level: np.ndarray
    relative_gain: np.ndarray
    differences: np.ndarray
    logits: np.ndarray
    exact: np.ndarray
    chosen: np.ndarray


@jit()
def _screen_queries(queries, e, terms, narrowest, widest, screens, packed):
    """What the screening takes of each query, and `y` as [block of ROWS queries][column][row] in T."""
    packed[:] = 0
    size = e.shape[1]
    for b in range(queries.size):
        query, screen = queries[b], screens[b]
        beta, norm, reach = query.beta, math.sqrt(query.square), query.beta * terms.largest
        least = query.variance + query.slope * narrowest
        screen.norm = norm
        # Of the products in T, and of the rest in float64
        screen.error = 2.0 * (size + 4) * terms.roundoff * norm * reach + 1e-15 * (query.square + reach * reach)
        ratio = beta * (beta / least)
        screen.sharp = 0.5 * screen.error / least > SHARP_ERROR
        screen.sharp |= math.sqrt(ratio / size) * terms.typical > terms.sharp_ratio
        screen.lonely = ratio * terms.typical**2 > terms.lonely_gap
        screen.top_gain = max(
            (query.gain + query.gain_slope * narrowest) / least,
            (query.gain + query.gain_slope * widest) / (query.variance + query.slope * widest),
        )
        factor = 1.0 / norm if norm > 0.0 else 0.0
        block, row = packed[b // ROWS], b % ROWS
        for k in range(size):
            block[k, row] = factor * e[b, k]


@inner(forceinline=True, fastmath={"contract"})
def _fill_terms(data, widths, query, screen, start, count, space):
    """The terms of each point of a chunk for the time of a query."""
    terms = space.terms
    point_terms(data, widths, query, start, count, terms)
    constant, half, gain = terms.constant, terms.half, terms.gain
    base, level, narrow_half, relative_gain = space.base, space.level, space.half, space.relative_gain
    squares = data.squares[start : start + count]
    scale, square_scale = 1.0 / screen.top_gain if screen.top_gain > 0.0 else 0.0, query.beta * query.beta
    # Two loops, each of so few arrays that the compiler checks that they do not overlap, and vectorises.
    for j in range(count):
        half_level = half[j] * (square_scale * squares[j])
        base[j] = constant[j] - half_level
        level[j] = 2.0 * half_level
    for j in range(count):
        narrow_half[j] = half[j]
        relative_gain[j] = scale * gain[j]


@inner(fastmath={"contract"})
def _logits(products, count, query, length, base, terms, logits):
    """Logits of a chunk from its products; returns the largest. `length` is `2 beta |e|`."""
    best = -np.inf
    half, square = terms.half, query.square
    if query.far:
        deficit = terms.deficit
        for j in range(count):
            logit = base[j] - half[j] * (square * deficit[j] - length * np.float64(products[j]))
            logits[j] = logit
            best = larger(best, logit)
    else:
        for j in range(count):
            logit = base[j] - half[j] * (square - length * np.float64(products[j]))
            logits[j] = logit
            best = larger(best, logit)
    return best


@inner()
def _exact_logit(data, terms, start, j, e, query):
    """The logit of point j of a chunk, from its residual."""
    row = data.points[place_of(data.index, start + j)]
    if query.far:
        square = query.beta * (query.beta * data.squares[start + j] - 2.0 * row_product(row, data.centre, e))
        square += query.square * terms.deficit[j]
    else:
        square = row_square(row, data.centre, e, query.beta)
    return terms.constant[j] - terms.half[j] * square


@inner(fastmath={"contract"})
def _add_gained_row(data_row, centre, e, beta, weight, row):
    """`row += weight (e - beta mu')`."""
    for k in range(centre.size):
        row[k] += weight * (e[k] - beta * (np.float64(data_row[k]) - centre[k]))


@inner()
def _add_point(data, j, e, beta, weight, gained_weight, columns, row):
    """Add a point to a row of sums in float64."""
    point = data.points[place_of(data.index, j)]
    add_row(point, data.centre, weight, row)
    _add_gained_row(point, data.centre, e, beta, gained_weight, row[columns:])
    row[2 * columns] += gained_weight


@inner()
def _subtract(logits, count, best, differences):
    """Differences to the largest logit, in T: finite, so that no weight of zero meets an infinite one."""
    for j in range(count):
        differences[j] = larger(logits[j] - best, -NARROW_DEAD)


@inner(fastmath={"contract"})
def _smooth_weights(products, differences, weights, count, length, half, level):
    """Weights in T alone; returns the largest weight times size of what it was made from."""
    worst = weights.dtype.type(0.0)
    for j in range(count):
        weight = exp(differences[j])
        size = half[j] * (length * abs(products[j])) + level[j]
        weights[j] = weight
        worst = larger(worst, weight * size)
    return worst


@inner(fastmath=SUM)
def _gain_weights(weights, relative_gain, gained_weights, count):
    """Weights times gamma; returns their sum."""
    total = 0.0
    for j in range(count):
        gained = weights[j] * relative_gain[j]
        gained_weights[j] = gained
        total += np.float64(gained)
    return total


@inner(fastmath={"contract"})
def _add_vector(vector, weight, row):
    """`row += weight vector`."""
    for k in range(vector.size):
        row[k] += weight * vector[k]


@inner()
def _smooth_query(data, limits, start, count, e, query, screen, i, best, columns, state, row, asked, space):
    """Weights of a chunk for a smooth query, and the factors by which their sums enter."""
    if best < state[0] - limits.cut:
        return
    terms, products, differences = space.terms, space.products[i], space.differences
    weights, gained_weights = space.weights[i], space.gained_weights[i]
    raise_reference(state, row, max(best, state[0]), asked.mean)
    gain = exp(best - state[0])
    length = weights.dtype.type(2.0 * query.beta * screen.norm)
    _subtract(space.logits, count, best, differences)
    worst = _smooth_weights(products, differences, weights, count, length, space.half, space.level)
    if not gain * worst <= limits.pair_limit:
        for j in range(count):
            size = space.half[j] * (length * abs(products[j])) + space.level[j]
            if not gain * weights[j] * size <= limits.pair_limit and start + j != query.exclude:
                difference = _exact_logit(data, terms, start, j, e, query) - best
                differences[j] = difference
                weights[j] = exp(difference)
    total = sum_weights(weights, count)
    state[1] += gain * total
    if asked.spread:
        slope, collision = spread_sums(weights, differences, count)
        state[2] += gain * (slope + total * (best - state[0]))
        state[3] += gain * gain * collision
    if not asked.mean:
        return
    if screen.lonely and total < FEW_WEIGHTS:
        gained_total = _gain_weights(weights, space.relative_gain, gained_weights, count)
        for j in range(count):
            if gain * weights[j] > HEAVY_WEIGHT or gained_weights[j] > HEAVY_WEIGHT * gained_total:
                weight = gain * weights[j]
                _add_point(data, start + j, e, query.beta, weight, weight * terms.gain[j], columns, row)
                weights[j] = 0.0
    scale = gain * screen.top_gain
    gained_total = scale * _gain_weights(weights, space.relative_gain, gained_weights, count)
    _add_vector(e, gained_total, row[columns:])
    row[2 * columns] += gained_total
    space.gain[i] = gain
    space.gained_gain[i] = -query.beta * scale


@inner()
def _sharp_query(data, limits, start, count, e, query, error, columns, state, row, asked, space):
    """A chunk for a sharp query: every point that may carry weight exactly, in float64 throughout."""
    terms, logits, exact, chosen = space.terms, space.logits, space.exact, space.chosen
    floor = state[0]
    for j in range(count):
        floor = max(floor, logits[j] - error * terms.half[j])
    floor -= limits.cut
    found, best = 0, LOWEST
    for j in range(count):
        if not logits[j] + error * terms.half[j] < floor and start + j != query.exclude:
            exact[found] = _exact_logit(data, terms, start, j, e, query)
            chosen[found] = j
            best = max(best, exact[found])
            found += 1
    if best < state[0] - limits.cut:
        return
    raise_reference(state, row, max(best, state[0]), asked.mean)
    for i in range(found):
        difference = exact[i] - state[0]
        if difference >= -limits.cut:
            weight = exp(difference)
            state[1] += weight
            state[2] += weight * difference
            state[3] += weight * weight
            if asked.mean:
                j = chosen[i]
                _add_point(data, start + j, e, query.beta, weight, weight * terms.gain[j], columns, row)


@jit()
def _point_tiles_task(
    data, queries, e, widths, centre, limits, screens, packed, split, counter, states, sums, asked, space
):
    """Tasks of the `point_tiles` kernel, until there are none. A task is for whole blocks of ROWS queries."""
    columns = packed.shape[1]
    loads = (space.weights, space.gain), (space.gained_weights, space.gained_gain)
    slot, first, last = next_task(counter, split)
    while slot >= 0:
        state, row = states[slot], sums[slot]
        clear(state, row, first, last)
        begin, stop = group_span(data, split.base + slot)
        for start in range(begin, stop, CHUNK):
            count = min(CHUNK, stop - start)
            screen_chunk(data, centre, start, count, space.tile, space.turned, packed, first, last, space.products)
            space.gain[:] = 0.0
            space.gained_gain[:] = 0.0
            for b in range(first, min(last, queries.size)):
                query, screen, i = queries[b], screens[b], b - first
                if b == first or not same_terms(query, queries[b - 1]):
                    _fill_terms(data, widths, query, screen, start, count, space)
                length = 2.0 * query.beta * screen.norm
                best = _logits(space.products[i], count, query, length, space.base, space.terms, space.logits)
                best = leave_out(space.logits, count, query.exclude - start, LOG_ZERO, best)
                if screen.sharp:
                    error = screen.error
                    _sharp_query(
                        data, limits, start, count, e[b], query, error, columns, state[b], row[b], asked, space
                    )
                elif best > 0.5 * LOG_ZERO:
                    _smooth_query(
                        data,
                        limits,
                        start,
                        count,
                        e[b],
                        query,
                        screen,
                        i,
                        best,
                        columns,
                        state[b],
                        row[b],
                        asked,
                        space,
                    )
            if asked.mean and space.gain.any():
                add_tile(data, centre, start, count, space.tile, loads, first, last, columns, row)
        slot, first, last = next_task(counter, split)


class PointTilePlan(TilePlan):
    """The plan of the `point_tiles` kernel."""

    kernel = staticmethod(_point_tiles_task)

    def row_length(self) -> int:
        return 2 * self.padded + 8  # the last eight are for one number, and keep rows aligned

    def workspace(self) -> tuple:
        tile, turned, products, weights, gain, exact, chosen = super().workspace()
        points, narrow = np.empty((6, CHUNK)), np.empty((4, CHUNK), self.dtype)
        return (
            Space(
                tile,
                turned,
                products,
                weights,
                np.zeros_like(weights),
                gain,
                np.empty_like(gain),
                PointTerms(*points[:4], np.empty(0), np.empty(CHUNK if self._has_narrow_logs() else 0, np.float32)),
                points[4],
                *narrow,
                points[5],
                exact,
                chosen,
            ),
        )

    def _has_narrow_logs(self) -> bool:
        """Whether the logs of variances are float32: by the data alone, and not by what else is in a batch."""
        small = self.prepared.size <= NARROW_LOG_SIZE and self.prepared.widths.log_ratio <= NARROW_LOG_RANGE
        return self.bytes == 4 and small

    def prepare(self, queries: Queries, tangent: Tangent | None) -> tuple:
        prepared, count = self.prepared, len(queries.e)
        widths, limits = prepared.widths, prepared.terms[self.bytes]
        screens = np.empty(count, SCREEN)
        packed = aligned((-(-count // ROWS), self.padded, ROWS), self.dtype)
        narrowest, widest = float(widths.values.min()), float(widths.largest[0])
        _screen_queries(queries.numbers, queries.e, limits, narrowest, widest, screens, packed)
        return widths, prepared.tiles[self.bytes].centre, limits, screens, packed

    def finish(self, queries: Queries, states: np.ndarray, sums: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
        super().finish(queries, states, sums, outputs)
        if len(outputs["mean"]):
            count, size = queries.e.shape
            total = states[:count, 1]
            outputs["gained"][:] = sums[:count, self.padded : self.padded + size] / total[:, None]
            outputs["gain"][:] = sums[:count, 2 * self.padded] / total
