"""Other array libraries at the border: their arrays in as NumPy views, NumPy results out as theirs.

PyTorch and JAX are known by name, everything else that speaks DLPack by that protocol. Nothing here imports a library:
whoever passes its arrays has loaded it. What a call gets back follows its leading argument (`follows`); all other
arguments only have to be readable (`as_numpy`).

Memory is shared where the library allows: CPU tensors of PyTorch both ways, JAX arrays on the way in and, where
their alignment serves JAX, on the way out. What lies on an accelerator is copied over and back, which is said once.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ._optional import require

Method = TypeVar("Method", bound=Callable[..., Any])

_DLPACK_CPU = 1  # kDLCPU


class _Torch:
    """PyTorch."""

    refusal = (
        "requires grad, or is inside of a transformation such as vmap; accepted here are plain tensors, detached, and "
        "others in velocity alone, without subset, exclude and out"
    )

    @staticmethod
    def owns(value: Any) -> bool:
        return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))

    @staticmethod
    def tracks(value: Any) -> bool:
        torch = sys.modules["torch"]
        if torch.compiler.is_dynamo_compiling() or (value.requires_grad and torch.is_grad_enabled()):
            return True
        if torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
            return True
        try:
            value.data_ptr()
        except RuntimeError:  # no memory of its own: inside of `vmap`, `export`, ...
            return value.layout is torch.strided
        return False

    @staticmethod
    def elsewhere(value: Any) -> Any:
        return None if value.device.type == "cpu" else value.device

    @staticmethod
    def to_numpy(value: Any) -> np.ndarray:
        torch = sys.modules["torch"]
        if value.dtype == torch.bfloat16:  # which NumPy has from elsewhere
            bits = value.detach().view(torch.int16).numpy(force=True)
            return bits.view(require("ml_dtypes", "torch").bfloat16)
        return value.numpy(force=True)

    @staticmethod
    def from_numpy(array: np.ndarray, like: Any) -> Any:
        torch, device = sys.modules["torch"], like.device
        array = np.require(array, requirements=("C", "W"))
        if array.dtype.kind == "V":  # bfloat16, to NumPy a type from elsewhere; its name takes long to make
            result = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        elif device.type == "mps" and array.dtype == np.float64:  # which that device has not
            result = torch.from_numpy(array.astype(np.float32))
        else:
            result = torch.from_numpy(array)
        return result if device.type == "cpu" else result.to(device)


class _Jax:
    """JAX. Without its x64 mode, float64 results become float32 and int64 ones int32, as everywhere in JAX."""

    refusal = (
        "is traced by a transformation of JAX and has no values yet; accepted here are arrays with values, and inside "
        "of jit, grad, vmap and others what fastflow.adapters.jax offers"
    )

    @staticmethod
    def owns(value: Any) -> bool:
        return isinstance(value, getattr(sys.modules.get("jax"), "Array", ()))

    @staticmethod
    def tracks(value: Any) -> bool:
        return isinstance(value, sys.modules["jax"].core.Tracer)

    @staticmethod
    def elsewhere(value: Any) -> Any:
        device = next(iter(value.devices()))
        return None if device.platform == "cpu" else device

    @staticmethod
    def to_numpy(value: Any) -> np.ndarray:
        return np.asarray(value)

    @staticmethod
    def from_numpy(array: np.ndarray, like: Any) -> Any:
        devices = like.devices()
        device = next(iter(devices)) if len(devices) == 1 and like.committed else None
        return sys.modules["jax"].numpy.asarray(array, device=device)


class _DLPack:
    """Any other library, by the DLPack protocol and the array API standard."""

    refusal = ""

    @staticmethod
    def owns(value: Any) -> bool:
        return hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")

    @staticmethod
    def tracks(value: Any) -> bool:
        return False

    @staticmethod
    def elsewhere(value: Any) -> Any:
        if value.__dlpack_device__()[0] == _DLPACK_CPU:
            return None
        return getattr(value, "device", "an accelerator")

    @classmethod
    def to_numpy(cls, value: Any) -> np.ndarray:
        return np.from_dlpack(value) if cls.elsewhere(value) is None else np.from_dlpack(value, device="cpu")

    @classmethod
    def from_numpy(cls, array: np.ndarray, like: Any) -> Any:
        """An array of the library of `like`; NumPy's where that library takes none by DLPack."""
        if hasattr(like, "__array_namespace__"):
            library = like.__array_namespace__()
        else:
            library = sys.modules.get(type(like).__module__.partition(".")[0])
        if not hasattr(library, "from_dlpack"):
            return array
        array = np.require(array, requirements="W")  # an older DLPack cannot say that memory is read-only
        device = cls.elsewhere(like)
        return library.from_dlpack(array) if device is None else library.from_dlpack(array, device=device)


# What is asked of each: does it own a value; is the value one of a recording (of gradients, of a graph) that NumPy
# would lose, and in which words to refuse it; on which device does it lie, if not in memory; there and back.
_LIBRARIES = (_Torch, _Jax, _DLPack)


def library_of(value: Any) -> Any:
    """The library that `value` is an array of, or None: NumPy's, and all that is no array of a library."""
    if value is None or isinstance(value, (np.ndarray, np.generic, int, float, list, tuple)):
        return None
    return next((library for library in _LIBRARIES if library.owns(value)), None)


def as_numpy(name: str, value: Any) -> Any:
    """An array of another library as NumPy's, of the same memory where that can be; anything else as it is.

    Raises:
        TypeError: naming `name`: the array cannot be read, or a graph is recorded through it.
    """
    library = library_of(value)
    return value if library is None else _read(library, name, value)


def _read(library: Any, name: str, value: Any) -> np.ndarray:
    if library.tracks(value):
        raise TypeError(f"{name} {library.refusal}")
    device = library.elsewhere(value)
    if device is not None and str(device) not in _warned:
        _warned.add(str(device))
        warnings.warn(
            f"{name} is on {device}: fields compute in the memory of the CPU, and what lies elsewhere is copied over, "
            "results back (said once)",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        return library.to_numpy(value)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # whatever the library raises
        raise TypeError(
            f"{name} cannot be read as an array ({type(error).__name__}: {error}); accepted are dense arrays of real "
            "numbers"
        ) from error


_warned: set[str] = set()


def follows(leader: str) -> Callable[[Method], Method]:
    """Let a method of a field take arrays of any library, and give back those of the library of one argument.

    Args:
        leader: name of that argument. Arrays in the result, also inside of tuples and dicts, become arrays of its
            library on its device.
    """

    def decorate(method: Method) -> Method:
        parameters = inspect.signature(method).parameters
        only_by_name = parameters[leader].kind is inspect.Parameter.KEYWORD_ONLY
        place = sys.maxsize if only_by_name else list(parameters).index(leader)

        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            given = args[place] if place < len(args) else kwargs.get(leader)
            if type(given) is np.ndarray or (library := library_of(given)) is None:
                return method(*args, **kwargs)
            if library is _Torch and any(map(library.tracks, filter(library.owns, (*args, *kwargs.values())))):
                if _is_differentiable(method, kwargs):
                    from .adapters.torch import velocity  # the one look upwards: else the graph were lost, or refused

                    return velocity(*args, **{name: kwargs[name] for name in kwargs if name in _DIFFERENTIABLE})
                compiler = sys.modules["torch"].compiler
                if compiler.is_dynamo_compiling():  # break the graph: outside of it the tensors have values
                    return compiler.disable(wrapped)(*args, **kwargs)
            view = _read(library, leader, given)
            if place < len(args):
                args = (*args[:place], view, *args[place + 1 :])
            else:
                kwargs[leader] = view
            out = kwargs.get("out")
            if out is None or not library.owns(out):
                return _given_back(library, method(*args, **kwargs), given)
            method(*args, **{**kwargs, "out": _writable(library, out)})
            return out

        return wrapped

    return decorate


# The arguments of the velocity with which PyTorch can be given its gradient.
_DIFFERENTIABLE = {"x", "t", "label", "guidance"}


def _is_differentiable(method: Callable[..., Any], options: dict[str, Any]) -> bool:
    given = {name for name, value in options.items() if value is not None}
    return method.__name__ == "velocity" and given <= _DIFFERENTIABLE


def _given_back(library: Any, result: Any, like: Any) -> Any:
    """`result` with its NumPy arrays as those of the library and device of `like`."""
    if isinstance(result, np.ndarray):
        return library.from_numpy(result, like)
    if isinstance(result, dict):
        return {name: _given_back(library, value, like) for name, value in result.items()}
    if isinstance(result, tuple):
        parts = [_given_back(library, value, like) for value in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result


def _writable(library: Any, out: Any) -> np.ndarray:
    """A view of `out` for results; ValueError where only a copy could be had."""
    if library.elsewhere(out) is not None:
        raise ValueError(f"out is on {library.elsewhere(out)}; accepted is an array in the memory of the CPU")
    return _read(library, "out", out)
