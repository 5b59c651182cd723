"""The cases: sizes from a toy in the plane to CIFAR-10, with what each is bound by and what it must reach.

Data and queries come from fixed seeds, are made once per process and are read-only, so that every contender works on
the same memory. Data are standard normal float32; or, where a case says so, what images are: numbers of 8 bits, which
stand for values between -1 and 1. fastflow can store these as they are. Rivals get the same values in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np

TIME = 0.1
MODES = ("short", "full")
_DATA_SEED, _QUERY_SEED = 20240, 20241


@dataclass(frozen=True)
class Target:
    """A ratio to the NumPy/BLAS formula that must be reached, or exceeded where `strict`."""

    ratio: float
    strict: bool = False

    def met(self, ratio: float) -> bool:
        return ratio > self.ratio if self.strict else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{'>' if self.strict else '≥'} {self.ratio:g}"


class Points(NamedTuple):
    """A data set as it is stored: the values are `scale * stored + offset`."""

    stored: np.ndarray
    scale: float = 1.0
    offset: float = 0.0

    def block(self, start: int, stop: int) -> np.ndarray:
        """The values of some rows, float64."""
        return self.scale * self.stored[start:stop].astype(np.float64) + self.offset

    def values(self) -> np.ndarray:
        """All values, float32: the stored array itself where it is that already."""
        if self.stored.dtype == np.float32 and (self.scale, self.offset) == (1.0, 0.0):
            return self.stored
        values = np.empty(self.stored.shape, dtype=np.float32)
        for start in range(0, len(values), _BLOCK):
            values[start : start + _BLOCK] = self.block(start, start + _BLOCK)
        values.setflags(write=False)
        return values


# How images of 8 bits become values between -1 and 1.
IMAGE_SCALE, IMAGE_OFFSET = 2.0 / 255.0, -1.0

_BLOCK = 4096  # rows converted at a time


@dataclass(frozen=True)
class Case:
    """One evaluation of the velocity: `num_queries` queries against `num_points` points in `dim` dimensions.

    Attributes:
        bound: what limits it: "exponentials", "arithmetic" or "bandwidth".
        storage: "float32" or "uint8", how fastflow stores the data.
        targets: by backend, what its full size must reach; empty at reduced size.
    """

    name: str
    num_points: int
    dim: int
    num_queries: int
    bound: str
    targets: dict[str, Target] = field(default_factory=dict, compare=False)
    storage: str = "float32"

    @property
    def flop(self) -> int:
        """Useful floating-point operations: two inner products per query and point, two operations per value."""
        return 4 * self.num_points * self.dim * self.num_queries

    def bytes_read(self, storage: str = "float32") -> int:
        """Bytes of one pass over the data."""
        return np.dtype(storage).itemsize * self.num_points * self.dim

    @property
    def exponentials(self) -> int:
        return self.num_points * self.num_queries

    @property
    def work(self) -> str:
        """The work that bounds the case, in words."""
        amount, unit = self.bounding_work(self.storage)
        return f"{amount / 1e9:.4g} {unit}"

    def rate(self, seconds: float, storage: str) -> str:
        """That work per second, in words, where the data are stored like this."""
        amount, unit = self.bounding_work(storage)
        return f"{amount / 1e9 / seconds:.4g} {unit}/s"

    def bounding_work(self, storage: str) -> tuple[int, str]:
        """The amount of the work that bounds the case, and 1e9 of its unit in words."""
        return {
            "exponentials": (self.exponentials, "Gexp"),
            "arithmetic": (self.flop, "GFLOP"),
            "bandwidth": (self.bytes_read(storage), "GB"),
        }[self.bound]

    def points(self) -> Points:
        """(N, d) data as they are stored, shared by all cases of this size and storage."""
        return _points(self.storage, self.num_points, self.dim)

    def data(self) -> np.ndarray:
        """(N, d) float32 values of the data, shared likewise."""
        return _values(self.storage, self.num_points, self.dim)

    def queries(self) -> np.ndarray:
        """(B, d) queries."""
        return _normal(_QUERY_SEED, self.num_queries, self.dim)


@cache
def _normal(seed: int, rows: int, columns: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)
    values.setflags(write=False)
    return values


@cache
def _points(storage: str, rows: int, columns: int) -> Points:
    if storage == "float32":
        return Points(_normal(_DATA_SEED, rows, columns))
    stored = np.random.default_rng(_DATA_SEED).integers(256, size=(rows, columns), dtype=np.uint8)
    stored.setflags(write=False)
    return Points(stored, IMAGE_SCALE, IMAGE_OFFSET)


@cache
def _values(storage: str, rows: int, columns: int) -> np.ndarray:
    return _points(storage, rows, columns).values()


def _targets(native: float, numba: float, numba_strict: bool) -> dict[str, Target]:
    return {"native": Target(native), "numba": Target(numba, numba_strict)}


# Each case with its number of points in short mode: small enough for a quick run, while the data of the single
# queries stay larger than the caches of most machines.
_TABLE = (
    (Case("toy2d", 10_000, 2, 4_096, "exponentials", _targets(4.0, 1.0, True)), 2_000),
    (Case("digits", 1_797, 64, 256, "arithmetic", _targets(1.0, 1.0, True)), 1_797),
    (Case("mnist-batch", 60_000, 784, 128, "arithmetic", _targets(1.0, 0.8, False)), 3_000),
    (Case("mnist-single", 60_000, 784, 1, "bandwidth", _targets(1.6, 1.0, True)), 20_000),
    (Case("cifar-batch", 50_000, 3_072, 64, "arithmetic", _targets(1.0, 0.8, False)), 2_000),
    (Case("cifar-single", 50_000, 3_072, 1, "bandwidth", _targets(1.6, 1.0, True)), 8_000),
    (Case("mnist-batch-uint8", 60_000, 784, 128, "arithmetic", storage="uint8"), 3_000),
    (Case("mnist-single-uint8", 60_000, 784, 1, "bandwidth", storage="uint8"), 20_000),
    (Case("cifar-batch-uint8", 50_000, 3_072, 64, "arithmetic", storage="uint8"), 2_000),
    (Case("cifar-single-uint8", 50_000, 3_072, 1, "bandwidth", storage="uint8"), 8_000),
)

NAMES = tuple(case.name for case, _ in _TABLE)


def cases(mode: str = "full", names: tuple[str, ...] | list[str] = NAMES) -> list[Case]:
    """The cases of these names; in short mode with fewer points and, being other cases then, without targets."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; known are {', '.join(MODES)}")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"case {unknown[0]!r} is unknown; known are {', '.join(NAMES)}")
    chosen = [(case, points) for case, points in _TABLE if case.name in names]
    if mode == "full":
        return [case for case, _ in chosen]
    return [replace(case, num_points=points, targets={}) for case, points in chosen]
