"""Compiling, and the vector code that plain loops would not give reliably."""

from __future__ import annotations

import hashlib
import math
import platform
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.cpu import CPUTargetOptions
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

SUM = {"reassoc", "contract", "nsz"}  # what a vectorised sum needs; NaN and infinity keep their meaning

# What numba compiles for: its choice, which NUMBA_CPU_FEATURES may override.
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
VECTOR_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx" in _FEATURES else 16
FUSED = "+fma" in _FEATURES if _X86 else True  # whether there is a fused multiply-add


# What is not given numba takes from whichever function happens to call first, so all is given. Without `_nrt` arrays
# are not counted in and out of every function that takes them, by atomic operations on counters that threads share:
# compiled code makes no arrays here, and its callers hold what they pass. Nobody calls it from C.
_SETTINGS = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    "forceinline": False,
    "no_cpython_wrapper": False,
    "no_cfunc_wrapper": True,
}
if hasattr(CPUTargetOptions, "_nrt"):
    _SETTINGS["_nrt"] = False

_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).digest()


def jit(**options):
    """`numba.njit` without the GIL, cached on disk where there is a place for it."""

    def decorate(function):
        settings = {**_SETTINGS, **options}
        try:
            compiled = numba.njit(cache=True, **settings)(function)
        except RuntimeError:  # no directory to write the cache into
            return numba.njit(**settings)(function)
        # By itself numba compiles a function again when its own file has changed, and not when one has whose functions
        # it calls. numba has no way to say so; where it moves what is set here, its own rule holds.
        file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
        if _SOURCES and hasattr(file, "_source_stamp"):
            file._source_stamp = _STAMP
        return compiled

    return decorate


def inner(**options):
    """`jit` for what only compiled code calls: Python cannot. Wrappers for it, one for each function, would be a tenth
    of what the kernels take to compile."""
    return jit(no_cpython_wrapper=True, **options)


def pointer_to(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def vector_at(builder, pointer, offset, vector):
    return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())


def splat(builder, vector, value):
    lane = ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def multiply_add(builder, a, b, c):
    """`a b + c`, fused where the machine can."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def lanes_of(dtype) -> int:
    return VECTOR_BYTES // (dtype.bitwidth // 8)


@intrinsic
def lane_count(typing_context, array):
    """Elements of the array's dtype in a vector register, as a constant."""

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.intp, lanes_of(array.dtype))

    return types.intp(array), generate


@intrinsic
def larger(typing_context, a, b):
    """The larger of two numbers, neither NaN. Unlike `max` it says so on every instruction, so that loops vectorise."""

    def generate(context, builder, signature, arguments):
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *arguments, flags=flags), *arguments, flags=flags)

    return (a(a, b), generate) if a == b else None


@intrinsic
def take(typing_context, counter):
    """The counter's value, which one thread gets, and one more for the next."""

    def generate(context, builder, signature, arguments):
        pointer = pointer_to(context, builder, counter, arguments[0])
        return builder.atomic_rmw("add", pointer, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def _fused_multiply_add(typing_context, a, b, c):
    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return (a(a, b, c), generate) if a == b == c else None


@inner(forceinline=True)
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
fused = _fused_multiply_add if FUSED else _emulated_multiply_add


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


# --- the exponential and the logarithm -------------------------------------------------------------------------------


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


def exp(x):
    raise NotImplementedError("compiled code only")


@overload(exp, jit_options={"fastmath": {"contract"}, "forceinline": True})
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


@intrinsic
def _exponent_and_mantissa(typing_context, x):
    """`(n, m)` with `x = 2^n m` and m in [sqrt(1/2), sqrt(2)), for a normal number above zero."""

    def generate(context, builder, signature, arguments):
        bits, significand = (32, 23) if x.bitwidth == 32 else (64, 52)
        integer, number = ir.IntType(bits), context.get_value_type(x)
        root_half = int(np.array(math.sqrt(0.5), f"f{bits // 8}").view(f"i{bits // 8}"))
        pattern = builder.bitcast(arguments[0], integer)
        n = builder.ashr(builder.sub(pattern, ir.Constant(integer, root_half)), ir.Constant(integer, significand))
        m = builder.bitcast(builder.sub(pattern, builder.shl(n, ir.Constant(integer, significand))), number)
        short = builder.trunc(n, ir.IntType(32)) if bits == 64 else n  # which processors can convert in vectors
        return context.make_tuple(builder, signature.return_type, (builder.sitofp(short, number), m))

    return types.UniTuple(x, 2)(x), generate


def _odd_inverses(kind, last):
    """`2 / (2 k + 1)` for k = last, ..., 0."""
    return tuple(kind(2.0 / (2 * k + 1)) for k in range(last, -1, -1))


_ODD32, _ODD64 = _odd_inverses(np.float32, 4), _odd_inverses(np.float64, 10)


def log(x):
    raise NotImplementedError("compiled code only")


@overload(log, jit_options={"fastmath": {"contract"}, "forceinline": True})
def _log_by_dtype(x):
    """`log(x)` of a normal number above zero: plain arithmetic, so that loops vectorise.

    x = 2^n m with m in [sqrt(1/2), sqrt(2)); `log(m) = 2 artanh(s)`, s = (m - 1) / (m + 1), by its series.
    """
    narrow = x == types.float32
    one, high, low = (np.float32(1.0), _HIGH32, _LOW32) if narrow else (1.0, _HIGH64, _LOW64)
    series = _ODD32 if narrow else _ODD64
    terms = len(series)

    def log_x(x):
        n, m = _exponent_and_mantissa(x)
        s = (m - one) / (m + one)
        square = s * s
        value = series[0]
        for k in range(1, terms):
            value = value * square + series[k]
        return n * high + (s * value + n * low)

    return log_x
