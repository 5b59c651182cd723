"""The `rows` kernel, for few queries in any dimension: float64 residuals row by row.

Bound by memory bandwidth: a chunk is small enough to stay in cache between the pass for the logits and the pass for
the means. The residual is `(x - alpha m_i) - beta mu` with one rounding, which needs no centre and so reads less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..._arrays import LOG_ZERO
from .. import Tangent
from .common import add_chunk, clear, group_span, leave_out, next_task, place_of, row_product, scale_to_logits
from .plan import Plan
from .vector import SUM, fused, inner, jit

if TYPE_CHECKING:
    from . import Compiled
    from .common import Queries

SMALL_BATCH = 4  # batches up to which this kernel serves many dimensions
ROW_CHUNK_BYTES = 1 << 17  # of one chunk: stays in a core's second cache level between the two passes
ROW_IN_CACHE = 2048  # D up to which `x` in float64 stays in the first cache level while points stream by


@inner(fastmath=SUM)
def _raw_square(row, raw, beta):
    """`|x - alpha m_i - beta mu|^2`."""
    total = 0.0
    for k in range(raw.size):
        residual = fused(-beta, np.float64(row[k]), raw[k])
        total += residual * residual
    return total


@inner()
def _four_places(index, j):
    """The rows of the points j..j+3 in the data."""
    return place_of(index, j), place_of(index, j + 1), place_of(index, j + 2), place_of(index, j + 3)


@inner(fastmath=SUM)
def _four_raw_squares(a, b, c, d, raw, beta):
    """`_raw_square` of four points, which share the reading of `raw`."""
    sa = sb = sc = sd = 0.0
    for k in range(raw.size):
        value = raw[k]
        ra = fused(-beta, np.float64(a[k]), value)
        rb = fused(-beta, np.float64(b[k]), value)
        rc = fused(-beta, np.float64(c[k]), value)
        rd = fused(-beta, np.float64(d[k]), value)
        sa += ra * ra
        sb += rb * rb
        sc += rc * rc
        sd += rd * rd
    return sa, sb, sc, sd


@inner(fastmath=SUM)
def _four_row_products(a, b, c, d, centre, e):
    """`row_product` of four points, which share the reading of `centre` and `e`."""
    sa = sb = sc = sd = 0.0
    for k in range(centre.size):
        middle, value = centre[k], e[k]
        sa += value * (np.float64(a[k]) - middle)
        sb += value * (np.float64(b[k]) - middle)
        sc += value * (np.float64(c[k]) - middle)
        sd += value * (np.float64(d[k]) - middle)
    return sa, sb, sc, sd


@inner()
def _row_squares(data, start, count, raw, query, squares):
    """`|x - alpha m_i - beta mu|^2` of a chunk."""
    points, index, beta = data.points, data.index, query.beta
    whole = 0 if raw.size <= ROW_IN_CACHE else count - count % 4
    for j in range(0, whole, 4):
        a, b, c, d = _four_places(index, start + j)
        squares[j], squares[j + 1], squares[j + 2], squares[j + 3] = _four_raw_squares(
            points[a], points[b], points[c], points[d], raw, beta
        )
    for j in range(whole, count):
        squares[j] = _raw_square(points[place_of(index, start + j)], raw, beta)


@inner()
def _row_expansions(data, start, count, e, query, squares):
    """`|e - beta mu'|^2 - |e|^2` of a chunk."""
    points, index, centre, beta = data.points, data.index, data.centre, query.beta
    whole = 0 if e.size <= ROW_IN_CACHE else count - count % 4
    for j in range(0, whole, 4):
        a, b, c, d = _four_places(index, start + j)
        squares[j], squares[j + 1], squares[j + 2], squares[j + 3] = _four_row_products(
            points[a], points[b], points[c], points[d], centre, e
        )
    for j in range(whole, count):
        squares[j] = row_product(points[place_of(index, start + j)], centre, e)
    for j in range(count):
        squares[j] = beta * (beta * data.squares[start + j] - 2.0 * squares[j])


@inner()
def _row_logits(data, start, count, e, raw, query, logits):
    """Logits of a chunk; returns the largest."""
    if query.far:
        _row_expansions(data, start, count, e, query, logits)
    else:
        _row_squares(data, start, count, raw, query, logits)
    return scale_to_logits(logits, count, query.half, data.log_mass, start)


@inner(fastmath={"contract"})
def add_row(data_row, centre, weight, row):
    """`row += weight mu'`."""
    for k in range(centre.size):
        row[k] += weight * (np.float64(data_row[k]) - centre[k])


@inner(fastmath={"contract"})
def _add_four_rows(a, b, c, d, centre, wa, wb, wc, wd, row):
    for k in range(centre.size):
        middle = centre[k]
        total = row[k]
        total += wa * (np.float64(a[k]) - middle)
        total += wb * (np.float64(b[k]) - middle)
        total += wc * (np.float64(c[k]) - middle)
        total += wd * (np.float64(d[k]) - middle)
        row[k] = total


@inner()
def _add_rows(data, start, count, weights, row):
    """`row += sum_j weights_j mu'_j`, four points at a time so that `row` is read and written less often."""
    points, index, centre = data.points, data.index, data.centre
    whole = count - count % 4
    for j in range(0, whole, 4):
        wa, wb, wc, wd = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        if wa + wb + wc + wd > 0.0:
            a, b, c, d = _four_places(index, start + j)
            _add_four_rows(points[a], points[b], points[c], points[d], centre, wa, wb, wc, wd, row)
    for j in range(whole, count):
        if weights[j] > 0.0:
            add_row(points[place_of(index, start + j)], centre, weights[j], row)


@jit()
def _rows_task(data, queries, e, raw, split, counter, states, sums, asked, logits, weights):
    """Tasks of the `rows` kernel, until there are none."""
    slot, first, last = next_task(counter, split)
    while slot >= 0:
        state, row = states[slot], sums[slot]
        clear(state, row, first, last)
        begin, stop = group_span(data, split.base + slot)
        for start in range(begin, stop, logits.size):
            count = min(logits.size, stop - start)
            for b in range(first, last):
                best = _row_logits(data, start, count, e[b], raw[b], queries[b], logits)
                best = leave_out(logits, count, queries[b].exclude - start, LOG_ZERO, best)
                add_chunk(logits, weights, count, best, state[b], row[b], asked)
                if asked.mean:
                    _add_rows(data, start, count, weights, row[b])
        slot, first, last = next_task(counter, split)


@jit()
def _rows_logits(data, queries, e, raw, start, stop, out, out_at, chunk):
    """Logits of the points start..stop-1, into the columns from `out_at` on."""
    for begin in range(start, stop, chunk):
        count = min(chunk, stop - begin)
        for b in range(e.shape[0]):
            _row_logits(data, begin, count, e[b], raw[b], queries[b], out[b, out_at : out_at + count])
        out_at += count


class Rows(Plan):
    """The plan of the `rows` kernel."""

    kernel = staticmethod(_rows_task)
    logits = staticmethod(_rows_logits)
    takes_raw = True

    def __init__(self, prepared: Compiled):
        self.chunk = max(4, ROW_CHUNK_BYTES // prepared.points[0].nbytes // 4 * 4)
        super().__init__(prepared, self.chunk, SMALL_BATCH, prepared.size)

    def workspace(self) -> tuple:
        return np.empty(self.chunk), np.empty(self.chunk)

    def prepare(self, queries: Queries, tangent: Tangent | None) -> tuple:
        return (queries.raw,)

    def logits_workspace(self) -> tuple:
        return (self.chunk,)
