"""For callers in other languages: where the C library and its header are, and a field as the library sees it.

The library itself knows nothing of Python; docs/native.md shows how to call it from C, Cython, numba and SciPy.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays
from .path import coefficients_at

if TYPE_CHECKING:
    from scipy import LowLevelCallable

    from .field import VelocityField

_PACKAGE = Path(__file__).parent


class DType(enum.IntEnum):
    """`ff_dtype` of queries and results."""

    FLOAT32 = 0
    FLOAT64 = 1


class Quantity(enum.IntEnum):
    """`ff_quantity`: what `ff_points_evaluate` returns."""

    VELOCITY = 0
    TARGET_MEAN = 1
    SOURCE_MEAN = 2
    SCORE = 3
    LOG_DENSITY = 4
    DENSITY = 5

    @property
    def is_vector(self) -> bool:
        """Whether it has a component for each value of an event."""
        return self < Quantity.LOG_DENSITY


_PATH_SIZE = 7  # doubles in ff_path


class _Integrand(ctypes.Structure):
    """`ff_integrand`."""

    _fields_ = (
        ("points", ctypes.c_void_p),
        ("path", ctypes.c_double * _PATH_SIZE),
        ("quantity", ctypes.c_int),
        ("component", ctypes.c_int64),
    )


def get_include() -> str:
    """The folder of the C header `ff.h`, for the compiler's `-I`.

    Raises FileNotFoundError where the package was installed without its C library.
    """
    return str(_installed("include", "ff.h").parent)


def get_library() -> str:
    """The shared library that a program links with, whole path; it needs no Python.

    Raises FileNotFoundError where the package was installed without its C library.
    """
    return str(_installed("lib", "libfastflow.dylib" if sys.platform == "darwin" else "libfastflow.so"))


def _installed(folder: str, name: str) -> Path:
    path = _PACKAGE / folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: fastflow was installed without its C library, for want of a C compiler or because of "
            "FASTFLOW_NO_EXTENSION; install it again with FASTFLOW_REQUIRE_EXTENSION=1, which says what is wrong"
        )
    return path


@cache
def library() -> ctypes.CDLL:
    """The loaded library with the types of the functions that take a handle and a path.

    Pointers are `c_void_p`, which numba takes as addresses.
    """
    loaded = ctypes.CDLL(get_library())
    pointer, count, status = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    evaluate = loaded.ff_points_evaluate
    evaluate.restype = status
    evaluate.argtypes = (pointer, pointer, count, pointer, ctypes.c_int, count, ctypes.c_int, pointer, ctypes.c_int)
    value = loaded.ff_integrand_value
    value.restype = ctypes.c_double
    value.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_double), pointer)
    return loaded


class NativeField:
    """A field as the C library sees it, without copying the data.

    Args:
        field: a `VelocityField` of the native backend. Fields with `source_covariance`, or with one `covariance` for
            all points, hold their points in other coordinates than the caller's and are refused.

    Attributes:
        points: address of the handle, `const ff_points *`, as an int. It is valid while this object lives.
        size: D, the number of values in an event.

    Raises:
        TypeError: field is no VelocityField.
        ValueError: the field is of another backend, or in other coordinates.
    """

    def __init__(self, field: VelocityField):
        from .field import VelocityField

        if not isinstance(field, VelocityField):
            raise TypeError(f"field is {type(field).__name__}; accepted is a VelocityField")
        if field.backend != "native":
            raise ValueError(f"field has the backend {field.backend!r}; accepted is 'native'")
        whole = field._parts.whole
        if whole.model.frame is not None:
            raise ValueError(
                "field holds its points in the coordinates of its covariances; accepted are fields with variance=, or "
                "with covariance= for each point and a source_variance="
            )
        self._schedule, self._model, self._prepared = field.schedule, whole.model, whole.prepared
        self.points: int = whole.prepared.address
        self.size = whole.model.size

    def path(self, t: Any) -> np.ndarray:
        """`ff_path` at times t, which the C library has no schedules for.

        Args:
            t: one number in [0, 1], or (B,).

        Returns:
            (7,) or (B, 7) float64: alpha, beta, their derivatives, the product alpha alpha', and the variances of
            source and target.
        """
        batch_shape = np.shape(t)[:1]
        times = _arrays.query_times(t, batch_shape)
        target = self._model.target
        own = target if isinstance(target, float) else 0.0
        columns = (*coefficients_at(self._schedule, times), self._model.source_variance, own)
        return np.stack(np.broadcast_arrays(*columns), axis=-1).reshape(*batch_shape, _PATH_SIZE)

    def integrand(self, t: float, quantity: str = "density", component: int = 0) -> LowLevelCallable:
        """A quantity at one time as a `scipy.LowLevelCallable`, `double f(int n, double *x, void *user_data)`.

        Args:
            t: one number in [0, 1].
            quantity: "density" or "log_density", or a vector: "velocity", "target_mean", "source_mean", "score".
            component: which component of a vector, 0 to D - 1; 0 for the others.

        Returns:
            What `scipy.integrate.quad` and `nquad` take as a function of D numbers. It keeps the field's data. Where
            the quantity does not exist (t = 1 without variance) it is NaN.
        """
        from scipy import LowLevelCallable

        names = [q.name.lower() for q in Quantity]
        if quantity not in names:
            raise ValueError(f"quantity is {_arrays.shown(quantity)}; accepted is one of {', '.join(names)}")
        kind = Quantity[quantity.upper()]
        components = self.size if kind.is_vector else 1
        if isinstance(component, bool) or not isinstance(component, int | np.integer):
            raise TypeError(f"component is {_arrays.shown(component)}; accepted is a whole number")
        if not 0 <= component < components:
            raise ValueError(f"component is {component}; accepted is 0 to {components - 1} for {quantity}")
        time = _arrays.query_times(t, ())
        data = _Integrand(self.points, (ctypes.c_double * _PATH_SIZE)(*self.path(time)), kind, component)
        data.owner = self._prepared  # the struct holds only the address of the handle
        return LowLevelCallable(library().ff_integrand_value, ctypes.cast(ctypes.pointer(data), ctypes.c_void_p))
