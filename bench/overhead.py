"""What a small call costs: `python -m bench.overhead`.

One query in the plane against 1,000 points: the work is small, so this is checking of arguments, coefficients,
starting the kernel and building the result. Microseconds per call, median over many calls.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastflow.backends.cores import usable_cores

from . import machine
from .contenders import REFERENCE, backend_contenders, field
from .measure import SETTLE, band
from .table import print_table

NUM_POINTS, DIM, TIME = 1_000, 2, 0.1
TARGET = 15.0  # microseconds, for every backend but the reference

_COLUMNS = ("backend", "x", "t", "us", "10-90 %", "target", "")


def microseconds(call: Callable[[], object], count: int) -> list[float]:
    """The time of each of `count` calls, after a tenth as many untimed ones."""
    for _ in range(max(1, count // 10)):
        call()
    times = np.empty(count)
    for i in range(count):
        start = time.perf_counter_ns()
        call()
        times[i] = time.perf_counter_ns() - start
    return (times / 1e3).tolist()


@dataclass(frozen=True)
class Overhead:
    """Microseconds per call of one backend, for one dtype of the queries and one form of the time."""

    backend: str
    dtype: str
    form: str
    median: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        return self.median < TARGET


def overheads(num_threads: int, calls: int, backends: Sequence[str] | None = None) -> list[Overhead]:
    """All that can run here, or those of some backends."""
    generator = np.random.default_rng(0)
    data, x = generator.standard_normal((NUM_POINTS, DIM)), generator.standard_normal((1, DIM))
    found = []
    for contender in backend_contenders(num_threads):
        if contender.missing or (backends is not None and contender.backend not in backends):
            continue
        for dtype in (np.float32, np.float64):
            made = field(data.astype(dtype), contender.backend, contender.isa, num_threads)
            query = x.astype(dtype)
            for form, t in (("scalar", TIME), ("(1,)", np.array([TIME]))):
                time.sleep(SETTLE)
                times = microseconds(lambda made=made, q=query, t=t: made(q, t), calls)
                found.append(Overhead(contender.name, query.dtype.name, form, *band(times)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__.split("\n\n")[0])
    parser.add_argument("--calls", type=int, default=20_000, help="timed calls for each row (default 20000)")
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    options = parser.parse_args(arguments)
    if options.calls < 1 or options.num_threads < 1:
        parser.error("--calls and --num-threads must be at least 1")
    try:
        machine.require_extension()
    except machine.Unmeasurable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    rows = []
    for found in overheads(options.num_threads, options.calls):
        verdict = ("", "") if found.backend == REFERENCE else (f"< {TARGET:g}", "met" if found.met else "NOT MET")
        band_ = f"{found.low:.1f} to {found.high:.1f}"
        rows.append([found.backend, found.dtype, found.form, f"{found.median:.1f}", band_, *verdict])
    print(machine.machine_line(machine.machine(options.num_threads)))
    print_table(f"N = {NUM_POINTS:,}, d = {DIM}, B = 1: {options.calls:,} calls each", _COLUMNS, rows, left=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
