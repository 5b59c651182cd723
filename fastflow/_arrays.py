"""Arrays at the border: what a caller may pass, and the plain NumPy views the rest works on.

Every check of rank, shape, dtype and finiteness lives here, so that the layers below can trust their input.
A check either returns a view (or, where the layout demands it, a copy) or raises with a message that names the
argument, what was wrong, and what is accepted. Nothing that the caller passed is ever written to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Rows checked for finiteness at a time: keeps the temporary mask near 1 MB whatever the size of the array.
_CHECK_ELEMENTS = 1 << 20
_SMALL = 4096

_ACCEPTED = "real numbers (float16/32/64, bfloat16, integers or booleans)"
_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)


def real_array(name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of real numbers (a view where possible), or TypeError naming `name`."""
    if type(value) is not np.ndarray:
        try:
            value = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise TypeError(f"{name} cannot be read as an array: {error}; accepted are {_ACCEPTED}") from None
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
    if array.size <= _SMALL and np.isfinite(array).all():
        return
    flat = array.reshape(-1)  # a view: callers pass contiguous arrays
    for start in range(0, flat.size, _CHECK_ELEMENTS):
        finite = np.isfinite(flat[start : start + _CHECK_ELEMENTS])
        if not finite.all():
            index = start + int(np.argmin(finite))
            where = ", ".join(str(int(i)) for i in np.unravel_index(index, array.shape))
            place = f"{name}[{where}]" if where else name
            raise ValueError(f"{place} is {flat[index]}; every value of {name} must be finite")


def data_matrix(data: Any, scale: float, offset: float) -> tuple[np.ndarray, tuple[int, ...]]:
    """The data as an (N, D) float matrix and the shape of one event.

    A C-contiguous float32 or float64 array (a memory map too) is used in place. Other dtypes, other layouts and
    `scale * data + offset` are converted once, to the narrowest of float32 and float64 that is exact for the dtype.
    """
    array = real_array("data", data)
    if array.ndim == 0:
        raise ValueError("data is a scalar; accepted is an array of shape (N, *event) with N >= 1")
    if array.size == 0:
        raise ValueError(f"data has shape {array.shape}; at least one point with at least one value is needed")
    matrix = plain(array, compute_dtype(array.dtype)).reshape(array.shape[0], -1)
    require_finite("data", matrix.reshape(array.shape))
    if scale != 1.0 or offset != 0.0:
        matrix = matrix * matrix.dtype.type(scale) + matrix.dtype.type(offset)
        require_finite("scale * data + offset", matrix.reshape(array.shape))
    return matrix, array.shape[1:]


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
    require_finite("x", matrix.reshape(shape))
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
    require_finite(name, vector.reshape(event_shape) if array.shape else vector[:1].reshape(()))
    return vector if vector.any() else None


def real_number(name: str, value: Any, *, minimum: float | None = None) -> float:
    """One finite real number, at least `minimum` where that is given."""
    array = real_array(name, value)
    least = "" if minimum is None else f" of at least {minimum:g}"
    if array.ndim != 0:
        raise ValueError(f"{name} has shape {array.shape}; accepted is one number{least}")
    number = float(array)
    if not math.isfinite(number) or (minimum is not None and number < minimum):
        raise ValueError(f"{name} is {number}; accepted is a finite number{least}")
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
    return out
