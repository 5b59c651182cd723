"""The numba backend: tiles, online log-sum-exp and threads, compiled when first called.

What is computed. With the data's centre `c`, `mu' = mu - c` and `e = x - alpha m_i - beta c` (float64, the rounding
errors of its products put back), the residual of point j is `r_j = e - beta mu'_j` and its logit, short of the
constants that are added at the end, is `log C_j - |r_j|^2 / (2 D)`. A shift of the data therefore costs no digits.

How the work is cut. The points are cut into at most `GROUPS` groups and each group into chunks, by N and D alone. A
task is a group for some of the queries: it goes through its chunks in order and keeps per query the reference m, the
sums `Z = sum p`, `sum p (l - m)`, `sum p^2` and `S = sum p mu'`, with `p = exp(l - m)`, rescaled whenever a chunk
raises m. Groups are then folded in their order. Which thread ran which task, and which queries share a task, enter
nowhere, so a result is bitwise the same for every number of threads and every split of a batch.

Five kernels, chosen by D, the number of queries and what is asked for. Where all points share one variance:

- `columns`, D <= SMALL_SIZE: float64 residuals, points side by side in the lanes of a transposed chunk.
- `rows`, up to SMALL_BATCH queries of any larger D: float64 residuals row by row.
- `tiles`, everything else: matrix products in float32 or float64, and residuals where those are not exact enough.

`point_tiles` is `tiles` for points that differ in variance, and `pairs` computes every moment for variances of every
kind, from float64 residuals.

Far from the data, `|e| > 2 beta max|mu'|`, it is the residuals that cancel, in the differences of their squares. Where
that shows, every exact logit is that of `|r_j|^2 - |e|^2 = beta (beta |mu'_j|^2 - 2 e.mu'_j)`, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np

from ..._arrays import LOG_ZERO
from ...moments import NAMES, VECTORS, Moments
from .. import Backend, Points, Tangent, Want
from ..cores import threads_of_call, usable_cores
from .blocks import ROWS
from .columns import COLUMN_CHUNK, SMALL_SIZE, Columns
from .common import (
    DIRECTIONS,
    POINTS,
    QUERY,
    SHARED,
    TURNED,
    Asked,
    Queries,
    Split,
    Widths,
    aligned,
    centre_queries,
    clear,
    point_squares,
    read_only,
    spans,
    sum_points,
)
from .pairs import Pairs
from .plan import GROUPS, STATE_BYTES, Plan
from .point_tiles import PointTilePlan
from .rows import SMALL_BATCH, Rows
from .threads import run as _run
from .tiles import NARROW_DEAD, NARROW_RANGE, TilePlan, Tiles, terms
from .vector import VECTOR_BYTES
from .vector import exp as _exp
from .vector import jit as _jit

# Names with an underscore, and ROWS, are here for the tests.
__all__ = ["ROWS", "SMALL_BATCH", "SMALL_SIZE", "Compiled", "TilePlan", "_exp", "_jit", "_run", "load", "numba"]

SERIAL_WORK = 200_000  # pairs times (D + EXP_WORK) below which waking a thread costs more than it saves
EXP_WORK = 16  # cost of one exponential, in multiplications


def load() -> Backend:
    return Backend(
        prepare=lambda points, isa, num_threads: Compiled(points, num_threads),
        detail=f"numba {numba.__version__}, vectors of {VECTOR_BYTES} bytes",
    )


class Compiled:
    """A data set in the hands of the compiled kernels (see `Prepared`)."""

    def __init__(self, points: Points, num_threads: int | None):
        points = points.converted()
        data = self.points = read_only(points.data)
        self.index = read_only(np.empty(0, np.int64) if points.index is None else points.index)
        self.count, self.size = points.count, data.shape[1]
        self.small_batch = SMALL_BATCH if self.size > SMALL_SIZE else 0
        self.own_threads = num_threads or usable_cores()
        self.source_mean = np.empty(0) if points.source_mean is None else points.source_mean
        self.log_mass = np.empty(0) if points.log_mass is None else points.log_mass
        self.constant = -math.log(self.count) if points.log_mass is None else 0.0
        self.widths = _widths(points)

        rows = data, self.index
        parts = spans(0, self.count, -(-self.count // GROUPS))
        totals = np.zeros((len(parts), self.size))
        self._run(sum_points, [(*rows, *part, total) for part, total in zip(parts, totals, strict=True)], self.count)
        # In the dtype of the data, so that the difference of a point and the centre has one rounding at most.
        first = data[self.index[0] if len(self.index) else 0]
        centre = (first + totals.sum(axis=0) / self.count).astype(data.dtype)
        self.centre = centre.astype(np.float64)
        squares = self.squares = np.empty(self.count)
        self._run(point_squares, [(*rows, self.centre, *part, squares) for part in parts], self.count)
        self.largest, typical = math.sqrt(squares.max()), math.sqrt(squares.mean())
        self.tiles = {8: Tiles(self.centre, self.log_mass, squares)}
        if data.dtype == np.float32 and NARROW_RANGE[0] < self.largest < NARROW_RANGE[1]:
            # A point without mass stays below all others in float32 too: as t -> 1 by the square, else by the mass.
            narrow = squares.astype(np.float32)
            narrow[: self.log_mass.size][self.log_mass < 0.1 * LOG_ZERO] = NARROW_DEAD
            masses = np.maximum(self.log_mass, -NARROW_DEAD).astype(np.float32)
            self.tiles[4] = Tiles(centre, masses, narrow)
        mass = float(np.max(np.abs(self.log_mass), where=self.log_mass > 0.1 * LOG_ZERO, initial=0.0))
        self.terms = {size: terms(size, self.count, self.largest, typical, mass) for size in self.tiles}

    def moments(self, x: np.ndarray, coefficients: np.ndarray, want: Want) -> Moments:
        differ = self.widths.kind != SHARED
        asked = Asked(want.mean, want.spread, want.trace, want.tangent is not None, differ)
        names = _asked_names(asked)
        outputs = {}
        for name in NAMES:
            whole = x.shape if name in VECTORS else x.shape[:1]
            shape = whole if name in names else (0, *whole[1:])
            outputs[name] = np.empty(shape, x.dtype if name in VECTORS else np.float64)
        plan = self._plan(x, asked)
        step = plan.queries_at_a_time()
        for first, last in spans(0, len(x), step):
            some = slice(first, last)
            cut = want.tangent and Tangent(want.tangent.direction[some], want.tangent.factors[:, some])
            exclude = None if want.exclude is None else want.exclude[some]
            queries = self._queries(plan, x[some], _columns(coefficients, some), exclude)
            parts = {name: array[some] if len(array) else array for name, array in outputs.items()}
            plan.finish(queries, *self._total(plan, queries, asked, plan.prepare(queries, cut)), parts)
        return Moments(**{name: outputs[name] for name in names})

    def logits(self, x: np.ndarray, coefficients: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Logits less what is the same for all points of a query, which would round off their differences."""
        if self.widths.kind != SHARED:
            plan = Pairs(self, Asked(False, False, False, False, True))
        else:
            plan = Columns(self) if self.size <= SMALL_SIZE else Rows(self)
        queries = self._queries(plan, x, coefficients, None)
        fixed = plan.data, queries.numbers, queries.e, *plan.prepare(queries, None)
        out = np.empty((len(x), stop - start))
        step = max(COLUMN_CHUNK, -(-(stop - start) // GROUPS))
        tasks = [(*fixed, *span, out, span[0] - start) for span in spans(start, stop, step)]
        self._run(plan.logits, tasks, len(x) * (stop - start), plan.logits_workspace)
        return out

    def _plan(self, x: np.ndarray, asked: Asked) -> Plan:
        """The kernel for these queries."""
        few = self.size <= SMALL_SIZE or len(x) <= SMALL_BATCH
        if asked.trace or asked.tangent or (asked.differ and (few or self.widths.kind != POINTS)):
            return Pairs(self, asked)
        if few:
            return Columns(self) if self.size <= SMALL_SIZE else Rows(self)
        return (PointTilePlan if asked.differ else TilePlan)(self, x.dtype, len(x))

    def _queries(self, plan: Plan, x: np.ndarray, coefficients: np.ndarray, exclude: np.ndarray | None) -> Queries:
        x = read_only(x)
        queries = Queries(
            np.zeros(len(x), QUERY), np.empty(x.shape), np.empty(x.shape if plan.takes_raw else (1, x.shape[1]))
        )
        exclude = read_only(np.empty(0, np.int64) if exclude is None else exclude)
        data = self.source_mean, self.centre, self.largest, self.constant, self.widths, exclude
        centre_queries(x, coefficients, *data, queries.numbers, queries.e, queries.raw)
        return queries

    def _total(self, plan: Plan, queries: Queries, asked: Asked, extra: tuple) -> tuple[np.ndarray, np.ndarray]:
        """States and sums over all the data for one block of queries: as many groups at a time as memory is given.
        `extra` is what the plan prepared for them."""
        count = len(queries.e)
        rows = -(-count // plan.rows) * plan.rows
        columns = plan.columns if asked.mean else 0
        slots = min(plan.groups, max(self.threads, STATE_BYTES // (8 * rows * max(columns, 4))))
        states, sums = np.empty((slots + 1, rows, plan.numbers)), aligned((slots + 1, rows, columns), np.float64)
        clear(states[slots], sums[slots], 0, rows)
        work = self.count * count
        for base in range(0, plan.groups, slots):
            held = min(slots, plan.groups - base)
            split = Split(base, held, rows, plan.task_queries)
            task = (plan.data, queries.numbers, queries.e, *extra, split, np.zeros(1, np.int64), states, sums, asked)
            tasks = held * -(-rows // plan.task_queries)
            self._run(plan.kernel, [task] * min(self.threads, tasks), work, plan.workspace)
            folds = spans(0, rows, max(ROWS, -(-rows // GROUPS)))
            fold = (states, sums, held, states[slots], sums[slots], asked)
            self._run(plan.fold, [(*fold, *span) for span in folds], held * rows)
        return states[slots], sums[slots]

    @property
    def threads(self) -> int:
        """How many threads a call takes."""
        return threads_of_call(self.own_threads)

    def _run(self, task: Callable, tasks: list[tuple], work: int, workspace: Callable = tuple) -> None:
        """`_run` on this field's threads, or on the caller's alone for little work (pairs of query and point)."""
        little = work * (self.size + EXP_WORK) < SERIAL_WORK
        _run(task, tasks, 1 if little else self.threads, workspace)


def _widths(points: Points) -> Widths:
    """How the points differ in variance."""
    values, rotation, log_ratio = points.variance, points.rotation, 0.0
    if values is None:
        kind, values, largest = SHARED, np.empty(0), np.empty(0)
    elif rotation is not None:
        kind, largest = TURNED, values.max(keepdims=True)[0]
    elif values.ndim == 1:
        kind, largest, smallest = POINTS, values.max(keepdims=True), float(values.min())
        log_ratio = math.log(largest[0]) - math.log(smallest) if smallest > 0.0 else math.inf
    else:
        kind, largest = DIRECTIONS, values[0]
    rotation = np.empty((0, 0, 0)) if rotation is None else rotation
    values, largest, rotation = (
        read_only(np.ascontiguousarray(array)) for array in (values.reshape(-1), largest, rotation)
    )
    return Widths(kind, values, largest, log_ratio, rotation)


def _asked_names(asked: Asked) -> list[str]:
    """The moments that are computed."""
    differ = asked.differ
    names = ["log_total"]
    names += ["mean", "residual", *["gain", "gained"] * differ] * asked.mean
    names += ["entropy", "collision"] * asked.spread
    names += ["trace", *["cross", "gained_trace"] * differ] * asked.trace
    names += ["tilt", "mean_product", *["gained_product", "gain_product"] * differ] * asked.tangent
    return names


def _columns(coefficients: np.ndarray, some: slice) -> np.ndarray:
    """The coefficients of some queries."""
    return np.ascontiguousarray(coefficients[:, some]) if coefficients.shape[1] > 1 else coefficients
