"""Peak memory of an evaluation above its inputs and outputs: `python -m bench.memory`.

Each measurement has a process of its own. That process imports everything, compiles what is compiled when first used
and starts its threads on a small problem; then it makes data and queries block by block, without temporaries; then it
makes the field and calls it. What counts is the highest resident memory from there on, less the resident memory just
before, less the size of the output. Anything that a contender keeps from the data counts too.

On Linux the high-water mark of the process is cleared before the field is made (VmHWM in /proc/self/status, by
/proc/self/clear_refs). Where that is not permitted the mark of `getrusage` stands in, both before and after: then
the figure is too small by what the small problem left behind, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastflow.backends.cores import usable_cores

from . import ROOT, machine
from .cases import TIME, Points
from .contenders import REFERENCE, Contender, backend_contenders, rival_contenders
from .table import print_table

# (N, d, B), and the limit in MB for the backends of fastflow.
SIZES = ((50_000, 3_072, 1_024), (60_000, 784, 128))
LIMITS = {(50_000, 3_072, 1_024): 64.0}

_MB = 1e6
_COLUMNS = ("size", "contender", "MB peak", "inputs", "output", "limit", "", "method")


def _contenders(num_threads: int, names: Sequence[str] | None = None) -> dict[str, Contender]:
    """Those whose memory is that of the process; with `names`, of the rivals only these."""
    found = [*backend_contenders(num_threads), *rival_contenders(num_threads, names)]
    return {contender.name: contender for contender in found if not contender.missing and contender.device == "cpu"}


# In the process that is measured -------------------------------------------------------------------------------


def measure_here(name: str, num_points: int, dim: int, num_queries: int, num_threads: int) -> dict[str, object]:
    """Peak bytes above inputs and outputs of one contender in this process, which must be a fresh one."""
    contender = _contenders(num_threads, [name])[name]
    small_data, small_x = _normal(1_000, dim, 1), _normal(min(num_queries, 64), dim, 2)
    contender.leave(contender.prepare(Points(small_data), TIME)(contender.enter(small_x)))
    del small_data, small_x

    data, x = _normal(num_points, dim, 3), _normal(num_queries, dim, 4)
    cleared = _clear_peak()
    before = _resident() if cleared else _peak_of_life()
    v = contender.leave(contender.prepare(Points(data), TIME)(contender.enter(x)))
    peak = _peak_since_clearing() if cleared else _peak_of_life()
    return {
        "above": peak - before - v.nbytes,
        "inputs": data.nbytes + x.nbytes,
        "output": v.nbytes,
        "method": "VmHWM" if cleared else "ru_maxrss (lower bound)",
    }


def _normal(rows: int, columns: int, seed: int) -> np.ndarray:
    """Standard normal float32 written straight into its array: every page touched, no temporary."""
    values = np.empty((rows, columns), dtype=np.float32)
    np.random.default_rng(seed).standard_normal(out=values, dtype=np.float32)
    return values


def _clear_peak() -> bool:
    """Set the high-water mark of this process back to what is resident now, if the system permits it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return abs(_peak_since_clearing() - _resident()) < _MB
    except (OSError, KeyError):
        return False


def _resident() -> int:
    return _status()["VmRSS"]


def _peak_since_clearing() -> int:
    return _status()["VmHWM"]


def _status() -> dict[str, int]:
    """The memory entries of /proc/self/status, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}


def _peak_of_life() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# In the process that asks --------------------------------------------------------------------------------------


def measure(name: str, size: tuple[int, int, int], num_threads: int) -> dict[str, object]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, "-m", "bench.memory", "--here", name, *map(str, size)]
    command += ["--num-threads", str(num_threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise machine.Unmeasurable(f"{name} on {size} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(name: str, size: tuple[int, int, int], figures: dict, is_backend: bool) -> list[str]:
    above = figures["above"] / _MB
    limit = LIMITS.get(size) if is_backend else None
    verdict = ("", "") if limit is None else (f"< {limit:g}", "met" if above < limit else "NOT MET")
    sizes = [f"{figures[key] / _MB:.1f}" for key in ("inputs", "output")]
    label = "N={:,} d={:,} B={:,}".format(*size)
    return [label, name, f"{above:.1f}", *sizes, *verdict, figures["method"]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="backends and rivals (default: all that run)")
    parser.add_argument("--size", nargs=3, type=int, metavar=("N", "D", "B"), help="one size instead of the two")
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    parser.add_argument("--here", nargs=4, metavar=("NAME", "N", "D", "B"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        name, *numbers = options.here
        with machine.equal_threads(options.num_threads):
            print(json.dumps(measure_here(name, *map(int, numbers), options.num_threads)))
        return 0

    known = _contenders(options.num_threads, options.contenders)
    # The float64 reference needs hours of processor time at these sizes: only when it is asked for.
    names = options.contenders or [name for name, c in known.items() if c.backend != REFERENCE]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"contender {unknown[0]!r} is unknown or cannot run here; known are {', '.join(known)}")
    rows = []
    try:
        machine.require_extension()
        for size in [tuple(options.size)] if options.size else SIZES:
            for name in names:
                figures = measure(name, size, options.num_threads)
                rows.append(_row(name, size, figures, known[name].backend is not None))
    except machine.Unmeasurable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(machine.machine_line(machine.machine(options.num_threads)))
    print_table("Peak memory above inputs and outputs, float32, MB", _COLUMNS, rows, left=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
