"""Register blocks: the two matrix products of a tile of points with a block of queries."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .vector import VECTOR_BYTES, lanes_of, multiply_add, pointer_to, splat, vector_at

CHUNK = 256  # points of a tile
PANEL_BYTES = 512  # bytes of one point in a tile: with CHUNK points 128 kB, and short float32 sums
ROWS = 8 if VECTOR_BYTES == 64 else 4  # queries of a register block: with two vectors each, 16 or 8 accumulators


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
        scalar = splat(builder, pair[0].type, scalar)
        for slot, vector in zip(slot_pair, pair, strict=True):
            builder.store(multiply_add(builder, scalar, vector, builder.load(slot)), slot)


@intrinsic
def transpose_block(typing_context, out, out_at, out_stride, source, source_at, source_stride):
    """Transpose a square of as many rows as a vector has lanes: log2 rounds of interleaving rows i and i + half."""

    def generate(context, builder, signature, arguments):
        _, out_at, out_stride, _, source_at, source_stride = arguments
        to = pointer_to(context, builder, out, arguments[0])
        origin = pointer_to(context, builder, source, arguments[3])
        lanes, size = lanes_of(out.dtype), out.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(out.dtype), lanes)

        def offset(start, stride, row):
            return builder.add(start, builder.mul(stride, ir.Constant(stride.type, row)))

        rows = [
            builder.load(vector_at(builder, origin, offset(source_at, source_stride, i), vector), align=size)
            for i in range(lanes)
        ]
        mask = ir.VectorType(ir.IntType(32), lanes)
        order = [lane for i in range(lanes) for lane in (i, i + lanes)]
        low, high = (ir.Constant(mask, order[part : part + lanes]) for part in (0, lanes))
        for _ in range(lanes.bit_length() - 1):
            pairs = [(rows[i], rows[i + lanes // 2]) for i in range(lanes // 2)]
            rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in (low, high)]
        for i, row in enumerate(rows):
            builder.store(row, vector_at(builder, to, offset(out_at, out_stride, i), vector), align=size)
        return context.get_dummy_value()

    integers = types.intp
    return types.void(out, integers, integers, source, integers, integers), generate


@intrinsic
def dot_block(typing_context, out, out_at, queries, queries_at, points, points_at, count, fresh):
    """Dot products of ROWS queries with two vectors of points over `count` columns.

    `queries` lie as [column][ROWS], `points` as [column][2 vectors], `out` as [row][CHUNK]; `fresh` overwrites,
    otherwise the sums are added. Every product is its own sequence of multiply-adds, wherever it lies in the block.
    """

    def generate(context, builder, signature, arguments):
        _, out_at, _, queries_at, _, points_at, count, fresh = arguments
        to = pointer_to(context, builder, out, arguments[0])
        query = pointer_to(context, builder, queries, arguments[2])
        point = pointer_to(context, builder, points, arguments[4])
        lanes, size = lanes_of(out.dtype), out.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(out.dtype), lanes)
        integer = out_at.type

        def plus(a, b):
            return builder.add(a, b if isinstance(b, ir.Value) else ir.Constant(integer, b))

        slots = _zero_accumulators(builder, vector)
        with cgutils.for_range(builder, count) as loop:
            at = plus(points_at, builder.mul(loop.index, ir.Constant(integer, 2 * lanes)))
            pair = [builder.load(vector_at(builder, point, plus(at, v * lanes), vector), align=size) for v in range(2)]
            first = plus(queries_at, builder.mul(loop.index, ir.Constant(integer, ROWS)))
            _accumulate(builder, slots, query, lambda row: plus(first, row), pair)
        zero = ir.Constant(vector, [0.0] * lanes)
        for row, slot_pair in enumerate(slots):
            for v, slot in enumerate(slot_pair):
                place = vector_at(builder, to, plus(out_at, row * CHUNK + v * lanes), vector)
                before = builder.select(fresh, zero, builder.load(place, align=size))
                builder.store(builder.fadd(before, builder.load(slot)), place, align=size)
        return context.get_dummy_value()

    integers = types.intp
    arguments = (out, integers, queries, integers, points, integers, integers, types.boolean)
    return types.void(*arguments), generate


@intrinsic
def weighted_block(
    typing_context, out, out_at, out_stride, weights, weights_at, points, points_at, count, gain, row_at
):
    """`out += gain sum_j weights_j points_j` for ROWS queries and two vectors of columns.

    `weights` lie as [row][CHUNK], `points` as [point][panel]; the sum is in their dtype, `out` is float64.
    """

    def generate(context, builder, signature, arguments):
        _, out_at, out_stride, _, weights_at, _, points_at, count, _, row_at = arguments
        to, weight, point, gains = (
            pointer_to(context, builder, kind, arguments[i])
            for i, kind in ((0, out), (3, weights), (5, points), (8, gain))
        )
        lanes, size = lanes_of(points.dtype), points.dtype.bitwidth // 8
        vector = ir.VectorType(context.get_value_type(points.dtype), lanes)
        wide = ir.VectorType(ir.DoubleType(), lanes)
        integer = out_at.type

        def plus(a, b):
            return builder.add(a, b if isinstance(b, ir.Value) else ir.Constant(integer, b))

        slots = _zero_accumulators(builder, vector)
        with cgutils.for_range(builder, count) as loop:
            at = plus(points_at, builder.mul(loop.index, ir.Constant(integer, PANEL_BYTES // size)))
            pair = [builder.load(vector_at(builder, point, plus(at, v * lanes), vector), align=size) for v in range(2)]
            first = plus(weights_at, loop.index)
            _accumulate(builder, slots, weight, lambda row: plus(first, row * CHUNK), pair)
        for row, slot_pair in enumerate(slots):
            factor = splat(builder, wide, builder.load(builder.gep(gains, [plus(row_at, row)])))
            start = plus(out_at, builder.mul(out_stride, ir.Constant(integer, row)))
            for v, slot in enumerate(slot_pair):
                place = vector_at(builder, to, plus(start, v * lanes), wide)
                total = builder.load(slot) if size == 8 else builder.fpext(builder.load(slot), wide)
                before = builder.load(place, align=8)
                builder.store(multiply_add(builder, factor, total, before), place, align=8)
        return context.get_dummy_value()

    integers = types.intp
    places = (out, integers, integers, weights, integers, points, integers, integers, gain, integers)
    return types.void(*places), generate
