"""The `tiles` kernel, for the other batches: two register-blocked matrix products per chunk in the compute dtype T
(float32 if data and queries are, else float64).

Logits come from the expanded square, `a = q.mu' - h |mu'|^2 + log C` with `q = (beta / D) e` and `h = beta^2 / (2 D)`;
the means from `sum p mu'`, in T within a chunk and float64 beyond.

Exactness on demand. The expanded square cancels as t -> 1. A query is *sharp* if the rounding error of its logits can
exceed SHARP_ERROR or if its mean must keep more digits than T has. For a sharp query the product only screens: every
point within the rigorous rounding bound of the best is recomputed from its float64 residual and summed in float64. For
the others, *smooth*, only those pairs are recomputed whose own rounding error shows in the result, and where a float32
query may sit on a single point, so that little is left of its residual, the heavy points of a chunk are summed in
float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import Tangent
from .blocks import CHUNK, PANEL_BYTES, ROWS, dot_block, transpose_block, weighted_block
from .common import (
    LOWEST,
    aligned,
    clear,
    group_span,
    leave_out,
    next_task,
    place_of,
    raise_reference,
    row_product,
    row_square,
    spread_sums,
)
from .plan import STATE_BYTES, Plan
from .rows import add_row
from .vector import SUM, VECTOR_BYTES, exp, inner, jit, lane_count, larger

if TYPE_CHECKING:
    from . import Compiled
    from .common import Queries

SHARP_ERROR = 0.25  # bound on the error of a logit beyond which a query is sharp
SHARP_RATIO = {4: 8.0, 8: 500.0}  # by bytes of T: beta |mu'| over sqrt(D d) up to which sums of mu' in T suffice
PAIR_ERROR = {4: 2e-6, 8: 5e-14}  # by bytes of T: error of the weighted sums that one pair may cause
TYPICAL_ERROR = 0.5  # of a dot product, in units of its roundoff u times its size
LONELY_GAP = {4: 9.0, 8: np.inf}  # beta^2 |mu'|^2 / D from which a float32 query on a point may see little else
FEW_WEIGHTS, HEAVY_WEIGHT = 4.0, 0.125  # such a query's weights above this, in a chunk of so few, are summed in float64
NEGLIGIBLE = {4: 18.0, 8: 38.0}  # by bytes of T: weights below exp(-this) / N of the largest are dropped
NARROW_DEAD = 1e30  # float32 stand-in for infinity
NARROW_RANGE = 1e-12, 1e14  # largest |mu'| between which squares stay well inside float32


class Tiles(NamedTuple):
    """The data's numbers in the compute dtype T of the tiles."""

    centre: np.ndarray
    log_mass: np.ndarray
    squares: np.ndarray


class Terms(NamedTuple):
    """What decides where T does not suffice.

    Attributes:
        roundoff: u of T. limit: size below which nothing overflows in T.
        largest, typical: largest and root mean square |mu'|. mass: largest |log C| of a mass above zero.
        sharp_ratio, lonely_gap, cut: see SHARP_RATIO, LONELY_GAP and NEGLIGIBLE.
        pair_limit: PAIR_ERROR in units of a typical error.
    """

    roundoff: float
    limit: float
    largest: float
    typical: float
    mass: float
    sharp_ratio: float
    lonely_gap: float
    pair_limit: float
    cut: float


def terms(size: int, count: int, largest: float, typical: float, mass: float) -> Terms:
    """For T of `size` bytes and `count` points."""
    numbers = np.finfo(f"f{size}")
    roundoff = float(numbers.eps) / 2
    return Terms(
        roundoff=roundoff,
        limit=1e-3 * float(numbers.max),
        largest=largest,
        typical=typical,
        mass=mass,
        sharp_ratio=SHARP_RATIO[size],
        lonely_gap=LONELY_GAP[size],
        pair_limit=PAIR_ERROR[size] / (TYPICAL_ERROR * roundoff),
        cut=math.log(count) + NEGLIGIBLE[size],
    )


# Numbers of a query in the screening by tiles, by bytes of T: see `_screen_queries`.
SCREEN = {
    size: np.dtype(
        [("window", "f8"), ("base", "f8"), ("half_square", f"f{size}"), ("mass_factor", f"f{size}"), ("lonely", "?")],
        align=True,
    )
    for size in (4, 8)
}


@jit()
def _screen_queries(queries, e, terms, screens, packed):
    """What the screening takes of each query, and `q` or `yhat` as [block of ROWS queries][column][row] in T.

    A sharp query's screened logit is `yhat.mu' - |mu'|^2 / 2 + log C D / beta^2` with `yhat = e / beta`: divided by
    beta^2 / D, so that nothing overflows as D -> 0. Its window says how far below the best a point must be
    looked at: infinitely where the screening would overflow. A smooth query has a negative window.
    """
    packed[:] = 0
    size = e.shape[1]
    for b in range(queries.size):
        query, screen = queries[b], screens[b]
        beta = query.beta
        norm = math.sqrt(query.square)
        ratio = beta * (beta / query.variance)
        length = beta / query.variance * norm
        factor = beta / query.variance
        screen.window = -1.0
        screen.half_square = 0.5 * ratio
        screen.mass_factor = 1.0
        screen.base = 0.0 if query.far else -query.half * query.square
        sharp = (size + 4) * terms.roundoff * length * terms.largest > SHARP_ERROR
        signal = math.sqrt(ratio / size) * terms.typical
        sharp |= signal > terms.sharp_ratio
        screen.lonely = ratio * terms.typical**2 > terms.lonely_gap
        if sharp or not length < terms.limit:
            target = norm / beta
            error = terms.roundoff * (
                (size + 4) * target * terms.largest + 2.0 * terms.largest**2 + 2.0 * terms.mass / ratio
            )
            factor = 1.0 / beta
            screen.half_square = 0.5
            screen.mass_factor = min(1.0 / ratio, terms.limit)
            screen.window = 2.0 * error + terms.cut / ratio
            if not (target + terms.largest) * (1.0 + terms.largest) < terms.limit:
                screen.window = np.inf
                factor = 0.0
        block, row = packed[b // ROWS], b % ROWS
        for k in range(size):
            block[k, row] = factor * e[b, k]


@inner()
def _fill_tile(data, centre, start, count, rows, first_column, width, tile):
    """`mu'` of a panel of columns, [point][column], padded with zeros to `rows` points and `width` columns."""
    used = min(width, centre.size - first_column)
    middle = centre[first_column : first_column + used]
    for j in range(count):
        out = tile[j]
        source = data.points[place_of(data.index, start + j)][first_column : first_column + used]
        for k in range(used):
            out[k] = source[k] - middle[k]
        out[used:width] = 0
    for j in range(count, rows):
        tile[j, :width] = 0


@inner()
def screen_chunk(data, centre, start, count, tile, turned, packed, first, last, logits):
    """`q . mu'` of the queries first..last-1 with a chunk; leaves the last panel of columns in `tile`."""
    lanes = lane_count(tile)
    pair = 2 * lanes
    columns = packed.shape[1]
    panel = tile.shape[1]
    rows = (count + pair - 1) // pair * pair
    for column in range(0, columns, panel):
        width = min(panel, columns - column)
        _fill_tile(data, centre, start, count, rows, column, width, tile)
        for j in range(0, rows, lanes):
            for k in range(0, width, lanes):
                place = (j // pair * panel + k) * pair + j % pair
                transpose_block(turned, place, pair, tile, j * panel + k, panel)
        for block in range(rows // pair):
            for b in range(first, last, ROWS):
                dot_block(
                    logits,
                    (b - first) * CHUNK + block * pair,
                    packed,
                    (b // ROWS * columns + column) * ROWS,
                    turned,
                    block * panel * pair,
                    width,
                    column == 0,
                )


@inner(fastmath={"contract"})
def _finish_logits(logits, count, half_square, squares, log_mass, mass_factor):
    """Products to logits `a - h |mu'|^2 + g log C`, in place; returns the largest."""
    best = logits.dtype.type(-np.inf)
    if log_mass.size:
        for j in range(count):
            logit = (logits[j] - half_square * squares[j]) + mass_factor * log_mass[j]
            logits[j] = logit
            best = larger(best, logit)
    else:
        for j in range(count):
            logit = logits[j] - half_square * squares[j]
            logits[j] = logit
            best = larger(best, logit)
    return best


@inner(fastmath={"contract"})
def _smooth_weights(logits, weights, count, best, square_factor, squares):
    """Logits become differences to the largest; returns the largest weight times size of what it was made from."""
    worst = logits.dtype.type(0.0)
    for j in range(count):
        difference = logits[j] - best
        weight = exp(difference)
        size = abs(logits[j]) + square_factor * squares[j]
        logits[j] = difference
        weights[j] = weight
        worst = larger(worst, weight * size)
    return worst


@inner(fastmath=SUM)
def sum_weights(weights, count):
    total = 0.0
    for j in range(count):
        total += np.float64(weights[j])
    return total


@inner()
def _exact_logit(data, j, e, query):
    row = data.points[place_of(data.index, j)]
    if query.far:
        square = query.beta * (query.beta * data.squares[j] - 2.0 * row_product(row, data.centre, e))
    else:
        square = row_square(row, data.centre, e, query.beta)
    return (data.log_mass[j] if data.log_mass.size else 0.0) - query.half * square


@inner()
def _smooth_query(data, terms, start, count, e, query, screen, squares, logits, weights, best, state, row, asked):
    """Weights of a chunk for a smooth query; returns the factor by which their sums enter."""
    reference = np.float64(best) + screen.base
    if reference < state[0] - terms.cut or best < -0.5 * NARROW_DEAD:
        return 0.0
    raise_reference(state, row, max(reference, state[0]), asked.mean)
    gain = exp(reference - state[0])
    square_factor = screen.half_square + screen.half_square
    worst = _smooth_weights(logits, weights, count, best, square_factor, squares)
    if not gain * worst <= terms.pair_limit:
        for j in range(count):
            size = abs(np.float64(logits[j]) + np.float64(best)) + square_factor * squares[j]
            if not gain * weights[j] * size <= terms.pair_limit:
                difference = _exact_logit(data, start + j, e, query) - reference
                logits[j] = difference
                weights[j] = exp(difference)
    total = sum_weights(weights, count)
    state[1] += gain * total
    if asked.spread:
        slope, collision = spread_sums(weights, logits, count)
        state[2] += gain * (slope + total * (reference - state[0]))
        state[3] += gain * gain * collision
    if asked.mean and screen.lonely and total < FEW_WEIGHTS:
        for j in range(count):
            if gain * weights[j] > HEAVY_WEIGHT:
                add_row(data.points[place_of(data.index, start + j)], data.centre, gain * weights[j], row)
                weights[j] = 0.0
    return gain


@inner()
def _sharp_query(data, terms, start, count, e, query, logits, floor, state, row, exact, chosen, asked):
    """A chunk for a sharp query: every point screened at or above `floor` exactly, in float64 throughout."""
    found = 0
    best = LOWEST
    for j in range(count):
        if not logits[j] < floor and start + j != query.exclude:
            exact[found] = _exact_logit(data, start + j, e, query)
            chosen[found] = start + j
            best = max(best, exact[found])
            found += 1
    if best < state[0] - terms.cut:
        return
    raise_reference(state, row, max(best, state[0]), asked.mean)
    for i in range(found):
        difference = exact[i] - state[0]
        if difference >= -terms.cut:
            weight = exp(difference)
            state[1] += weight
            state[2] += weight * difference
            state[3] += weight * weight
            if asked.mean:
                add_row(data.points[place_of(data.index, chosen[i])], data.centre, weight, row)


@inner()
def add_tile(data, centre, start, count, tile, loads, first, last, columns, sums):
    """`sums += gain sum_j weights_j mu'_j` for the queries first..last-1, where any gain is not zero.

    `loads` are pairs of weights and gain, whose sums lie side by side, each in so many `columns`.
    """
    lanes = lane_count(tile)
    panel = tile.shape[1]
    stride = sums.shape[1]
    for column in range(0, columns, panel):
        width = min(panel, columns - column)
        if columns > panel:  # a single panel is still there from the screening
            _fill_tile(data, centre, start, count, count, column, width, tile)
        for k in range(0, width, 2 * lanes):
            for b in range(first, last, ROWS):
                row, at = b - first, b * stride + column + k
                for weights, gain in loads:
                    if gain[row : row + ROWS].any():
                        weighted_block(sums, at, stride, weights, row * CHUNK, tile, k, count, gain, row)
                    at += columns


@jit()
def _tiles_task(
    data,
    queries,
    e,
    tiles,
    terms,
    screens,
    packed,
    split,
    counter,
    states,
    sums,
    asked,
    tile,
    turned,
    logits,
    weights,
    gain,
    exact,
    chosen,
):
    """Tasks of the `tiles` kernel, until there are none. A task is for whole blocks of ROWS queries."""
    slot, first, last = next_task(counter, split)
    while slot >= 0:
        state, row = states[slot], sums[slot]
        clear(state, row, first, last)
        gain[:] = 0.0
        begin, stop = group_span(data, split.base + slot)
        for start in range(begin, stop, CHUNK):
            count = min(CHUNK, stop - start)
            screen_chunk(data, tiles.centre, start, count, tile, turned, packed, first, last, logits)
            squares = tiles.squares[start : start + count]
            log_mass = tiles.log_mass[start : start + count]
            active = False
            for b in range(first, min(last, queries.size)):
                i = b - first
                query, screen = queries[b], screens[b]
                best = _finish_logits(logits[i], count, screen.half_square, squares, log_mass, screen.mass_factor)
                dead = logits.dtype.type(-np.inf if screen.window >= 0.0 else -NARROW_DEAD)
                best = leave_out(logits[i], count, query.exclude - start, dead, best)
                if screen.window >= 0.0:
                    _sharp_query(
                        data,
                        terms,
                        start,
                        count,
                        e[b],
                        query,
                        logits[i],
                        np.float64(best) - screen.window,
                        state[b],
                        row[b],
                        exact,
                        chosen,
                        asked,
                    )
                else:
                    gain[i] = _smooth_query(
                        data,
                        terms,
                        start,
                        count,
                        e[b],
                        query,
                        screen,
                        squares,
                        logits[i],
                        weights[i],
                        best,
                        state[b],
                        row[b],
                        asked,
                    )
                    active |= gain[i] > 0.0
            if asked.mean and active:
                columns = packed.shape[1]
                add_tile(data, tiles.centre, start, count, tile, ((weights, gain),), first, last, columns, row)
        slot, first, last = next_task(counter, split)


class TilePlan(Plan):
    """The plan of the `tiles` kernel."""

    kernel = staticmethod(_tiles_task)
    rows = ROWS

    def __init__(self, prepared: Compiled, dtype: np.dtype, count: int):
        self.prepared = prepared
        self.bytes = 4 if dtype == np.float32 and 4 in prepared.tiles else 8
        self.dtype = np.float32 if self.bytes == 4 else np.float64
        pair = 2 * VECTOR_BYTES // self.bytes
        self.padded = -(-prepared.size // pair) * pair  # D, filled up
        columns = self.row_length()
        # Queries of a task: many, because they share the packing of a tile; bounded by the memory of their sums;
        # and even, so that the last task is not a scrap.
        most = min(128, max(32, STATE_BYTES // (8 * columns * max(4, prepared.threads))))
        even = -(-count // max(1, -(-count // most)))
        super().__init__(prepared, CHUNK, max(1, -(-even // ROWS)) * ROWS, columns)

    def row_length(self) -> int:
        """How many numbers a row of sums holds."""
        return self.padded

    def workspace(self) -> tuple:
        panel = PANEL_BYTES // self.bytes
        return (
            aligned((CHUNK, panel), self.dtype),
            aligned((CHUNK * panel,), self.dtype),
            aligned((self.task_queries, CHUNK), self.dtype),
            np.zeros((self.task_queries, CHUNK), self.dtype),
            np.empty(self.task_queries),
            np.empty(CHUNK),
            np.empty(CHUNK, np.int64),
        )

    def prepare(self, queries: Queries, tangent: Tangent | None) -> tuple:
        tiles, terms = self.prepared.tiles[self.bytes], self.prepared.terms[self.bytes]
        count = len(queries.e)
        screens = np.empty(count, SCREEN[self.bytes])
        packed = aligned((-(-count // ROWS), self.padded, ROWS), self.dtype)
        _screen_queries(queries.numbers, queries.e, terms, screens, packed)
        return tiles, terms, screens, packed
