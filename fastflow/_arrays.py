"""Arrays at the border: what a caller may pass, and the plain NumPy views the rest works on.

Every check of rank, shape, dtype and finiteness lives here, so that the layers below can trust their input.
A check either returns a view (or, where the layout demands it, a copy) or raises with a message that names the
argument, what was wrong, and what is accepted. Nothing that the caller passed is ever written to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import _interop

# Values checked at a time: keeps temporary arrays at a few MB whatever the size of the array.
_CHECK_ELEMENTS = 1 << 20
_SMALL = 4096

# The range of what is computed with. Points, queries and means are at most LARGEST in magnitude, the variance of a
# component is zero or at least SMALLEST_COMPONENT, and a schedule's factors are at most LARGEST_FACTOR. Then no square
# overflows, and for events of up to ten million values |r|^2 / D stays below 1e286: far from where a float64 ends, and
# from LOG_ZERO, which must lie below every logit. Variances from SMALLEST_VARIANCE on stay above SMALLEST_COMPONENT
# down to the alpha of 1e-16 that is the smallest beside t = 1.
LARGEST = 1e70
LARGEST_COUNT = 10**12  # of steps or samples: what is beyond does not fit an array in any memory
LARGEST_FACTOR = 1e10
SMALLEST_VARIANCE, LARGEST_VARIANCE = 1e-80, 1e80
SMALLEST_COMPONENT = 1e-115

_ACCEPTED = "real numbers (float16/32/64, bfloat16, integers or booleans)"
_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)


def shown(value: Any) -> str:
    """`value` for a message: its repr, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 100:  # Python refuses to print thousands of digits
        return f"a whole number of some {int(value.bit_length() * 0.30103) + 1} digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def any_array(name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array (a view where possible), or TypeError naming `name`."""
    if type(value) is np.ndarray:
        return value
    if np.ma.is_masked(value):
        raise TypeError(
            f"{name} is a masked array with masked values; accepted are plain arrays: fill it with {name}.filled(...), "
            "or drop what is masked"
        )
    value = _interop.as_numpy(name, value)
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # whatever the value's own `__array__` raises
        reason = f"{type(error).__name__}: {error}"
        raise TypeError(f"{name} cannot be read as an array ({reason}); accepted are {_ACCEPTED}") from error


def real_array(name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of real numbers (a view where possible), or TypeError naming `name`."""
    value = any_array(name, value)
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {value.dtype}; accepted are {_ACCEPTED}")
    return value


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The floating dtype that holds every value of `dtype` exactly and that the kernels work on.

    Half-precision floats and 8-bit integers fit in float32; everything wider is taken as float64.
    """
    if dtype.kind == "f" and dtype.itemsize in (4, 8):
        return _FLOAT32 if dtype.itemsize == 4 else _FLOAT64
    narrow = dtype.name in ("float32", "float16", "bfloat16") or (dtype.kind in "iub" and dtype.itemsize == 1)
    return _FLOAT32 if narrow else _FLOAT64


def plain(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` as native-endian, C-contiguous, aligned `dtype`; the same memory where it already is."""
    if array.dtype is dtype and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, dtype, ("C", "A"))


def require_finite(name: str, array: np.ndarray) -> None:
    """Raise ValueError naming the first NaN or infinity of a floating array."""
    _require(name, array, np.isfinite, "finite")


def require_moderate(name: str, array: np.ndarray) -> None:
    """Raise ValueError naming the first value of a floating array that is not finite or beyond `LARGEST`."""
    if array.dtype.itemsize <= 4:  # no finite float32 is beyond it
        require_finite(name, array)
    else:
        _require(name, array, _is_moderate, f"finite, and at most {LARGEST:g} in magnitude")


def _is_moderate(array: np.ndarray) -> np.ndarray:
    return np.abs(array) <= LARGEST


def _require(name: str, array: np.ndarray, test: Callable[[np.ndarray], np.ndarray], accepted: str) -> None:
    if array.size <= _SMALL and test(array).all():
        return
    flat = array.reshape(-1)  # a view: callers pass contiguous arrays
    for start in range(0, flat.size, _CHECK_ELEMENTS):
        good = test(flat[start : start + _CHECK_ELEMENTS])
        if not good.all():
            index = start + int(np.argmin(good))
            where = ", ".join(str(int(i)) for i in np.unravel_index(index, array.shape))
            place = f"{name}[{where}]" if where else name
            raise ValueError(f"{place} is {flat[index]}; every value of {name} must be {accepted}")


class Stored(NamedTuple):
    """A data set as it lies in memory: the points are `scale * matrix + offset`, which is never formed as a whole.

    Attributes:
        matrix: (N, D), C-contiguous, of one of the dtypes in `STORED`.
        scale, offset: numbers; scale is not zero.
    """

    matrix: np.ndarray
    scale: float = 1.0
    offset: float = 0.0


# Data of these dtypes are used as they lie in memory; others are converted once, to float64.
STORED = ("float32", "float64", "float16", "bfloat16", "uint8", "int8")

# Factors within these leave squares of float32 values in the range of the kernels; others are applied once.
_MODERATE = 1e30

# The largest value of an array must lie between these for all of them to keep their digits in float32.
_FLOAT32_RANGE = (2.0**-125, float(np.finfo(np.float32).max))


def data_matrix(data: Any, scale: float, offset: float) -> tuple[Stored, np.dtype, tuple[int, ...]]:
    """The data, the dtype of what a field makes by itself (samples), and the shape of one event.

    A C-contiguous array of one of the dtypes in `STORED` (a memory map too) is used in place, whatever scale and
    offset. Other dtypes are converted once, other layouts copied once. The dtype is the narrowest of float32 and
    float64 that holds what is stored exactly, and the points without overflow.
    """
    array = real_array("data", data)
    if array.ndim == 0:
        raise ValueError("data is a scalar; accepted is an array of shape (N, *event) with N >= 1")
    if array.size == 0:
        raise ValueError(f"data has shape {array.shape}; at least one point with at least one value is needed")
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    dtype = array.dtype.newbyteorder("=") if array.dtype.name in STORED else _FLOAT64
    matrix = plain(array, dtype).reshape(array.shape[0], -1)
    narrow, unscaled = compute_dtype(dtype), scale == 1.0 and offset == 0.0
    if dtype.itemsize > 1:  # whole numbers of 8 bits are neither infinite nor large
        (require_moderate if unscaled else require_finite)("data", matrix.reshape(array.shape))
    if unscaled:
        return Stored(matrix), narrow, array.shape[1:]
    largest = _largest(matrix, scale, offset, array.shape)
    fits = narrow == _FLOAT64 or largest == 0.0 or _FLOAT32_RANGE[0] <= largest <= _FLOAT32_RANGE[1]
    if fits and 1.0 / _MODERATE <= abs(scale) <= _MODERATE and abs(offset) <= _MODERATE:
        return Stored(matrix, scale, offset), narrow, array.shape[1:]
    result = narrow if fits else _FLOAT64
    return Stored(scaled(Stored(matrix, scale, offset), result)), result, array.shape[1:]


def _blocks(matrix: np.ndarray) -> Iterator[slice]:
    """Ranges of rows, of a few MB each in float64."""
    rows = max(1, _CHECK_ELEMENTS // matrix.shape[1])
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))


@np.errstate(over="ignore", under="ignore")
def scaled(stored: Stored, dtype: np.dtype) -> np.ndarray:
    """The points as an array of `dtype`, computed in float64."""
    matrix, scale, offset = stored
    result = np.empty(matrix.shape, dtype)
    for block in _blocks(matrix):
        result[block] = matrix[block].astype(np.float64) * scale + offset
    return result


@np.errstate(over="ignore", under="ignore")
def _largest(matrix: np.ndarray, scale: float, offset: float, shape: tuple[int, ...]) -> float:
    """The largest magnitude of `scale * matrix + offset`, checked; `shape` is for messages."""
    largest = 0.0
    for block in _blocks(matrix):
        values = matrix[block].astype(np.float64) * scale + offset
        most = float(np.abs(values).max())
        if not most <= LARGEST:
            at = block.start * matrix.shape[1] + int(np.argmax(~_is_moderate(values)))
            where = ", ".join(str(int(i)) for i in np.unravel_index(at, shape))
            raise ValueError(
                f"scale * data + offset is {values.flat[at - block.start * matrix.shape[1]]} at data[{where}]; every "
                f"value must be finite, and at most {LARGEST:g} in magnitude"
            )
        largest = max(largest, most)
    if largest == 0.0 and scale != 0.0 and matrix.any():
        raise ValueError(f"scale is {scale}, which makes every value of data zero; accepted is a larger one")
    return largest


def query_matrix(x: Any, event_shape: tuple[int, ...], size: int) -> tuple[np.ndarray, tuple[int, ...], np.dtype]:
    """The queries as a (B, D) float matrix, the batch shape (`(B,)` or `()`), and the dtype of the results."""
    array = real_array("x", x)
    shape = array.shape
    if shape == event_shape:
        batch_shape: tuple[int, ...] = ()
    elif shape[1:] == event_shape and len(shape) == len(event_shape) + 1:
        batch_shape = shape[:1]
    else:
        event = ", ".join(str(n) for n in event_shape)
        raise ValueError(
            f"x has shape {shape}; accepted is one event of shape ({event}{',' if len(event_shape) == 1 else ''}) "
            f"or a batch of shape (B{', ' if event else ','}{event})"
        )
    dtype = array.dtype
    if (dtype.kind != "f" and dtype.name != "bfloat16") or dtype.itemsize > 8:
        dtype = _FLOAT64  # integers, booleans and extended precision: results in float64
    elif not dtype.isnative:
        dtype = dtype.newbyteorder("=")
    matrix = plain(array, compute_dtype(dtype)).reshape(-1 if size else 0, size)
    require_moderate("x", matrix.reshape(shape))
    return matrix, batch_shape, dtype


def query_times(t: Any, batch_shape: tuple[int, ...]) -> float | np.ndarray:
    """Times in [0, 1]: a float shared by all queries, or a float64 array of shape (B,)."""
    if type(t) is float:
        value = t
    else:
        array = real_array("t", t)
        if array.size != 1:
            if array.shape not in (batch_shape, (*batch_shape, 1)) or not batch_shape:
                count = batch_shape[0] if batch_shape else 1
                raise ValueError(
                    f"t has shape {array.shape}; accepted is a scalar, ({count},) or ({count}, 1): "
                    "one time for all queries or one for each"
                )
            times = array.astype(np.float64).reshape(-1)
            bad = ~((times >= 0.0) & (times <= 1.0))
            if bad.any():
                index = int(np.argmax(bad))
                raise ValueError(f"t[{index}] is {times[index]}; times must lie in [0, 1] (0 = source, 1 = data)")
            return times
        if array.ndim > 2:
            raise ValueError(f"t has shape {array.shape}; accepted is a scalar, (B,) or (B, 1)")
        value = float(array.reshape(()) if array.ndim == 0 else array.flat[0])
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"t is {value}; times must lie in [0, 1] (0 = source, 1 = data)")
    return value


def event_vector(name: str, value: Any, event_shape: tuple[int, ...], size: int) -> np.ndarray | None:
    """A scalar or event-shaped vector as (D,) float64, or None where it is zero everywhere."""
    array = real_array(name, value).astype(np.float64)
    if array.shape not in ((), event_shape):
        raise ValueError(f"{name} has shape {array.shape}; accepted is a scalar or an event of shape {event_shape}")
    vector = np.ascontiguousarray(np.broadcast_to(array, event_shape)).reshape(size)
    require_moderate(name, vector.reshape(event_shape) if array.shape else vector[:1].reshape(()))
    return vector if vector.any() else None


def real_number(name: str, value: Any, *, minimum: float | None = None, positive: bool = False) -> float:
    """One finite real number, at least `minimum` where that is given, above zero where it must be positive."""
    least = "" if minimum is None else f" of at least {minimum:g}"
    least = " above zero" if positive else least
    if isinstance(value, int) and value.bit_length() > 1000:
        raise ValueError(f"{name} is {shown(value)}; accepted is a finite number{least}")
    array = real_array(name, value)
    if array.ndim != 0:
        raise ValueError(f"{name} has shape {array.shape}; accepted is one number{least}")
    number = float(array)
    if not math.isfinite(number) or (minimum is not None and number < minimum) or (positive and number <= 0.0):
        raise ValueError(f"{name} is {number}; accepted is a finite number{least}")
    return number


def source_variance(value: Any) -> float:
    """The variance of the source, above zero."""
    number = real_number("source_variance", value, positive=True)
    if not SMALLEST_VARIANCE <= number <= LARGEST_VARIANCE:
        raise ValueError(
            f"source_variance is {number}; accepted is a number from {SMALLEST_VARIANCE:g} to {LARGEST_VARIANCE:g}"
        )
    return number


def log_mass(weights: Any, count: int) -> np.ndarray | None:
    """log C_j of the normalised weights, (N,) float64, or None for equal weights.

    A zero weight becomes the finite value `LOG_ZERO`: its exponential is exactly zero beside any other component,
    and no arithmetic on it makes a NaN.
    """
    if weights is None:
        return None
    array = real_array("weights", weights)
    if array.shape != (count,):
        raise ValueError(f"weights has shape {array.shape}; accepted is ({count},), one for each data point")
    masses = np.ascontiguousarray(array, dtype=np.float64)
    require_finite("weights", masses)
    negative = masses < 0.0
    if negative.any():
        index = int(np.argmax(negative))
        raise ValueError(f"weights[{index}] is {masses[index]}; weights must be at least zero")
    largest = masses.max()
    if largest == 0.0:
        raise ValueError("weights are all zero; at least one must be positive")
    masses = masses / largest  # so that the sum cannot overflow
    logs = np.full(count, LOG_ZERO)
    np.log(masses, out=logs, where=masses > 0.0)
    logs[masses > 0.0] -= math.log(masses.sum())
    return logs


LOG_ZERO = -1e300


def variances(value: Any, count: int) -> float | np.ndarray:
    """Target variances: one number for all points, or (N,) float64 where they differ."""
    array = any_array("variance", value)
    if array.ndim == 0:
        number = real_number("variance", value, minimum=0.0)
        _require_variances(np.array(number))
        return number
    array = real_array("variance", array)
    if array.shape != (count,):
        raise ValueError(f"variance has shape {array.shape}; accepted is one number or ({count},), one for each point")
    numbers = np.array(array, dtype=np.float64, order="C")  # a copy: the caller may change theirs
    require_finite("variance", numbers)
    negative = numbers < 0.0
    if negative.any():
        index = int(np.argmax(negative))
        raise ValueError(f"variance[{index}] is {numbers[index]}; variances must be at least zero")
    _require_variances(numbers)
    return float(numbers[0]) if (numbers == numbers[0]).all() else numbers


def _require_variances(numbers: np.ndarray) -> None:
    bad = (numbers != 0.0) & ~((numbers >= SMALLEST_VARIANCE) & (numbers <= LARGEST_VARIANCE))
    if bad.any():
        place = f"variance[{int(np.argmax(bad))}]" if numbers.ndim else "variance"
        raise ValueError(
            f"{place} is {numbers[bad].flat[0]}; accepted is 0, or a number from {SMALLEST_VARIANCE:g} to "
            f"{LARGEST_VARIANCE:g}"
        )


# Entries of a covariance may differ from their mirror images by this share of the largest: the rounding of a product.
_ASYMMETRY = 1e-8


def covariance(name: str, value: Any, size: int, count: int | None) -> np.ndarray:
    """Symmetric matrices as float64, exactly symmetric: (D, D), or (N, D, D) where `count` is given."""
    array = real_array(name, value)
    shapes = [(size, size)] + ([(count, size, size)] if count is not None else [])
    if array.shape not in shapes:
        accepted = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} has shape {array.shape}; accepted is {accepted}")
    matrices = np.ascontiguousarray(array, dtype=np.float64)
    require_finite(name, matrices)
    mirrored = np.swapaxes(matrices, -1, -2)
    largest = np.abs(matrices).max(axis=(-2, -1))
    bad = np.abs(matrices - mirrored).max(axis=(-2, -1)) > _ASYMMETRY * largest
    if bad.any():
        place = f"{name}[{int(np.argmax(bad))}]" if matrices.ndim == 3 else name
        raise ValueError(f"{place} is not symmetric; accepted are symmetric positive semi-definite matrices")
    bad = (largest != 0.0) & ~((largest >= SMALLEST_VARIANCE) & (largest <= LARGEST_VARIANCE))
    if bad.any():
        place = f"{name}[{int(np.argmax(bad))}]" if matrices.ndim == 3 else name
        raise ValueError(
            f"{place} has the largest entry {largest[bad].flat[0]}; accepted is 0, or a number from "
            f"{SMALLEST_VARIANCE:g} to {LARGEST_VARIANCE:g}"
        )
    return 0.5 * (matrices + mirrored)


def whole_numbers(name: str, value: Any, shape: tuple[int, ...] | None = None, accepted: str = "") -> np.ndarray:
    """Whole numbers as an int64 array of the given shape (any one-dimensional array where it is None); `accepted` says
    what else the caller takes."""
    array = any_array(name, value)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} has dtype {array.dtype}; accepted are whole numbers")
    if (array.ndim != 1) if shape is None else (array.shape != shape):
        shapes = "(n,)" if shape is None else str(shape)
        raise ValueError(f"{name} has shape {array.shape}; accepted is {accepted}{shapes}")
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {int(array.max())}; accepted are whole numbers of 64 bits with a sign")
    return np.asarray(array, dtype=np.int64, order="C")  # not `ascontiguousarray`, which makes a number a vector


def direction(value: Any, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Directions `u` of the shape of x, as a matrix in the dtype of the matrix of queries."""
    array = real_array("u", value)
    if array.shape != shape:
        raise ValueError(f"u has shape {array.shape}; accepted is the shape of x, {shape}")
    matrix = plain(array, x.dtype).reshape(x.shape)
    require_moderate("u", matrix.reshape(shape))
    return matrix


def output_array(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Check that results of this shape and dtype can be written to `out`."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}; accepted is a NumPy array of shape {shape} and dtype {dtype}")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}; accepted is shape {shape} and dtype {dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only; accepted is a writable array")
    if _overlaps_itself(out):
        raise ValueError("out has elements that share memory; accepted is an array without")
    return out


def _overlaps_itself(array: np.ndarray) -> bool:
    """Whether two elements of an array share memory, as in what `numpy.broadcast_to` returns."""
    if array.flags.c_contiguous or array.size < 2:
        return False
    reach = array.itemsize  # bytes from the first to past the last of the elements along the axes seen so far
    for stride, count in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:  # in rare layouts nothing overlaps even so
            places = np.zeros(1, np.int64)
            for stride, count in zip(array.strides, array.shape, strict=True):
                places = np.add.outer(places, stride * np.arange(count)).reshape(-1)
            return bool((np.diff(np.sort(places)) < array.itemsize).any())
        reach += stride * (count - 1)
    return False
