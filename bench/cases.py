"""The cases: sizes from a toy in the plane to CIFAR-10, with what each is bound by and what it must reach.

Data and queries are standard normal float32 from a fixed seed, made once per process and read-only, so that every
contender works on the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

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


@dataclass(frozen=True)
class Case:
    """One evaluation of the velocity: `num_queries` queries against `num_points` points in `dim` dimensions.

    Attributes:
        bound: what limits it: "exponentials", "arithmetic" or "bandwidth".
        targets: by backend, what its full size must reach; empty at reduced size.
    """

    name: str
    num_points: int
    dim: int
    num_queries: int
    bound: str
    targets: dict[str, Target] = field(default_factory=dict, compare=False)

    @property
    def flop(self) -> int:
        """Useful floating-point operations: two inner products per query and point, two operations per value."""
        return 4 * self.num_points * self.dim * self.num_queries

    @property
    def bytes_read(self) -> int:
        """Bytes of one pass over the float32 data."""
        return 4 * self.num_points * self.dim

    @property
    def exponentials(self) -> int:
        return self.num_points * self.num_queries

    @property
    def work(self) -> str:
        """The work that bounds the case, in words."""
        amount, unit = self._bounding_work()
        return f"{amount / 1e9:.4g} {unit}"

    def rate(self, seconds: float) -> str:
        """That work per second, in words."""
        amount, unit = self._bounding_work()
        return f"{amount / 1e9 / seconds:.4g} {unit}/s"

    def _bounding_work(self) -> tuple[int, str]:
        return {
            "exponentials": (self.exponentials, "Gexp"),
            "arithmetic": (self.flop, "GFLOP"),
            "bandwidth": (self.bytes_read, "GB"),
        }[self.bound]

    def data(self) -> np.ndarray:
        """(N, d) data, shared by all cases of this size."""
        return _normal(_DATA_SEED, self.num_points, self.dim)

    def queries(self) -> np.ndarray:
        """(B, d) queries."""
        return _normal(_QUERY_SEED, self.num_queries, self.dim)


@cache
def _normal(seed: int, rows: int, columns: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)
    values.setflags(write=False)
    return values


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
