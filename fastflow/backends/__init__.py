"""The backends: who implements the one primitive, and which of them is used.

A backend is one module with a `load()` that returns a `Backend`, and one row of `_LOADERS`. It prepares a data set
once and then computes its posterior moments, or its logits over a range of points. Backends are tried in the order
of `_LOADERS`; the first that can run here is the choice of `backend="auto"`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .._arrays import Stored, compute_dtype, scaled
from ..moments import Moments
from .cores import thread_count


class Points(NamedTuple):
    """A validated data set, as a backend takes it. The points are `scale` times the rows `index` of `data` (or all of
    them) plus `offset`.

    Where points or directions differ in variance, `variance` and `rotation` say how: `Q_j diag(variance_j) Q_j^T` is
    the covariance of point j.

    Attributes:
        data: (M, D) of a dtype in `_arrays.STORED`, C-contiguous; read only, may be a memory map.
        log_mass: (N,) float64, `log C_j` with `LOG_ZERO` for zero, or None for `C_j = 1/N`.
        source_mean: (D,) float64 `m_i`, or None for zero.
        index: (N,) int64, increasing: which rows of `data` are points; or None for all.
        variance: None where all share one variance, which then comes with the coefficients; (N,) float64, one for
            each point; (1, D), one for each direction; (N, D) with `rotation`.
        rotation: (N, D, D) float64, the orthogonal `Q_j`, or None for the identity.
        scale, offset: numbers; scale is not zero.
    """

    data: np.ndarray
    log_mass: np.ndarray | None
    source_mean: np.ndarray | None
    index: np.ndarray | None = None
    variance: np.ndarray | None = None
    rotation: np.ndarray | None = None
    scale: float = 1.0
    offset: float = 0.0

    def rows(self, which: Any) -> np.ndarray:
        """Points by their positions (a slice, indices or a mask), in float64."""
        index = self.index
        stored = self.data[which if index is None else index[which]].astype(np.float64)
        return stored if self.scale == 1.0 and self.offset == 0.0 else stored * self.scale + self.offset

    def converted(self) -> Points:
        """The same with the points themselves in memory, as float32 or float64, for a backend that reads no other."""
        if self.data.dtype in (np.float32, np.float64) and self.scale == 1.0 and self.offset == 0.0:
            return self
        data = scaled(Stored(self.data, self.scale, self.offset), compute_dtype(self.data.dtype))
        return self._replace(data=data, scale=1.0, offset=0.0)

    @property
    def count(self) -> int:
        """N, the number of points."""
        return len(self.data) if self.index is None else len(self.index)


class Tangent(NamedTuple):
    """A direction `u`, and the scalar `psi_j = u . (a r_j + b gamma_j r_j + c mu_j)` of each component.

    Attributes:
        direction: (B, D) float32 or float64 as x, C-contiguous.
        factors: (3, B) float64: a, b and c.
    """

    direction: np.ndarray
    factors: np.ndarray


class Want(NamedTuple):
    """Which moments are asked for beside `log_total`, and of which points. With `variance` in the points, each choice
    brings the moments of `gamma_j r_j` that belong to it.

    Attributes:
        mean: `mean`, `residual` (`gain`, `gained`).
        spread: `entropy` and `collision`.
        trace: `trace` (`cross`, `gained_trace`), which need the mean too.
        tangent: `tilt` and `mean_product` (`gained_product`, `gain_product`), which need the mean too; or None.
        exclude: (B,) int64, the position among the points of one that a query leaves out, negative for none; or None.
    """

    mean: bool
    spread: bool = False
    trace: bool = False
    tangent: Tangent | None = None
    exclude: np.ndarray | None = None


class Prepared(Protocol):
    """A data set in the hands of a backend.

    `x` is (B, D) float32 or float64, C-contiguous. `coefficients` is (3, B) or (3, 1) float64: alpha, beta and the
    component variance D of each query, or of all. With `r_j = x - alpha m_i - beta mu_j`, the logit of component j is
    `log C_j - (D/2) log variance - |r_j|^2 / (2 variance)`.

    Where the points have `variance`, three more rows follow, slope and the constant and slope of `gamma_j`: the
    component variance is `D_j = variance + slope variance_j`, `gamma_j = (constant + slope variance_j) / D_j`. The
    same holds for each direction of Q_j where they differ.

    Attributes:
        small_batch: batches of up to this many queries may be served by another kernel than others, and differ from
            them by rounding; 0 if there is none.
    """

    @property
    def small_batch(self) -> int: ...

    def moments(self, x: np.ndarray, coefficients: np.ndarray, want: Want) -> Moments:
        """Moments with (B, D) fields in the dtype of `x`, others in float64; only those that `want` asks for."""

    def logits(self, x: np.ndarray, coefficients: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Logits of the points start..stop-1, (B, stop - start) float64, short of a constant of each query."""


@dataclass(frozen=True)
class Backend:
    """One backend that can run here.

    Attributes:
        prepare: `(points, isa, num_threads) -> Prepared`; `isa` is one of `isas`, or None where there are none.
        isas: the instruction sets that this machine can run, the preferred one last; empty where the backend has none.
        detail: one line on what is in use, for `show_versions` and the command line.
    """

    prepare: Callable[[Points, str | None, int | None], Prepared]
    isas: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class BackendInfo:
    """What `fastflow.backends()` tells of a backend: whether it can run here, why (not), and what it offers."""

    name: str
    available: bool
    reason: str
    isas: tuple[str, ...] = ()


_LOADERS = ("native", "numba", "numpy")
_loaded: dict[str, Backend | str] = {}


def _load(name: str) -> Backend | str:
    """The backend, or the reason why it cannot run here. Imported on first use and remembered."""
    if name not in _loaded:
        try:
            _loaded[name] = importlib.import_module(f".{name}", __name__).load()
        except ImportError as error:
            if error.name == f"{__name__}.{name}":  # a source tree, or an installation without a compiler
                _loaded[name] = f"it is not compiled in {Path(__file__).parents[1]}"
            else:
                _loaded[name] = f"{type(error).__name__}: {error}"
    return _loaded[name]


def backends() -> dict[str, BackendInfo]:
    """Every backend by name, in the order in which `backend="auto"` tries them."""
    infos = {}
    for name in _LOADERS:
        backend = _load(name)
        if isinstance(backend, str):
            infos[name] = BackendInfo(name, False, backend)
        else:
            infos[name] = BackendInfo(name, True, backend.detail, backend.isas)
    return infos


@dataclass(frozen=True)
class Choice:
    """A backend, an instruction set and a thread count, and in words why these."""

    name: str
    backend: Backend
    isa: str | None
    num_threads: int | None
    reason: str


def choose(name: str = "auto", num_threads: int | None = None) -> Choice:
    """Settle backend, instruction set and threads from the arguments and the environment.

    An argument goes before the environment (`FASTFLOW_BACKEND`, `FASTFLOW_ISA`, `FASTFLOW_NUM_THREADS`), and that
    before the default. What cannot be honoured raises ValueError; but an instruction set of the environment does not
    concern a backend without any that an argument asks for.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend is {type(name).__name__}; accepted is one of {_known()}")
    origin, by_argument = f"backend={name!r}", name != "auto"
    if name == "auto" and os.environ.get("FASTFLOW_BACKEND"):
        name = os.environ["FASTFLOW_BACKEND"]
        origin = f"FASTFLOW_BACKEND={name}"
    if name == "auto":
        chosen, reason = _first_available()
    elif name not in _LOADERS:
        raise ValueError(f"{origin} is unknown; accepted is one of {_known()}")
    else:
        chosen, reason = name, f"asked for by {origin}"
    backend = _load(chosen)
    if isinstance(backend, str):
        raise ValueError(f"{origin} cannot run here: {backend}")

    isa = backend.isas[-1] if backend.isas else None
    wanted = os.environ.get("FASTFLOW_ISA")
    if wanted and (backend.isas or not by_argument):
        if wanted not in backend.isas:
            can = ", ".join(backend.isas) or "none"
            raise ValueError(f"FASTFLOW_ISA={wanted} cannot be honoured by backend {chosen}; it can run here: {can}")
        isa = wanted
    return Choice(chosen, backend, isa, thread_count(num_threads), reason)


def choose_again(name: str, isa: str | None, num_threads: int | None, reason: str) -> Choice:
    """The choice that was made for a field in another process, as far as it can run in this one.

    The environment is not asked. What cannot run here gives way to the best that can, and the reason says so.
    """
    backend = _load(name)
    if isinstance(backend, str):
        chosen, why = _first_available()
        reason = f"made with {name}, which cannot run here ({backend}); {why}"
        name, backend = chosen, _load(chosen)
        isa = None
    best = backend.isas[-1] if backend.isas else None
    if isa is not None and isa not in backend.isas:
        reason = f"{reason}; made with {isa}, which cannot run here, and {best} is the best that can"
    return Choice(name, backend, isa if isa in backend.isas else best, num_threads, reason)


def _first_available() -> tuple[str, str]:
    passed = []
    for name in _LOADERS:
        backend = _load(name)
        if not isinstance(backend, str):
            return name, "first that can run here" + "".join(f"; {p}" for p in passed)
        passed.append(f"{name} cannot ({backend})")
    raise RuntimeError("no backend can run: " + "; ".join(passed))


def _known() -> str:
    return ", ".join(("auto", *_LOADERS))
