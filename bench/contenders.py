"""Everything that can be timed on a case: the backends of fastflow, and the rivals."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastflow as ff

from . import held
from .cases import TIME, Case, Points
from .machine import Unmeasurable
from .rivals import Rival, rivals, unchanged

# The plain formula in float64, which is there to be read and compared with, not to be fast.
REFERENCE = "numpy"

_OVERRIDES = ("FASTFLOW_BACKEND", "FASTFLOW_ISA", "FASTFLOW_NUM_THREADS")

# Queries in, velocities out, both arrays of the contender's own.
Call = Callable[[Any], Any]


@dataclass(frozen=True)
class Contender:
    """A way to compute the velocity.

    Attributes:
        name: how it is called in tables: a rival's name, a backend's, or backend-isa.
        prepare: `(points, t) -> call`, with `call(x)` the velocities.
        backend: the backend of fastflow, or None for a rival.
        isa: the instruction set that the backend is told to use, or None.
        missing: why it cannot run here; empty if it can.
        enter, leave, device, tolerance, compiles: as for a rival.
    """

    name: str
    prepare: Callable[[Points, float], Call]
    backend: str | None = None
    isa: str | None = None
    missing: str = ""
    enter: Callable[[np.ndarray], Any] = unchanged
    leave: Callable[[Any], np.ndarray] = unchanged
    device: str = "cpu"
    tolerance: float | None = None
    compiles: bool = False

    def storage(self, case: Case) -> str:
        """The dtype that it reads the data of a case in: only fastflow stores anything but float32."""
        return "float32" if self.backend is None else case.storage

    def on(self, case: Case) -> Call:
        """The call for a case."""
        return self.prepare(case.points() if self.backend is not None else Points(case.data()), TIME)


def isas(backend: str) -> tuple[str, ...]:
    """The instruction sets of a backend of fastflow that may run, the most capable first."""
    found = ff.backends()[backend].isas
    if held.isa() is not None and found:
        if held.isa() not in found:
            raise Unmeasurable(f"nobody can be held to {held.isa()} here: {backend} runs {', '.join(found)}")
        found = found[: found.index(held.isa()) + 1]
    return found[::-1]


def backend_contenders(num_threads: int, *, every_isa: bool = False) -> list[Contender]:
    """Every backend of the registry under its own name, with the instruction set that it prefers.

    With `every_isa` its other instruction sets follow, each as a contender of its own.
    """
    found = []
    for backend, info in ff.backends().items():
        missing = "" if info.available else info.reason
        preferred, *others = isas(backend) or (None,)
        found.append(_backend_contender(backend, backend, preferred, num_threads, missing))
        if every_isa:
            for isa in others:
                found.append(_backend_contender(f"{backend}-{isa}", backend, isa, num_threads, missing))
    return found


def rival_contenders(num_threads: int, names: Container[str] | None = None) -> list[Contender]:
    """Every rival, or those of some names, the baseline first. To ask the others for their libraries takes time."""
    return [_rival_contender(rival, num_threads) for rival in rivals() if names is None or rival.name in names]


def field(data: np.ndarray, backend: str, isa: str | None, num_threads: int, **options: Any) -> ff.VelocityField:
    """A field that is certain to run this backend with this instruction set, whatever the environment says."""
    with _environment(FASTFLOW_ISA=isa):
        made = ff.VelocityField(data, backend=backend, num_threads=num_threads, **options)
    if (made.backend, made.isa) != (backend, isa):
        raise RuntimeError(f"asked for {backend} with isa {isa}, got {made.backend} with {made.isa}")
    return made


def _backend_contender(name: str, backend: str, isa: str | None, num_threads: int, missing: str) -> Contender:
    def prepare(points: Points, t: float) -> Call:
        made = field(points.stored, backend, isa, num_threads, scale=points.scale, offset=points.offset)
        return lambda x: made(x, t)

    return Contender(name, prepare, backend, isa, missing)


def _rival_contender(rival: Rival, num_threads: int) -> Contender:
    return Contender(
        rival.name,
        lambda points, t: rival.prepare(points.values(), t, num_threads),
        missing=_missing(rival),
        enter=rival.enter,
        leave=rival.leave,
        device=rival.device,
        tolerance=rival.tolerance,
        compiles=rival.compiles,
    )


def _missing(rival: Rival) -> str:
    """Why a rival cannot run here; empty if it can."""
    if held.isa() and not rival.can_be_held:
        return f"cannot be held to {held.isa()}"
    return "" if rival.available() else f"needs {rival.needs}"


@contextmanager
def _environment(**wanted: str | None) -> Iterator[None]:
    """The overrides of fastflow set as wanted and otherwise absent; what was there before comes back."""
    before = {name: os.environ.pop(name, None) for name in _OVERRIDES}
    os.environ.update({name: value for name, value in wanted.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
