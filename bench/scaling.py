"""How the time grows: with points, dimensions and queries, which should be linear, and along the path, where it should
not; and what more threads bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import ceilings, measure
from .cases import Case, cases
from .contenders import backend_contenders

# A long pause is for the threads of BLAS, and here are none of them.
_PACE = {"short": measure.QUICK, "full": measure.Pace(0.02, measure.TURN)}
_ROUNDS = {"short": 2, "full": 7}

# A step between neighbouring sizes is called a cliff where the time grows by more than this factor beyond the size, or
# falls by more than this factor though the size grows.
CLIFF = 1.5


@dataclass(frozen=True)
class Sweep:
    """Times of one backend along one size, the others fixed; and the straight line nearest to them, relatively.

    Attributes:
        name: what varies, in words.
        fixed: the other sizes, in words.
        sizes, seconds: what was measured.
        start, slope: the line, `start + slope * size` seconds.
    """

    name: str
    fixed: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    start: float
    slope: float

    @property
    def off(self) -> float:
        """The largest factor between a time and the line, either way."""
        ratios = np.array(self.seconds) / (self.start + self.slope * np.array(self.sizes))
        return float(np.maximum(ratios, 1.0 / ratios).max())

    @property
    def steepest(self) -> tuple[float, int]:
        """The largest growth of the time over that of the size from one size to the next, and the size it leads to."""
        seconds, sizes = np.array(self.seconds), np.array(self.sizes)
        growth = seconds[1:] / seconds[:-1] / (sizes[1:] / sizes[:-1])
        return float(growth.max()), int(sizes[1 + growth.argmax()])

    @property
    def fall(self) -> tuple[float, int]:
        """The smallest factor between the times of one size and the next, and the size it leads to."""
        factors = np.array(self.seconds[1:]) / np.array(self.seconds[:-1])
        return float(factors.min()), self.sizes[1 + int(factors.argmin())]

    @property
    def has_cliff(self) -> bool:
        return self.steepest[0] > CLIFF or 1.0 / self.fall[0] > CLIFF


# Kernels change where few queries become many, and take queries in vectors of up to 32.
_BATCHES = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 24, 32, 33, 64, 65, 128, 256)
_POINTS = tuple(1_000 * 2**k for k in range(8))
_DIMENSIONS = (4, 8, 16, 17, 24, 32, 48, 64, 96, 128, 256, 512, 784, 1_024, 2_048, 3_072)
# What varies over which sizes (in short mode up to the second number), with (N, d, B), None for it, and the storage.
_SWEEPS = (
    ("N", _POINTS, 4_000, (None, 256, 64), "float32"),
    ("N", _POINTS, 4_000, (None, 256, 1), "float32"),
    ("d", _DIMENSIONS, 128, (4_000, None, 64), "float32"),
    ("B", _BATCHES, 16, (4_000, 256, None), "float32"),
    ("B", _BATCHES, 16, (60_000, 3, None), "float32"),
    ("B", _BATCHES, 16, (4_000, 784, None), "uint8"),
)


def sweeps(backend: str, num_threads: int, mode: str) -> list[Sweep]:
    """The growth of a backend's time along each size."""
    (contender,) = (c for c in backend_contenders(num_threads) if c.name == backend)
    found = []
    for name, sizes, most, (num_points, dim, num_queries), storage in _SWEEPS:
        chosen = tuple(size for size in sizes if mode == "full" or size <= most)
        calls: dict[str, Callable[[], object]] = {}
        for size in chosen:
            case = Case(str(size), num_points or size, dim or size, num_queries or size, "arithmetic", storage=storage)
            calls[case.name] = partial(contender.on(case), case.queries())
            calls[case.name]()
        times = measure.interleaved(calls, _ROUNDS[mode], _PACE[mode])
        seconds = np.array([np.median(times[str(size)]) for size in chosen])
        line = np.stack((np.ones(len(chosen)), chosen), axis=1)
        (start, slope), *_ = np.linalg.lstsq(line / seconds[:, None], np.ones(len(chosen)), rcond=None)
        fixed = {"N": num_points, "d": dim, "B": num_queries}
        words = ", ".join(f"{key} = {value:,}" for key, value in fixed.items() if value)
        words += f", {storage}" if storage != "float32" else ""
        found.append(Sweep(name, words, chosen, tuple(seconds.tolist()), float(start), float(slope)))
    return found


# The cases along the path, and times from noise almost to the data.
_PATH_CASES = ("digits", "mnist-batch", "mnist-single", "mnist-single-uint8")
TIMES = (0.01, 0.1, 0.3, 0.5, 0.9, 0.999)


@dataclass(frozen=True)
class Path:
    """Seconds of one backend on a case for each of `TIMES`, with queries on the path to points of the data."""

    name: str
    seconds: tuple[float, ...]


def paths(backend: str, num_threads: int, mode: str) -> list[Path]:
    """What a time costs: near t = 0 all points have weight, and near t = 1 float32 loses its digits."""
    (contender,) = (c for c in backend_contenders(num_threads) if c.name == backend)
    found = []
    for case in cases(mode, _PATH_CASES):
        points, noise = case.points(), case.queries()
        ends = np.linspace(0, case.num_points - 1, case.num_queries).astype(int)
        targets = np.concatenate([points.block(j, j + 1) for j in ends])
        calls: dict[str, Callable[[], object]] = {}
        for t in TIMES:
            x = ((1.0 - t) * noise + t * targets).astype(np.float32)
            calls[str(t)] = partial(contender.prepare(points, t), x)
            calls[str(t)]()
        times = measure.interleaved(calls, _ROUNDS[mode], _PACE[mode])
        found.append(Path(case.name, tuple(float(np.median(times[str(t)])) for t in TIMES)))
    return found


# The cases for threads, each with its ceiling.
_THREAD_CASES = ("mnist-batch", "mnist-single")


@dataclass(frozen=True)
class Speedup:
    """Speed over that with one thread, of a backend on a case or of a ceiling, for each number of threads."""

    name: str
    is_case: bool
    threads: tuple[int, ...]
    factors: tuple[float, ...]


def speedups(backend: str, num_threads: int, mode: str) -> list[Speedup]:
    """What threads bring on a case bound by arithmetic and on one bound by bandwidth, and to the ceilings of both."""
    threads = sorted({num_threads, *(2**k for k in range(num_threads.bit_length()) if 2**k <= num_threads)})
    if mode == "short":
        threads = sorted({1, num_threads})
    found = []
    for case in cases(mode, _THREAD_CASES):
        calls: dict[str, Callable[[], object]] = {}
        work = {}
        x = case.queries()
        for count in threads:
            (contender,) = (c for c in backend_contenders(count) if c.name == backend)
            calls[f"case {count}"] = partial(contender.on(case), x)
            calls[f"case {count}"]()
            ceiling = ceilings.bounding(case, count, mode)
            calls[f"ceiling {count}"], work[count] = ceiling.call, ceiling.work
        times = measure.interleaved(calls, _ROUNDS[mode], _PACE[mode])
        own = [measure.ratio(times["case 1"], times[f"case {count}"])[0] for count in threads]
        limit = [
            measure.ratio(times["ceiling 1"], times[f"ceiling {count}"])[0] * work[count] / work[1] for count in threads
        ]
        found.append(Speedup(f"{case.name}, {backend}", True, tuple(threads), tuple(own)))
        found.append(Speedup(ceiling.name, False, tuple(threads), tuple(limit)))
    return found
