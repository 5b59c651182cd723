"""The numba backend: tiles, online log-sum-exp and threads, compiled when first called.

What is computed. With the data's centre `c`, `mu' = mu - c` and `e = x - alpha m_i - beta c` (float64, the rounding
errors of its products put back), the residual of point j is `r_j = e - beta mu'_j` and its logit, short of the
constants that are added at the end, is `log C_j - |r_j|^2 / (2 D)`. A shift of the data therefore costs no digits.

How the work is cut. The points are cut into at most `GROUPS` groups and each group into chunks, by N and D alone. A
task is a group for some of the queries: it goes through its chunks in order and keeps per query the reference m, the
sums `Z = sum p`, `sum p (l - m)`, `sum p^2` and `S = sum p mu'`, with `p = exp(l - m)`, rescaled whenever a chunk
raises m. Groups are then folded in their order. Which thread ran which task, and which queries share a task, enter
nowhere, so a result is bitwise the same for every number of threads and every split of a batch.

Three kernels, chosen by D and the number of queries:

- `columns`, D <= SMALL_SIZE: float64 residuals, points side by side in the lanes of a transposed chunk.
- `rows`, up to SMALL_BATCH queries of any larger D: float64 residuals row by row. Bound by memory bandwidth: a chunk
  is small enough to stay in cache between the pass for the logits and the pass for the means.
- `tiles`, everything else: two register-blocked matrix products per chunk in the compute dtype T (float32 if data
  and queries are, else float64). Logits come from the expanded square, `a = q.mu' - h |mu'|^2 + log C` with
  `q = (beta / D) e` and `h = beta^2 / (2 D)`; the means from `sum p mu'`, in T within a chunk and float64 beyond.

Exactness on demand in `tiles`. The expanded square cancels as t -> 1. A query is *sharp* if the rounding error of its
logits can exceed SHARP_ERROR or if its mean must keep more digits than T has. For a sharp query the product only
screens: every point within the rigorous rounding bound of the best is recomputed from its float64 residual and summed
in float64. For the others, *smooth*, only those pairs are recomputed whose own rounding error shows in the result, and
where a float32 query may sit on a single point, so that little is left of its residual, the heavy points of a chunk
are summed in float64.

Far from the data, `|e| > 2 beta max|mu'|`, it is the residuals that cancel, in the differences of their squares. Where
that shows, every exact logit is that of `|r_j|^2 - |e|^2 = beta (beta |mu'_j|^2 - 2 e.mu'_j)`, in float64.

Threads are Python's own; the compiled code releases the GIL. Unlike numba's threading layers this pool may be
used by several callers at once and after a fork, and takes any number of threads. A worker enters compiled code once
and takes tasks from a shared counter there.
"""

from __future__ import annotations

import math
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

from .._arrays import LOG_ZERO
from ..moments import Moments
from . import Backend, Points, Want, usable_cores

# --- sizes -----------------------------------------------------------------------------------------------------------

SMALL_SIZE = 16  # D up to which `columns` serves every batch
SMALL_BATCH = 4  # batches up to which `rows` serves D > SMALL_SIZE; the tiles of `tiles` hold ROWS queries at least
GROUPS = 32  # tasks per block of queries: enough to keep the threads of a large machine even
COLUMN_CHUNK = 512  # points of a chunk of `columns`: 8 kB per dimension in float64
ROW_CHUNK_BYTES = 1 << 17  # of one chunk of `rows`: stays in a core's second cache level between the two passes
ROW_IN_CACHE = 2048  # D up to which `x` in float64 stays in the first cache level while points stream by
CHUNK = 256  # points of a chunk of `tiles`
PANEL_BYTES = 512  # bytes of one point in a tile: with CHUNK points 128 kB, and short float32 sums
STATE_BYTES = 24 << 20  # of the partial sums that are held at a time
SERIAL_WORK = 200_000  # pairs times (D + EXP_WORK) below which waking a thread costs more than it saves
EXP_WORK = 16  # cost of one exponential, in multiplications

# --- accuracy --------------------------------------------------------------------------------------------------------

SHARP_ERROR = 0.25  # bound on the error of a logit beyond which a query is sharp
SHARP_RATIO = {4: 8.0, 8: 500.0}  # by bytes of T: beta |mu'| over sqrt(D d) up to which sums of mu' in T suffice
PAIR_ERROR = {4: 2e-6, 8: 5e-14}  # by bytes of T: error of the weighted sums that one pair may cause
TYPICAL_ERROR = 0.5  # of a dot product, in units of its roundoff u times its size
LONELY_GAP = {4: 9.0, 8: np.inf}  # beta^2 |mu'|^2 / D from which a float32 query on a point may see little else
FEW_WEIGHTS, HEAVY_WEIGHT = 4.0, 0.125  # such a query's weights above this, in a chunk of so few, are summed in float64
NEGLIGIBLE = {4: 18.0, 8: 38.0}  # by bytes of T: weights below exp(-this) / N of the largest are dropped
FAR_LOGIT, FAR_SIZE = 100.0, 2000  # size of a logit, beside a typical D / 2 for D up to this, whose rounding is seen
LOWEST = -1e307  # stands for log 0 in references: finite, so that differences are not NaN
NARROW_DEAD = 1e30  # float32 stand-in for infinity
NARROW_RANGE = 1e-12, 1e14  # largest |mu'| between which squares stay well inside float32

_SUM = {"reassoc", "contract", "nsz"}  # what a vectorised sum needs; NaN and infinity keep their meaning


# What numba compiles for: its choice, which NUMBA_CPU_FEATURES may override.
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
VECTOR_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx" in _FEATURES else 16
FUSED = "+fma" in _FEATURES if _X86 else True  # whether there is a fused multiply-add
ROWS = 8 if VECTOR_BYTES == 64 else 4  # queries of a register block: with two vectors each, 16 or 8 accumulators


def _jit(**options):
    """`numba.njit` without the GIL, cached on disk where there is a place for it."""

    def decorate(function):
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **settings)(function)
        except RuntimeError:  # no directory to write the cache into
            return numba.njit(**settings)(function)

    return decorate


# --- vector code that loops would not give reliably ------------------------------------------------------------------


def _pointer(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _vector_at(builder, pointer, offset, vector):
    return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())


def _splat(builder, vector, value):
    lane = ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _multiply_add(builder, a, b, c):
    """`a b + c`, fused where the machine can."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _zero_accumulators(builder, vector):
    """ROWS x 2 vectors, in registers once LLVM has promoted them."""
    slots = [[cgutils.alloca_once(builder, vector) for _ in range(2)] for _ in range(ROWS)]
    for slot in (slot for row in slots for slot in row):
        builder.store(ir.Constant(vector, [0.0] * vector.count), slot)
    return slots


def _accumulate(builder, slots, pointer, row_offset, pair):
    """Add `scalar[row] * pair` to every row's two accumulators; the row's scalar lies at `row_offset(row)`."""
    for row, slot_pair in enumerate(slots):
        scalar = builder.load(builder.gep(pointer, [row_offset(row)]))
        scalar = _splat(builder, pair[0].type, scalar)
        for slot, vector in zip(slot_pair, pair, strict=True):
            builder.store(_multiply_add(builder, scalar, vector, builder.load(slot)), slot)


def _lanes(dtype) -> int:
    return VECTOR_BYTES // (dtype.bitwidth // 8)


@intrinsic
def _lane_count(typing_context, array):
    """Elements of the array's dtype in a vector register, as a constant."""

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.intp, _lanes(array.dtype))

    return types.intp(array), generate


@intrinsic
def _larger(typing_context, a, b):
    """The larger of two numbers, neither NaN. Unlike `max` it says so on every instruction, so that loops vectorise."""

    def generate(context, builder, signature, arguments):
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *arguments, flags=flags), *arguments, flags=flags)

    return (a(a, b), generate) if a == b else None


@intrinsic
def _take(typing_context, counter):
    """The counter's value, which one thread gets, and one more for the next."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, counter, arguments[0])
        return builder.atomic_rmw("add", pointer, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def _fused_multiply_add(typing_context, a, b, c):
    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return (a(a, b, c), generate) if a == b == c else None


@_jit(forceinline=True)
def _emulated_multiply_add(a, b, c):
    """Dekker's two-product on Veltkamp's split: 2^27 + 1 cuts a float64 into halves whose products are exact."""
    a_high = 134217729.0 * a
    a_high = a_high - (a_high - a)
    b_high = 134217729.0 * b
    b_high = b_high - (b_high - b)
    a_low, b_low = a - a_high, b - b_high
    product = a * b
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return (product + c) + error


# `a b + c` in float64 without the rounding of the product.
_fused = _fused_multiply_add if FUSED else _emulated_multiply_add


@intrinsic
def _power_of_two(typing_context, shifted):
    """`2^n` for the n that was left in the low bits of `shifted` by adding 1.5 * 2^(bits of the significand)."""

    def generate(context, builder, signature, arguments):
        bits, significand, bias = (32, 23, 127) if shifted.bitwidth == 32 else (64, 52, 1023)
        integer = ir.IntType(bits)
        exponent = builder.shl(builder.bitcast(arguments[0], integer), ir.Constant(integer, significand))
        exponent = builder.add(exponent, ir.Constant(integer, bias << significand))
        return builder.bitcast(exponent, context.get_value_type(shifted))

    return shifted(shifted), generate


@intrinsic
def _transpose_block(typing_context, out, out_at, out_stride, source, source_at, source_stride):
    """Transpose a square of as many rows as a vector has lanes: log2 rounds of interleaving rows i and i + half."""

    def generate(context, builder, signature, arguments):
        _, out_at, out_stride, _, source_at, source_stride = arguments
        to = _pointer(context, builder, out, arguments[0])
        origin = _pointer(context, builder, source, arguments[3])
        lanes, size = _lanes(out.dtype), out.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(out.dtype), lanes)

        def offset(start, stride, row):
            return builder.add(start, builder.mul(stride, ir.Constant(stride.type, row)))

        rows = [
            builder.load(_vector_at(builder, origin, offset(source_at, source_stride, i), vector), align=size)
            for i in range(lanes)
        ]
        mask = ir.VectorType(ir.IntType(32), lanes)
        order = [lane for i in range(lanes) for lane in (i, i + lanes)]
        low, high = (ir.Constant(mask, order[part : part + lanes]) for part in (0, lanes))
        for _ in range(lanes.bit_length() - 1):
            pairs = [(rows[i], rows[i + lanes // 2]) for i in range(lanes // 2)]
            rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in (low, high)]
        for i, row in enumerate(rows):
            builder.store(row, _vector_at(builder, to, offset(out_at, out_stride, i), vector), align=size)
        return context.get_dummy_value()

    integers = types.intp
    return types.void(out, integers, integers, source, integers, integers), generate


@intrinsic
def _dot_block(typing_context, out, out_at, queries, queries_at, points, points_at, count, fresh):
    """Dot products of ROWS queries with two vectors of points over `count` columns.

    `queries` lie as [column][ROWS], `points` as [column][2 vectors], `out` as [row][CHUNK]; `fresh` overwrites,
    otherwise the sums are added. Every product is its own sequence of multiply-adds, wherever it lies in the block.
    """

    def generate(context, builder, signature, arguments):
        _, out_at, _, queries_at, _, points_at, count, fresh = arguments
        to = _pointer(context, builder, out, arguments[0])
        query = _pointer(context, builder, queries, arguments[2])
        point = _pointer(context, builder, points, arguments[4])
        lanes, size = _lanes(out.dtype), out.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(out.dtype), lanes)
        integer = out_at.type

        def plus(a, b):
            return builder.add(a, b if isinstance(b, ir.Value) else ir.Constant(integer, b))

        slots = _zero_accumulators(builder, vector)
        with cgutils.for_range(builder, count) as loop:
            at = plus(points_at, builder.mul(loop.index, ir.Constant(integer, 2 * lanes)))
            pair = [builder.load(_vector_at(builder, point, plus(at, v * lanes), vector), align=size) for v in range(2)]
            first = plus(queries_at, builder.mul(loop.index, ir.Constant(integer, ROWS)))
            _accumulate(builder, slots, query, lambda row: plus(first, row), pair)
        zero = ir.Constant(vector, [0.0] * lanes)
        for row, slot_pair in enumerate(slots):
            for v, slot in enumerate(slot_pair):
                place = _vector_at(builder, to, plus(out_at, row * CHUNK + v * lanes), vector)
                before = builder.select(fresh, zero, builder.load(place, align=size))
                builder.store(builder.fadd(before, builder.load(slot)), place, align=size)
        return context.get_dummy_value()

    integers = types.intp
    arguments = (out, integers, queries, integers, points, integers, integers, types.boolean)
    return types.void(*arguments), generate


@intrinsic
def _weighted_block(
    typing_context, out, out_at, out_stride, weights, weights_at, points, points_at, count, gain, row_at
):
    """`out += gain sum_j weights_j points_j` for ROWS queries and two vectors of columns.

    `weights` lie as [row][CHUNK], `points` as [point][panel]; the sum is in their dtype, `out` is float64.
    """

    def generate(context, builder, signature, arguments):
        _, out_at, out_stride, _, weights_at, _, points_at, count, _, row_at = arguments
        to, weight, point, gains = (
            _pointer(context, builder, kind, arguments[i])
            for i, kind in ((0, out), (3, weights), (5, points), (8, gain))
        )
        lanes, size = _lanes(points.dtype), points.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(points.dtype), lanes)
        wide = ir.VectorType(ir.DoubleType(), lanes)
        integer = out_at.type

        def plus(a, b):
            return builder.add(a, b if isinstance(b, ir.Value) else ir.Constant(integer, b))

        slots = _zero_accumulators(builder, vector)
        with cgutils.for_range(builder, count) as loop:
            at = plus(points_at, builder.mul(loop.index, ir.Constant(integer, PANEL_BYTES // size)))
            pair = [builder.load(_vector_at(builder, point, plus(at, v * lanes), vector), align=size) for v in range(2)]
            first = plus(weights_at, loop.index)
            _accumulate(builder, slots, weight, lambda row: plus(first, row * CHUNK), pair)
        for row, slot_pair in enumerate(slots):
            factor = _splat(builder, wide, builder.load(builder.gep(gains, [plus(row_at, row)])))
            start = plus(out_at, builder.mul(out_stride, ir.Constant(integer, row)))
            for v, slot in enumerate(slot_pair):
                place = _vector_at(builder, to, plus(start, v * lanes), wide)
                total = builder.load(slot) if size == 8 else builder.fpext(builder.load(slot), wide)
                before = builder.load(place, align=8)
                builder.store(_multiply_add(builder, factor, total, before), place, align=8)
        return context.get_dummy_value()

    integers = types.intp
    places = (out, integers, integers, weights, integers, points, integers, integers, gain, integers)
    return types.void(*places), generate


# --- the exponential -------------------------------------------------------------------------------------------------


def _exponential(kind, lowest, shift, high, low, terms):
    """`exp(x)` for x of moderate size above zero, 0 below `lowest`: plain arithmetic, so that loops vectorise.

    x = n log 2 + r, with n left in the low bits of a shifted sum and log 2 as a short `high` part, whose multiples
    are exact, and a `low` part; `exp(r)`, |r| <= 0.35, by its series.
    """
    lowest, shift, inverse, high, low = (kind(v) for v in (lowest, shift, 1.0 / math.log(2.0), high, low))
    series = tuple(kind(1.0 / math.factorial(k)) for k in range(terms, -1, -1))
    return lowest, shift, inverse, high, low, series


_LOWEST32, _SHIFT32, _INVERSE32, _HIGH32, _LOW32, _SERIES32 = _exponential(
    np.float32, -87.0, 1.5 * 2.0**23, 0.693359375, -2.12194440e-4, 7
)
_LOWEST64, _SHIFT64, _INVERSE64, _HIGH64, _LOW64, _SERIES64 = _exponential(
    np.float64, -708.0, 1.5 * 2.0**52, 6.93147180369123816490e-01, 1.90821492927058770002e-10, 13
)


def _exp(x):
    raise NotImplementedError("compiled code only")


@overload(_exp, jit_options={"fastmath": {"contract"}, "forceinline": True})
def _exp_by_dtype(x):
    if x == types.float32:

        def exp32(x):
            bounded = x if x > _LOWEST32 else _LOWEST32
            shifted = bounded * _INVERSE32 + _SHIFT32
            n = shifted - _SHIFT32
            r = (bounded - n * _HIGH32) - n * _LOW32
            value = _SERIES32[0]
            for k in range(1, 8):
                value = value * r + _SERIES32[k]
            value *= _power_of_two(shifted)
            return value if x > _LOWEST32 else np.float32(0.0)

        return exp32

    def exp64(x):
        bounded = x if x > _LOWEST64 else _LOWEST64
        shifted = bounded * _INVERSE64 + _SHIFT64
        n = shifted - _SHIFT64
        r = (bounded - n * _HIGH64) - n * _LOW64
        value = _SERIES64[0]
        for k in range(1, 14):
            value = value * r + _SERIES64[k]
        value *= _power_of_two(shifted)
        return value if x > _LOWEST64 else 0.0

    return exp64


# --- queries and data, once ------------------------------------------------------------------------------------------


@_jit()
def _centre_query(x, alpha, beta, source_mean, centre, e, raw):
    """`e = x - alpha m_i - beta c` with the errors of both products put back; `raw` leaves out the last term."""
    if source_mean.size:
        for k in range(e.size):
            mean = alpha * source_mean[k]
            mean_error = _fused(alpha, source_mean[k], -mean)
            shift = beta * centre[k]
            error = mean_error + _fused(beta, centre[k], -shift)
            value = np.float64(x[k]) - mean
            e[k] = (value - shift) - error
            raw[k] = value - mean_error
    else:
        for k in range(e.size):
            shift = beta * centre[k]
            value = np.float64(x[k])
            e[k] = (value - shift) - _fused(beta, centre[k], -shift)
            raw[k] = value


@_jit(fastmath=_SUM)
def _square(vector):
    total = 0.0
    for k in range(vector.size):
        total += vector[k] * vector[k]
    return total


@_jit()
def _centre_queries(x, coefficients, source_mean, centre, largest, constant, queries, e, raw):
    """The vectors and numbers of every query.

    `constant` is what all logits lack of their masses, `largest` the largest |mu'|. `raw` may have a single row.
    """
    for b in range(x.shape[0]):
        alpha, beta, variance = coefficients[:, min(b, coefficients.shape[1] - 1)]
        _centre_query(x[b], alpha, beta, source_mean, centre, e[b], raw[min(b, raw.shape[0] - 1)])
        query = queries[b]
        query.beta = beta
        query.variance = variance
        query.half = 0.5 / variance
        query.square = _square(e[b])
        query.far = math.sqrt(query.square) > 2.0 * beta * largest
        query.far &= query.half * query.square > FAR_LOGIT + min(x.shape[1], FAR_SIZE)
        query.offset = constant - 0.5 * x.shape[1] * math.log(variance)
        if query.far:
            query.offset -= query.half * query.square


@_jit(fastmath=_SUM)
def _sum_points(data, start, stop, total):
    """Sum of the points start..stop-1, relative to the first of them all: a mean that a shift does not harm."""
    first = data[0]
    for j in range(start, stop):
        row = data[j]
        for k in range(total.size):
            total[k] += np.float64(row[k]) - np.float64(first[k])


@_jit(fastmath=_SUM)
def _point_squares(data, centre, start, stop, squares):
    """`|mu'|^2` of the points start..stop-1."""
    for j in range(start, stop):
        row = data[j]
        total = 0.0
        for k in range(centre.size):
            offset = np.float64(row[k]) - centre[k]
            total += offset * offset
        squares[j] = total


# --- one query and one chunk -----------------------------------------------------------------------------------------

# A query's state is (reference m, Z, sum p (l - m), sum p^2). References and logits leave out what is constant over
# the points: -log N, -(D/2) log variance and, far from the data, -|e|^2 / (2 variance).


@_jit()
def _next_task(counter, split):
    """Slot of the sums and range of queries of a task that nobody has taken, or a negative slot."""
    parts = (split.rows + split.task_queries - 1) // split.task_queries
    task = _take(counter)
    if task >= split.slots * parts:
        return -1, 0, 0
    first = task % parts * split.task_queries
    return task // parts, first, min(first + split.task_queries, split.rows)


@_jit()
def _group_span(data, group):
    """First point of a group and of the next."""
    begin = group * data.group_points
    return begin, min(begin + data.group_points, data.points.shape[0])


@_jit()
def _clear(states, sums, first, last):
    for b in range(first, last):
        states[b, 0] = LOWEST
        states[b, 1:] = 0.0
        sums[b, :] = 0.0


@_jit()
def _raise_reference(state, row, reference, mean):
    """Express the state, and the sum of points, by a reference that is no smaller."""
    if reference == state[0]:
        return
    factor = _exp(state[0] - reference)
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


@_jit(fastmath=_SUM)
def _row_square(row, centre, e, beta):
    """`|e - beta mu'|^2`."""
    total = 0.0
    for k in range(centre.size):
        residual = e[k] - beta * (np.float64(row[k]) - centre[k])
        total += residual * residual
    return total


@_jit(fastmath=_SUM)
def _row_product(row, centre, e):
    """`e . mu'`."""
    total = 0.0
    for k in range(centre.size):
        total += e[k] * (np.float64(row[k]) - centre[k])
    return total


@_jit(fastmath={"contract"})
def _scale_to_logits(logits, count, half, log_mass, start):
    """Squares to logits, in place; returns the largest."""
    best = -np.inf
    if log_mass.size:
        masses = log_mass[start : start + count]
        for j in range(count):
            logit = masses[j] - half * logits[j]
            logits[j] = logit
            best = _larger(best, logit)
    else:
        for j in range(count):
            logit = -half * logits[j]
            logits[j] = logit
            best = _larger(best, logit)
    return best


@_jit(fastmath=_SUM)
def _weigh(logits, weights, count, reference):
    """Logits become differences to the reference; returns the sum of their weights."""
    total = 0.0
    for j in range(count):
        difference = logits[j] - reference
        weight = _exp(difference)
        logits[j] = difference
        weights[j] = weight
        total += weight
    return total


@_jit(fastmath=_SUM)
def _spread(weights, differences, count):
    """`sum p (l - m)` and `sum p^2`, in float64. By itself, so that asking for it changes nothing else."""
    slope = 0.0
    collision = 0.0
    for j in range(count):
        weight = np.float64(weights[j])
        slope += weight * np.float64(differences[j])
        collision += weight * weight
    return slope, collision


@_jit()
def _add_chunk(logits, weights, count, best, state, row, mean, spread):
    """Weights of a chunk from its exact logits, and their sums into the state."""
    _raise_reference(state, row, max(best, state[0]), mean)
    state[1] += _weigh(logits, weights, count, state[0])
    if spread:
        slope, collision = _spread(weights, logits, count)
        state[2] += slope
        state[3] += collision


# --- columns ---------------------------------------------------------------------------------------------------------


@_jit()
def _fill_columns(data, centre, start, count, columns):
    for k in range(centre.size):
        column = columns[k]
        for j in range(count):
            column[j] = np.float64(data[start + j, k]) - centre[k]


@_jit(fastmath=_SUM)
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


@_jit(fastmath=_SUM)
def _add_columns(columns, count, weights, row):
    """`row += sum_j weights_j mu'_j`."""
    for k in range(columns.shape[0]):
        column = columns[k]
        total = 0.0
        for j in range(count):
            total += weights[j] * column[j]
        row[k] += total


@_jit()
def _columns_task(data, queries, e, split, counter, states, sums, mean, spread, columns, logits, weights):
    """Tasks of the `columns` kernel, until there are none."""
    slot, first, last = _next_task(counter, split)
    while slot >= 0:
        state, row = states[slot], sums[slot]
        _clear(state, row, first, last)
        begin, stop = _group_span(data, split.base + slot)
        for start in range(begin, stop, COLUMN_CHUNK):
            count = min(COLUMN_CHUNK, stop - start)
            _fill_columns(data.points, data.centre, start, count, columns)
            for b in range(first, last):
                _column_squares(columns, count, e[b], queries[b].beta, queries[b].far, logits)
                best = _scale_to_logits(logits, count, queries[b].half, data.log_mass, start)
                _add_chunk(logits, weights, count, best, state[b], row[b], mean, spread)
                if mean:
                    _add_columns(columns, count, weights, row[b])
        slot, first, last = _next_task(counter, split)


@_jit()
def _columns_logits(data, queries, e, start, stop, out, out_at, columns):
    """Logits of the points start..stop-1, into the columns from `out_at` on."""
    for chunk in range(start, stop, COLUMN_CHUNK):
        count = min(COLUMN_CHUNK, stop - chunk)
        _fill_columns(data.points, data.centre, chunk, count, columns)
        for b in range(e.shape[0]):
            logits = out[b, out_at : out_at + count]
            _column_squares(columns, count, e[b], queries[b].beta, queries[b].far, logits)
            _scale_to_logits(logits, count, queries[b].half, data.log_mass, chunk)
        out_at += count


# --- rows ------------------------------------------------------------------------------------------------------------


# The residual here is `(x - alpha m_i) - beta mu` with one rounding, which needs no centre and so reads less.


@_jit(fastmath=_SUM)
def _raw_square(row, raw, beta):
    """`|x - alpha m_i - beta mu|^2`."""
    total = 0.0
    for k in range(raw.size):
        residual = _fused(-beta, np.float64(row[k]), raw[k])
        total += residual * residual
    return total


@_jit(fastmath=_SUM)
def _four_raw_squares(a, b, c, d, raw, beta):
    """`_raw_square` of four points, which share the reading of `raw`."""
    sa = sb = sc = sd = 0.0
    for k in range(raw.size):
        value = raw[k]
        ra = _fused(-beta, np.float64(a[k]), value)
        rb = _fused(-beta, np.float64(b[k]), value)
        rc = _fused(-beta, np.float64(c[k]), value)
        rd = _fused(-beta, np.float64(d[k]), value)
        sa += ra * ra
        sb += rb * rb
        sc += rc * rc
        sd += rd * rd
    return sa, sb, sc, sd


@_jit(fastmath=_SUM)
def _four_row_products(a, b, c, d, centre, e):
    """`_row_product` of four points, which share the reading of `centre` and `e`."""
    sa = sb = sc = sd = 0.0
    for k in range(centre.size):
        middle, value = centre[k], e[k]
        sa += value * (np.float64(a[k]) - middle)
        sb += value * (np.float64(b[k]) - middle)
        sc += value * (np.float64(c[k]) - middle)
        sd += value * (np.float64(d[k]) - middle)
    return sa, sb, sc, sd


@_jit()
def _row_squares(data, start, count, raw, query, squares):
    """`|x - alpha m_i - beta mu|^2` of a chunk."""
    points, beta = data.points, query.beta
    whole = 0 if raw.size <= ROW_IN_CACHE else count - count % 4
    for j in range(0, whole, 4):
        i = start + j
        squares[j], squares[j + 1], squares[j + 2], squares[j + 3] = _four_raw_squares(
            points[i], points[i + 1], points[i + 2], points[i + 3], raw, beta
        )
    for j in range(whole, count):
        squares[j] = _raw_square(points[start + j], raw, beta)


@_jit()
def _row_expansions(data, start, count, e, query, squares):
    """`|e - beta mu'|^2 - |e|^2` of a chunk."""
    points, centre, beta = data.points, data.centre, query.beta
    whole = 0 if e.size <= ROW_IN_CACHE else count - count % 4
    for j in range(0, whole, 4):
        i = start + j
        squares[j], squares[j + 1], squares[j + 2], squares[j + 3] = _four_row_products(
            points[i], points[i + 1], points[i + 2], points[i + 3], centre, e
        )
    for j in range(whole, count):
        squares[j] = _row_product(points[start + j], centre, e)
    for j in range(count):
        squares[j] = beta * (beta * data.squares[start + j] - 2.0 * squares[j])


@_jit()
def _row_logits(data, start, count, e, raw, query, logits):
    """Logits of a chunk; returns the largest."""
    if query.far:
        _row_expansions(data, start, count, e, query, logits)
    else:
        _row_squares(data, start, count, raw, query, logits)
    return _scale_to_logits(logits, count, query.half, data.log_mass, start)


@_jit(fastmath={"contract"})
def _add_row(data_row, centre, weight, row):
    """`row += weight mu'`."""
    for k in range(centre.size):
        row[k] += weight * (np.float64(data_row[k]) - centre[k])


@_jit(fastmath={"contract"})
def _add_four_rows(a, b, c, d, centre, wa, wb, wc, wd, row):
    for k in range(centre.size):
        middle = centre[k]
        total = row[k]
        total += wa * (np.float64(a[k]) - middle)
        total += wb * (np.float64(b[k]) - middle)
        total += wc * (np.float64(c[k]) - middle)
        total += wd * (np.float64(d[k]) - middle)
        row[k] = total


@_jit()
def _add_rows(points, centre, start, count, weights, row):
    """`row += sum_j weights_j mu'_j`, four points at a time so that `row` is read and written less often."""
    whole = count - count % 4
    for j in range(0, whole, 4):
        wa, wb, wc, wd = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        if wa + wb + wc + wd > 0.0:
            i = start + j
            _add_four_rows(points[i], points[i + 1], points[i + 2], points[i + 3], centre, wa, wb, wc, wd, row)
    for j in range(whole, count):
        if weights[j] > 0.0:
            _add_row(points[start + j], centre, weights[j], row)


@_jit()
def _rows_task(data, queries, e, raw, split, counter, states, sums, mean, spread, logits, weights):
    """Tasks of the `rows` kernel, until there are none."""
    slot, first, last = _next_task(counter, split)
    while slot >= 0:
        state, row = states[slot], sums[slot]
        _clear(state, row, first, last)
        begin, stop = _group_span(data, split.base + slot)
        for start in range(begin, stop, logits.size):
            count = min(logits.size, stop - start)
            for b in range(first, last):
                best = _row_logits(data, start, count, e[b], raw[b], queries[b], logits)
                _add_chunk(logits, weights, count, best, state[b], row[b], mean, spread)
                if mean:
                    _add_rows(data.points, data.centre, start, count, weights, row[b])
        slot, first, last = _next_task(counter, split)


@_jit()
def _rows_logits(data, queries, e, raw, start, stop, out, out_at, chunk):
    """Logits of the points start..stop-1, into the columns from `out_at` on."""
    for begin in range(start, stop, chunk):
        count = min(chunk, stop - begin)
        for b in range(e.shape[0]):
            _row_logits(data, begin, count, e[b], raw[b], queries[b], out[b, out_at : out_at + count])
        out_at += count


# --- tiles -----------------------------------------------------------------------------------------------------------


@_jit()
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


@_jit()
def _fill_tile(points, centre, start, count, rows, first_column, width, tile):
    """`mu'` of a panel of columns, [point][column], padded with zeros to `rows` points and `width` columns."""
    used = min(width, centre.size - first_column)
    middle = centre[first_column : first_column + used]
    for j in range(count):
        out = tile[j]
        source = points[start + j, first_column : first_column + used]
        for k in range(used):
            out[k] = source[k] - middle[k]
        out[used:width] = 0
    for j in range(count, rows):
        tile[j, :width] = 0


@_jit()
def _screen_chunk(points, centre, start, count, tile, turned, packed, first, last, logits):
    """`q . mu'` of the queries first..last-1 with a chunk; leaves the last panel of columns in `tile`."""
    lanes = _lane_count(tile)
    pair = 2 * lanes
    columns = packed.shape[1]
    panel = tile.shape[1]
    rows = (count + pair - 1) // pair * pair
    for column in range(0, columns, panel):
        width = min(panel, columns - column)
        _fill_tile(points, centre, start, count, rows, column, width, tile)
        for j in range(0, rows, lanes):
            for k in range(0, width, lanes):
                place = (j // pair * panel + k) * pair + j % pair
                _transpose_block(turned, place, pair, tile, j * panel + k, panel)
        for block in range(rows // pair):
            for b in range(first, last, ROWS):
                _dot_block(
                    logits,
                    (b - first) * CHUNK + block * pair,
                    packed,
                    (b // ROWS * columns + column) * ROWS,
                    turned,
                    block * panel * pair,
                    width,
                    column == 0,
                )


@_jit(fastmath={"contract"})
def _finish_logits(logits, count, half_square, squares, log_mass, mass_factor):
    """Products to logits `a - h |mu'|^2 + g log C`, in place; returns the largest."""
    best = logits.dtype.type(-np.inf)
    if log_mass.size:
        for j in range(count):
            logit = (logits[j] - half_square * squares[j]) + mass_factor * log_mass[j]
            logits[j] = logit
            best = _larger(best, logit)
    else:
        for j in range(count):
            logit = logits[j] - half_square * squares[j]
            logits[j] = logit
            best = _larger(best, logit)
    return best


@_jit(fastmath={"contract"})
def _smooth_weights(logits, weights, count, best, square_factor, squares):
    """Logits become differences to the largest; returns the largest weight times size of what it was made from."""
    worst = logits.dtype.type(0.0)
    for j in range(count):
        difference = logits[j] - best
        weight = _exp(difference)
        size = abs(logits[j]) + square_factor * squares[j]
        logits[j] = difference
        weights[j] = weight
        worst = _larger(worst, weight * size)
    return worst


@_jit(fastmath=_SUM)
def _sum_weights(weights, count):
    total = 0.0
    for j in range(count):
        total += np.float64(weights[j])
    return total


@_jit()
def _exact_logit(data, j, e, query):
    row = data.points[j]
    if query.far:
        square = query.beta * (query.beta * data.squares[j] - 2.0 * _row_product(row, data.centre, e))
    else:
        square = _row_square(row, data.centre, e, query.beta)
    return (data.log_mass[j] if data.log_mass.size else 0.0) - query.half * square


@_jit()
def _smooth_query(
    data, terms, start, count, e, query, screen, squares, logits, weights, best, state, row, mean, spread
):
    """Weights of a chunk for a smooth query; returns the factor by which their sums enter."""
    reference = np.float64(best) + screen.base
    if reference < state[0] - terms.cut:
        return 0.0
    _raise_reference(state, row, max(reference, state[0]), mean)
    gain = _exp(reference - state[0])
    square_factor = screen.half_square + screen.half_square
    worst = _smooth_weights(logits, weights, count, best, square_factor, squares)
    if not gain * worst <= terms.pair_limit:
        for j in range(count):
            size = abs(np.float64(logits[j]) + np.float64(best)) + square_factor * squares[j]
            if not gain * weights[j] * size <= terms.pair_limit:
                difference = _exact_logit(data, start + j, e, query) - reference
                logits[j] = difference
                weights[j] = _exp(difference)
    total = _sum_weights(weights, count)
    state[1] += gain * total
    if spread:
        slope, collision = _spread(weights, logits, count)
        state[2] += gain * (slope + total * (reference - state[0]))
        state[3] += gain * gain * collision
    if mean and screen.lonely and total < FEW_WEIGHTS:
        for j in range(count):
            if gain * weights[j] > HEAVY_WEIGHT:
                _add_row(data.points[start + j], data.centre, gain * weights[j], row)
                weights[j] = 0.0
    return gain


@_jit()
def _sharp_query(data, terms, start, count, e, query, logits, floor, state, row, exact, chosen, mean):
    """A chunk for a sharp query: every point screened at or above `floor` exactly, in float64 throughout."""
    found = 0
    best = LOWEST
    for j in range(count):
        if not logits[j] < floor:
            exact[found] = _exact_logit(data, start + j, e, query)
            chosen[found] = start + j
            best = max(best, exact[found])
            found += 1
    if best < state[0] - terms.cut:
        return
    _raise_reference(state, row, max(best, state[0]), mean)
    for i in range(found):
        difference = exact[i] - state[0]
        if difference >= -terms.cut:
            weight = _exp(difference)
            state[1] += weight
            state[2] += weight * difference
            state[3] += weight * weight
            if mean:
                _add_row(data.points[chosen[i]], data.centre, weight, row)


@_jit()
def _add_tile(points, centre, start, count, tile, weights, gain, first, last, sums):
    """`sums += gain sum_j weights_j mu'_j` for the queries first..last-1, where any gain is not zero."""
    lanes = _lane_count(tile)
    panel = tile.shape[1]
    columns = sums.shape[1]
    for column in range(0, columns, panel):
        width = min(panel, columns - column)
        if columns > panel:  # a single panel is still there from the screening
            _fill_tile(points, centre, start, count, count, column, width, tile)
        for k in range(0, width, 2 * lanes):
            for b in range(first, last, ROWS):
                row = b - first
                if gain[row : row + ROWS].any():
                    _weighted_block(
                        sums, b * columns + column + k, columns, weights, row * CHUNK, tile, k, count, gain, row
                    )


@_jit()
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
    mean,
    spread,
    tile,
    turned,
    logits,
    weights,
    gain,
    exact,
    chosen,
):
    """Tasks of the `tiles` kernel, until there are none. A task is for whole blocks of ROWS queries."""
    slot, first, last = _next_task(counter, split)
    while slot >= 0:
        state, row = states[slot], sums[slot]
        _clear(state, row, first, last)
        gain[:] = 0.0
        begin, stop = _group_span(data, split.base + slot)
        for start in range(begin, stop, CHUNK):
            count = min(CHUNK, stop - start)
            _screen_chunk(data.points, tiles.centre, start, count, tile, turned, packed, first, last, logits)
            squares = tiles.squares[start : start + count]
            log_mass = tiles.log_mass[start : start + count]
            active = False
            for b in range(first, min(last, queries.size)):
                i = b - first
                query, screen = queries[b], screens[b]
                best = _finish_logits(logits[i], count, screen.half_square, squares, log_mass, screen.mass_factor)
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
                        mean,
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
                        mean,
                        spread,
                    )
                    active |= gain[i] > 0.0
            if mean and active:
                _add_tile(data.points, tiles.centre, start, count, tile, weights, gain, first, last, row)
        slot, first, last = _next_task(counter, split)


# --- folding groups and finishing ------------------------------------------------------------------------------------


@_jit(fastmath={"contract"})
def _fold(states, sums, slots, total_states, total_sums, mean, first, last):
    """Add groups to the totals, in their order, for the queries first..last-1."""
    for b in range(first, last):
        total = total_states[b]
        for slot in range(slots):
            state = states[slot, b]
            _raise_reference(total, total_sums[b], max(total[0], state[0]), mean)
            factor = _exp(state[0] - total[0])
            if factor > 0.0:
                total[1] += factor * state[1]
                total[2] += factor * (state[2] + state[1] * (state[0] - total[0]))
                total[3] += factor * factor * state[3]
                if mean:
                    row, part = total_sums[b], sums[slot, b]
                    for k in range(row.size):
                        row[k] += factor * part[k]


@_jit()
def _finish(data, queries, e, state, sums, log_total, mean, residual, entropy, collision):
    """Totals to normalised moments; outputs that were not asked for are empty."""
    centre = data.centre
    for b in range(queries.size):
        beta = queries[b].beta
        total = state[b, 1]
        log_total[b] = (state[b, 0] + math.log(total)) + queries[b].offset
        if entropy.size:
            entropy[b] = math.log(total) - state[b, 2] / total
            collision[b] = state[b, 3] / (total * total)
        if mean.size:
            row, values, point, rest = sums[b], e[b], mean[b], residual[b]
            inverse = 1.0 / total
            for k in range(centre.size):
                offset = row[k] * inverse
                point[k] = centre[k] + offset
                rest[k] = values[k] - beta * offset


# --- threads ---------------------------------------------------------------------------------------------------------

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    """After a fork the child has no threads: it makes its own pool when it needs one."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _helpers() -> ThreadPoolExecutor:
    """The pool of helping threads, which starts them as they are needed."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="fastflow")
        return _pool


def _run(task: Callable, tasks: list[tuple], threads: int, workspace: Callable) -> None:
    """Call `task(*arguments, *workspace())` for every tuple of arguments, on up to `threads` threads.

    The caller takes tasks too, so that progress never depends on the pool; helpers that have not started by the time
    the tasks run out are not waited for.
    """
    waiting = iter(tasks)
    lock = threading.Lock()

    def work() -> None:
        space = workspace()
        while True:
            with lock:
                arguments = next(waiting, None)
            if arguments is None:
                return
            task(*arguments, *space)

    helping = []
    try:
        for _ in range(min(threads, len(tasks)) - 1):
            helping.append(_helpers().submit(work))
    except RuntimeError:  # the interpreter is shutting down and starts no more threads
        pass
    try:
        work()
    finally:
        for future in helping:
            if not future.cancel():
                future.result()


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Uninitialised array that starts on a cache line, so that vector loads do not straddle two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


# --- a prepared data set ---------------------------------------------------------------------------------------------


def load() -> Backend:
    return Backend(
        prepare=lambda points, isa, num_threads: Compiled(points, num_threads),
        small_batch=SMALL_BATCH,
        detail=f"numba {numba.__version__}, vectors of {VECTOR_BYTES} bytes",
    )


class Data(NamedTuple):
    """The data as every kernel takes them; `log_mass` is empty where all masses are equal."""

    points: np.ndarray
    centre: np.ndarray
    squares: np.ndarray  # |mu'|^2
    log_mass: np.ndarray
    group_points: int


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


def _terms(size: int, count: int, largest: float, typical: float, mass: float) -> Terms:
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


class Split(NamedTuple):
    """Tasks of one round: the groups base..base+slots-1, times parts of `task_queries` of `rows` queries."""

    base: int
    slots: int
    rows: int
    task_queries: int


# Numbers of a query: D is `variance`, `half` is 1 / (2 D), `square` is |e|^2; `offset` is what its logits lack.
QUERY = np.dtype(
    [("beta", "f8"), ("variance", "f8"), ("half", "f8"), ("square", "f8"), ("offset", "f8"), ("far", "?")], align=True
)
# Numbers of a query in the screening by tiles, by bytes of T: see `_screen_queries`.
SCREEN = {
    size: np.dtype(
        [("window", "f8"), ("base", "f8"), ("half_square", f"f{size}"), ("mass_factor", f"f{size}"), ("lonely", "?")],
        align=True,
    )
    for size in (4, 8)
}


class Queries(NamedTuple):
    """A block of queries: their numbers (QUERY), `e`, and `x - alpha m_i` if the kernel takes that."""

    numbers: np.ndarray
    e: np.ndarray
    raw: np.ndarray


class Compiled:
    """A data set in the hands of the compiled kernels (see `Prepared`)."""

    def __init__(self, points: Points, num_threads: int | None):
        data = self.points = _read_only(points.data)
        self.count, self.size = data.shape
        self.threads = num_threads or usable_cores()
        self.source_mean = np.empty(0) if points.source_mean is None else points.source_mean
        self.log_mass = np.empty(0) if points.log_mass is None else points.log_mass
        self.constant = -math.log(self.count) if points.log_mass is None else 0.0

        spans = _spans(0, self.count, -(-self.count // GROUPS))
        totals = np.zeros((len(spans), self.size))
        self._run(_sum_points, [(data, *span, total) for span, total in zip(spans, totals, strict=True)], self.count)
        # In the dtype of the data, so that the difference of a point and the centre has one rounding at most.
        centre = (data[0] + totals.sum(axis=0) / self.count).astype(data.dtype)
        self.centre = centre.astype(np.float64)
        squares = self.squares = np.empty(self.count)
        self._run(_point_squares, [(data, self.centre, *span, squares) for span in spans], self.count)
        self.largest, typical = math.sqrt(squares.max()), math.sqrt(squares.mean())
        self.tiles = {8: Tiles(self.centre, self.log_mass, squares)}
        if data.dtype == np.float32 and NARROW_RANGE[0] < self.largest < NARROW_RANGE[1]:
            # A point without mass stays below all others in float32 too: as t -> 1 by the square, else by the mass.
            narrow = squares.astype(np.float32)
            narrow[: self.log_mass.size][self.log_mass < 0.1 * LOG_ZERO] = NARROW_DEAD
            masses = np.maximum(self.log_mass, -NARROW_DEAD).astype(np.float32)
            self.tiles[4] = Tiles(centre, masses, narrow)
        mass = float(np.max(np.abs(self.log_mass), where=self.log_mass > 0.1 * LOG_ZERO, initial=0.0))
        self.terms = {size: _terms(size, self.count, self.largest, typical, mass) for size in self.tiles}

    def moments(self, x: np.ndarray, coefficients: np.ndarray, want: Want) -> Moments:
        count, mean, spread = len(x), want.mean, want.spread
        vectors = x.shape if mean else (0, self.size)
        scalars = count if spread else 0
        outputs = (
            np.empty(count),
            np.empty(vectors, x.dtype),
            np.empty(vectors, x.dtype),
            np.empty(scalars),
            np.empty(scalars),
        )
        if self.size <= SMALL_SIZE:
            plan = Columns(self)
        elif count <= SMALL_BATCH:
            plan = Rows(self)
        else:
            plan = TilePlan(self, x.dtype, count)
        step = plan.queries_at_a_time()
        for first, last in _spans(0, count, step):
            some = slice(first, last)
            numbers = np.ascontiguousarray(coefficients[:, some]) if coefficients.shape[1] > 1 else coefficients
            queries = self._queries(plan, x[some], numbers)
            parts = [o[some] if len(o) else o for o in outputs]
            _finish(plan.data, queries.numbers, queries.e, *self._total(plan, queries, mean, spread), *parts)
        log_total, average, residual, entropy, collision = outputs
        return Moments(
            log_total=log_total,
            mean=average if mean else None,
            residual=residual if mean else None,
            entropy=entropy if spread else None,
            collision=collision if spread else None,
        )

    def logits(self, x: np.ndarray, coefficients: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Logits less what is the same for all points of a query, which would round off their differences."""
        plan = Columns(self) if self.size <= SMALL_SIZE else Rows(self)
        queries = self._queries(plan, x, coefficients)
        fixed = plan.data, queries.numbers, queries.e, *plan.prepare(queries)
        out = np.empty((len(x), stop - start))
        step = max(COLUMN_CHUNK, -(-(stop - start) // GROUPS))
        tasks = [(*fixed, *span, out, span[0] - start) for span in _spans(start, stop, step)]
        self._run(plan.logits, tasks, len(x) * (stop - start), plan.logits_workspace)
        return out

    def _queries(self, plan: Plan, x: np.ndarray, coefficients: np.ndarray) -> Queries:
        x = _read_only(x)
        queries = Queries(
            np.empty(len(x), QUERY), np.empty(x.shape), np.empty(x.shape if plan.takes_raw else (1, x.shape[1]))
        )
        data = self.source_mean, self.centre, self.largest, self.constant
        _centre_queries(x, coefficients, *data, queries.numbers, queries.e, queries.raw)
        return queries

    def _total(self, plan: Plan, queries: Queries, mean: bool, spread: bool) -> tuple[np.ndarray, np.ndarray]:
        """States and sums over all the data for one block of queries: as many groups at a time as memory is given."""
        count = len(queries.e)
        rows = -(-count // plan.rows) * plan.rows
        columns = plan.columns if mean else 0
        groups = -(-self.count // plan.data.group_points)
        slots = min(groups, max(self.threads, STATE_BYTES // (8 * rows * max(columns, 4))))
        states, sums = np.empty((slots + 1, rows, 4)), _aligned((slots + 1, rows, columns), np.float64)
        _clear(states[slots], sums[slots], 0, rows)
        extra = plan.prepare(queries)
        work = self.count * count
        for base in range(0, groups, slots):
            held = min(slots, groups - base)
            split = Split(base, held, rows, plan.task_queries)
            task = (plan.data, queries.numbers, queries.e, *extra, split, np.zeros(1, np.int64))
            task = (*task, states, sums, mean, spread)
            tasks = held * -(-rows // plan.task_queries)
            self._run(plan.kernel, [task] * min(self.threads, tasks), work, plan.workspace)
            folds = _spans(0, rows, max(ROWS, -(-rows // GROUPS)))
            fold = (states, sums, held, states[slots], sums[slots], mean)
            self._run(_fold, [(*fold, *span) for span in folds], held * rows)
        return states[slots], sums[slots]

    def _run(self, task: Callable, tasks: list[tuple], work: int, workspace: Callable = tuple) -> None:
        """`_run` on this field's threads, or on the caller's alone for little work (pairs of query and point)."""
        little = work * (self.size + EXP_WORK) < SERIAL_WORK
        _run(task, tasks, 1 if little else self.threads, workspace)


class Plan:
    """One kernel: how it cuts the work, its workspace and what it takes.

    Attributes:
        kernel: compiled function that works on tasks until none are left.
        rows: queries are padded to a multiple of this. columns: length of a row of sums.
        task_queries: queries of one task. takes_raw: whether it takes `x - alpha m_i`.
    """

    kernel: Callable
    rows = 1
    takes_raw = False

    def __init__(self, prepared: Compiled, chunk: int, task_queries: int, columns: int):
        groups = -(-prepared.count // (chunk * GROUPS))  # whole chunks, at most GROUPS groups
        self.data = Data(prepared.points, prepared.centre, prepared.squares, prepared.log_mass, groups * chunk)
        self.task_queries, self.columns = task_queries, columns

    def queries_at_a_time(self) -> int:
        """Queries whose partial sums over all groups fit the memory they are given, but at least one task's."""
        groups = -(-len(self.data.points) // self.data.group_points)
        fitting = STATE_BYTES // (8 * groups * max(self.columns, 4))
        return max(1, fitting // self.task_queries) * self.task_queries

    def prepare(self, queries: Queries) -> tuple:
        """What the kernel takes beside the arguments that all kernels take."""
        return ()

    def workspace(self) -> tuple:
        """Arrays of one thread."""
        raise NotImplementedError


class Columns(Plan):
    kernel = staticmethod(_columns_task)
    logits = staticmethod(_columns_logits)

    def __init__(self, prepared: Compiled):
        super().__init__(prepared, COLUMN_CHUNK, 256, prepared.size)

    def workspace(self) -> tuple:
        return *self.logits_workspace(), np.empty(COLUMN_CHUNK), np.empty(COLUMN_CHUNK)

    def logits_workspace(self) -> tuple:
        return (np.empty((self.columns, COLUMN_CHUNK)),)


class Rows(Plan):
    kernel = staticmethod(_rows_task)
    logits = staticmethod(_rows_logits)
    takes_raw = True

    def __init__(self, prepared: Compiled):
        self.chunk = max(4, ROW_CHUNK_BYTES // prepared.points[0].nbytes // 4 * 4)
        super().__init__(prepared, self.chunk, SMALL_BATCH, prepared.size)

    def workspace(self) -> tuple:
        return np.empty(self.chunk), np.empty(self.chunk)

    def prepare(self, queries: Queries) -> tuple:
        return (queries.raw,)

    def logits_workspace(self) -> tuple:
        return (self.chunk,)


class TilePlan(Plan):
    kernel = staticmethod(_tiles_task)
    rows = ROWS

    def __init__(self, prepared: Compiled, dtype: np.dtype, count: int):
        self.prepared = prepared
        self.bytes = 4 if dtype == np.float32 and 4 in prepared.tiles else 8
        self.dtype = np.float32 if self.bytes == 4 else np.float64
        pair = 2 * VECTOR_BYTES // self.bytes
        columns = -(-prepared.size // pair) * pair
        # Queries of a task: many, because they share the packing of a tile; bounded by the memory of their sums;
        # and even, so that the last task is not a scrap.
        most = min(128, max(32, STATE_BYTES // (8 * columns * max(4, prepared.threads))))
        even = -(-count // max(1, -(-count // most)))
        super().__init__(prepared, CHUNK, max(1, -(-even // ROWS)) * ROWS, columns)

    def workspace(self) -> tuple:
        panel = PANEL_BYTES // self.bytes
        return (
            _aligned((CHUNK, panel), self.dtype),
            _aligned((CHUNK * panel,), self.dtype),
            _aligned((self.task_queries, CHUNK), self.dtype),
            np.zeros((self.task_queries, CHUNK), self.dtype),
            np.empty(self.task_queries),
            np.empty(CHUNK),
            np.empty(CHUNK, np.int64),
        )

    def prepare(self, queries: Queries) -> tuple:
        tiles, terms = self.prepared.tiles[self.bytes], self.prepared.terms[self.bytes]
        count = len(queries.e)
        screens = np.empty(count, SCREEN[self.bytes])
        packed = _aligned((-(-count // ROWS), self.columns, ROWS), self.dtype)
        _screen_queries(queries.numbers, queries.e, terms, screens, packed)
        return tiles, terms, screens, packed


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to, whether or not the caller's array can: numba compiles for one type of array,
    and two compilations of one kernel may differ by rounding."""
    view = array.view()
    view.flags.writeable = False
    return view


def _spans(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(i, min(i + step, stop)) for i in range(start, stop, step)]
