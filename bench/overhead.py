"""What a small call costs: `python -m bench.overhead`.

One query in the plane against 1,000 points: the work is small, so this is checking of arguments, coefficients,
starting the kernel and building the result. Microseconds per call, median over many calls.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from fastflow.backends import usable_cores

from . import machine
from .contenders import REFERENCE, backend_contenders, field
from .measure import SETTLE, band
from .table import print_table

NUM_POINTS, DIM, TIME = 1_000, 2, 0.1
TARGET = 30.0  # microseconds

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

    generator = np.random.default_rng(0)
    data, x = generator.standard_normal((NUM_POINTS, DIM)), generator.standard_normal((1, DIM))
    rows = []
    for contender in backend_contenders(options.num_threads):
        if contender.missing:
            continue
        for dtype in (np.float32, np.float64):
            made = field(data.astype(dtype), contender.backend, contender.isa, options.num_threads)
            query = x.astype(dtype)
            for form, t in (("scalar", TIME), ("(1,)", np.array([TIME]))):
                time.sleep(SETTLE)
                median, low, high = band(microseconds(lambda made=made, q=query, t=t: made(q, t), options.calls))
                verdict = ("", "")
                if contender.backend != REFERENCE:
                    verdict = (f"< {TARGET:g}", "met" if median < TARGET else "NOT MET")
                rows.append(
                    [contender.name, query.dtype.name, form, f"{median:.1f}", f"{low:.1f} to {high:.1f}", *verdict]
                )
    print(machine.machine_line(machine.machine(options.num_threads)))
    print_table(f"N = {NUM_POINTS:,}, d = {DIM}, B = 1: {options.calls:,} calls each", _COLUMNS, rows, left=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
