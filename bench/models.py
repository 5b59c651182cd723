"""What a variance of each point costs: `python -m bench.models`.

The same data and queries in a field whose points share one variance and in one whose points have each their own, timed
interleaved; the ratio is the shared one's time over the other's, in the same round. One time for the whole batch, and
one for each query.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import answers, machine, measure, options
from .contenders import REFERENCE, Contender, backend_contenders, field
from .table import print_table

VARIANCE = 0.01  # shared; those of the points are uniform between half and one and a half of it
TIMES = (0.05, 0.5, 0.95)  # shared by the batch; those of the queries are uniform between first and last
TARGET = 0.5  # speed with variances of each point over speed with a shared one

# N, d, B; and N in short mode.
SIZES = {
    "toy2d": ((10_000, 2, 4_096), 1_000),
    "digits": ((1_797, 64, 256), 1_797),
    "batch": ((20_000, 784, 128), 1_000),
    "single": ((20_000, 784, 1), 5_000),
}
_ROUNDS = {"short": 2, "full": 9}
_PACE = {"short": measure.QUICK, "full": measure.CAREFUL}

_COLUMNS = ("size", "backend", "t", "shared ms", "own ms", "ratio", "10-90 %", "target", "", "error")


@dataclass(frozen=True)
class Problem:
    """Data, variances of the points, and queries on the paths to them, for one size and one form of the time."""

    name: str
    data: np.ndarray
    variances: np.ndarray
    x: np.ndarray
    t: float | np.ndarray

    @property
    def form(self) -> str:
        return f"{self.t:g}" if isinstance(self.t, float) else "of each query"

    def models(self) -> dict[str, dict[str, Any]]:
        """What a field is told of the variances, by name."""
        return {"shared": {"variance": VARIANCE}, "own": {"variance": self.variances}}


def problems(name: str, mode: str) -> list[Problem]:
    """One for each time, and one with a time for each query."""
    (num_points, dim, num_queries), fewer = SIZES[name]
    num_points = num_points if mode == "full" else fewer
    generator = np.random.default_rng(20244)
    data = generator.standard_normal((num_points, dim), dtype=np.float32)
    variances = VARIANCE * generator.uniform(0.5, 1.5, num_points)
    chosen = generator.integers(num_points, size=num_queries)
    source, around = generator.standard_normal((2, num_queries, dim))
    targets = data[chosen] + np.sqrt(variances[chosen])[:, None] * around
    times = (*TIMES, generator.uniform(TIMES[0], TIMES[-1], num_queries))
    return [
        Problem(name, data, variances, _between(source, targets, t).astype(np.float32), t)
        for t in (times if mode == "full" else times[-2:])
    ]


def _between(source: np.ndarray, target: np.ndarray, t: float | np.ndarray) -> np.ndarray:
    t = np.reshape(t, (-1, 1))
    return (1.0 - t) * source + t * target


def compare(problem: Problem, contender: Contender, num_threads: int, mode: str, rounds: int) -> list[str]:
    """A row: both models on one problem, checked against float64 and timed in turns."""
    calls: dict[str, Callable[[], np.ndarray]] = {}
    errors = []
    for name, model in problem.models().items():
        made = field(problem.data, contender.backend, contender.isa, num_threads, **model)
        calls[name] = partial(made, problem.x, problem.t)
        errors.append(_check(f"{contender.name}: {problem.name}", problem, model, calls[name]()))
    times = measure.interleaved(calls, rounds, _PACE[mode])
    ratio, low, high = measure.ratio(times["shared"], times["own"])
    decided = mode == "full"
    return [
        "{}: N={:,} d={:,} B={:,}".format(problem.name, *problem.data.shape, len(problem.x)),
        contender.name,
        problem.form,
        f"{np.median(times['shared']) * 1e3:.4g}",
        f"{np.median(times['own']) * 1e3:.4g}",
        f"{ratio:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"≥ {TARGET:g}" if decided else "",
        ("met" if ratio >= TARGET else "NOT MET") if decided else "",
        f"{max(errors):.1e}",
    ]


def _check(name: str, problem: Problem, options: dict[str, Any], v: np.ndarray) -> float:
    """The relative error of first, middle and last query against the float64 reference; ArithmeticError if large."""
    rows = sorted({0, len(v) // 2, len(v) - 1})
    x = problem.x[rows].astype(np.float64)
    t = problem.t if isinstance(problem.t, float) else problem.t[rows]
    error = answers.relative_error(v[rows], field(problem.data, REFERENCE, None, 1, **options)(x, t))
    if not error <= answers.LIMIT:
        raise ArithmeticError(f"{name}: relative error {error:.2g} against float64 is above {answers.LIMIT:g}")
    return error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options.parser("models", __doc__, _ROUNDS)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=tuple(SIZES), metavar="SIZE")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that run, but for the reference")
    given = options.parsed(parser, _ROUNDS, arguments)
    known = {c.name: c for c in backend_contenders(given.num_threads) if not c.missing and c.backend != REFERENCE}
    unknown = [name for name in given.backends or () if name not in known]
    if unknown:
        parser.error(f"backend {unknown[0]!r} is unknown or cannot run here; known are {', '.join(known)}")
    rows = []
    try:
        machine.require_extension()
        for size in given.sizes:
            print(f"{size} ...", file=sys.stderr, flush=True)
            for problem in problems(size, given.mode):
                for name in given.backends or known:
                    rows.append(compare(problem, known[name], given.num_threads, given.mode, given.rounds))
    except (machine.Unmeasurable, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(machine.machine_line(machine.machine(given.num_threads)))
    rounds = f"{given.rounds} rounds"
    title = f"Variances of each point ({VARIANCE:g} times 0.5 to 1.5) beside a shared one, float32, {rounds}"
    print_table(title, _COLUMNS, rows, left=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
