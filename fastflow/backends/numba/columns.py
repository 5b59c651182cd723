"""The `columns` kernel, for few dimensions: float64 residuals, points side by side in a transposed chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..._arrays import LOG_ZERO
from .common import add_chunk, clear, group_span, leave_out, next_task, scale_to_logits
from .plan import Plan
from .vector import SUM, inner, jit

if TYPE_CHECKING:
    from . import Compiled

SMALL_SIZE = 16  # D up to which this kernel serves every batch
COLUMN_CHUNK = 512  # points of a chunk: 8 kB per dimension in float64


@inner()
def fill_columns(data, start, count, columns):
    """`mu'` of a chunk, [dimension][point]."""
    points, index, centre = data.points, data.index, data.centre
    for k in range(centre.size):
        column = columns[k]
        if index.size:
            for j in range(count):
                column[j] = np.float64(points[index[start + j], k]) - centre[k]
        else:
            for j in range(count):
                column[j] = np.float64(points[start + j, k]) - centre[k]


@inner(fastmath=SUM)
def _column_squares(columns, count, e, beta, far, squares):
    """`|e - beta mu'|^2` of a chunk, or without `|e|^2` for a far query."""
    for k in range(e.size):
        column = columns[k]
        value = e[k]
        if far:
            if k == 0:
                for j in range(count):
                    moved = beta * column[j]
                    squares[j] = moved * (moved - 2.0 * value)
            else:
                for j in range(count):
                    moved = beta * column[j]
                    squares[j] += moved * (moved - 2.0 * value)
        elif k == 0:
            for j in range(count):
                residual = value - beta * column[j]
                squares[j] = residual * residual
        else:
            for j in range(count):
                residual = value - beta * column[j]
                squares[j] += residual * residual


@inner(fastmath=SUM)
def _add_columns(columns, count, weights, row):
    """`row += sum_j weights_j mu'_j`."""
    for k in range(columns.shape[0]):
        column = columns[k]
        total = 0.0
        for j in range(count):
            total += weights[j] * column[j]
        row[k] += total


@jit()
def _columns_task(data, queries, e, split, counter, states, sums, asked, columns, logits, weights):
    """Tasks of the `columns` kernel, until there are none."""
    slot, first, last = next_task(counter, split)
    while slot >= 0:
        state, row = states[slot], sums[slot]
        clear(state, row, first, last)
        begin, stop = group_span(data, split.base + slot)
        for start in range(begin, stop, COLUMN_CHUNK):
            count = min(COLUMN_CHUNK, stop - start)
            fill_columns(data, start, count, columns)
            for b in range(first, last):
                query = queries[b]
                _column_squares(columns, count, e[b], query.beta, query.far, logits)
                best = scale_to_logits(logits, count, query.half, data.log_mass, start)
                best = leave_out(logits, count, query.exclude - start, LOG_ZERO, best)
                add_chunk(logits, weights, count, best, state[b], row[b], asked)
                if asked.mean:
                    _add_columns(columns, count, weights, row[b])
        slot, first, last = next_task(counter, split)


@jit()
def _columns_logits(data, queries, e, start, stop, out, out_at, columns):
    """Logits of the points start..stop-1, into the columns from `out_at` on."""
    for chunk in range(start, stop, COLUMN_CHUNK):
        count = min(COLUMN_CHUNK, stop - chunk)
        fill_columns(data, chunk, count, columns)
        for b in range(e.shape[0]):
            logits = out[b, out_at : out_at + count]
            _column_squares(columns, count, e[b], queries[b].beta, queries[b].far, logits)
            scale_to_logits(logits, count, queries[b].half, data.log_mass, chunk)
        out_at += count


class Columns(Plan):
    """The plan of the `columns` kernel."""

    kernel = staticmethod(_columns_task)
    logits = staticmethod(_columns_logits)

    def __init__(self, prepared: Compiled):
        super().__init__(prepared, COLUMN_CHUNK, 256, prepared.size)

    def workspace(self) -> tuple:
        return *self.logits_workspace(), np.empty(COLUMN_CHUNK), np.empty(COLUMN_CHUNK)

    def logits_workspace(self) -> tuple:
        return (np.empty((self.columns, COLUMN_CHUNK)),)
