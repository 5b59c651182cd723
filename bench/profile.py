"""Where the time of the native backend goes: shares of its parts in each case, sampled by Linux's perf.

A process of its own prepares a case and evaluates it again and again; perf looks at all its threads meanwhile. The
parts are told apart by the names of the functions of the C library, into which the compiler has put what they inline.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from . import ROOT, machine, options
from .cases import Case, cases
from .contenders import backend_contenders
from .table import print_table

OURS = "native"
SECONDS = {"short": 0.5, "full": 3.0}

# The parts of the library, and which functions belong to them: the first that matches.
_PARTS = (
    (r"batch_(dots|sums)_|few_(stream|whole_sums|pass)|multiply_", "products"),
    (r"batch_(weigh|weights|logits|refine|keep|take_heavy)|few_(weigh|dots_strip|screen)", "weights"),
    (r"low_", "all of few dimensions"),
    (r"batch_compute", "points into tiles"),
    (r"merge|join|write|pack|centred_query", "merging"),
    (r"worker_main|run_tasks|ff_parallel", "sharing out, waiting"),
    (r"", "the rest"),
)
_OUTSIDE = "outside the library"
PARTS = (*(part for _, part in _PARTS), _OUTSIDE)

_LINE = re.compile(r"^\s*(\d+\.\d+)%\s+(\S+)\s+\[(.)\]\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Profile:
    """The share of each of `PARTS` in the time of the threads on one case."""

    case: str
    shares: tuple[float, ...]


@cache
def missing() -> str:
    """Why nothing can be sampled here; empty if it can."""
    if shutil.which("perf") is None:
        return "needs perf, a program of Linux"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["perf", "record", "-q", "-o", f"{folder}/data", "true"], capture_output=True, text=True, check=False
        )
    return "" if done.returncode == 0 else f"perf is not allowed to sample: {done.stderr.strip().splitlines()[0]}"


def profiles(chosen: Sequence[Case], num_threads: int, mode: str) -> list[Profile]:
    """The shares of each case, one after the other."""
    return [Profile(case.name, _shares(case, num_threads, mode)) for case in chosen]


def _shares(case: Case, num_threads: int, mode: str) -> tuple[float, ...]:
    with tempfile.TemporaryDirectory() as folder, _running(case, num_threads, mode) as process:
        data = f"{folder}/data"
        record = ["perf", "record", "-q", "-o", data, "-p", str(process), "--", "sleep", str(SECONDS[mode])]
        subprocess.run(record, check=True, capture_output=True)
        report = ["perf", "report", "-i", data, "--stdio", "--no-children", "-F", "overhead,dso,symbol"]
        text = subprocess.run(report, check=True, capture_output=True, text=True).stdout
    return shares(text)


def shares(report: str) -> tuple[float, ...]:
    """From lines of perf's report to the share of each part."""
    found = dict.fromkeys(PARTS, 0.0)
    for percent, library, _, symbol in _LINE.findall(report):
        found[_part(library, symbol)] += float(percent)
    total = sum(found.values())
    if total == 0.0:
        raise machine.Unmeasurable("perf has seen nothing of the process that it sampled")
    return tuple(found[part] / total for part in PARTS)


def _part(library: str, symbol: str) -> str:
    if not library.startswith("libfastflow"):
        return _OUTSIDE
    return next(part for pattern, part in _PARTS if re.search(pattern, symbol))


@contextmanager
def _running(case: Case, num_threads: int, mode: str) -> Iterator[int]:
    """A process that evaluates the case until it is stopped: its number."""
    command = [sys.executable, "-m", "bench.profile", "--evaluate", case.name]
    command += ["--mode", mode, "--num-threads", str(num_threads)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline().strip() != "ready":
                raise machine.Unmeasurable(f"the process that evaluates {case.name} did not start")
            yield process.pid
        finally:
            process.kill()


def _evaluate(case: Case, num_threads: int) -> None:
    """Evaluate for ever, and say when the first evaluation is done."""
    (contender,) = (c for c in backend_contenders(num_threads) if c.name == OURS)
    call, x = contender.on(case), case.queries()
    call(x)
    print("ready", flush=True)
    while True:
        call(x)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options.parser("profile", __doc__, {"short": 1, "full": 1})
    options.add_cases(parser)
    parser.add_argument("--evaluate", metavar="CASE", help="only evaluate this case, until stopped")
    given = options.parsed(parser, {"short": 1, "full": 1}, arguments)
    try:
        machine.require_extension()
        if given.evaluate:
            _evaluate(*cases(given.mode, [given.evaluate]), given.num_threads)
        if reason := missing():
            raise machine.Unmeasurable(reason)
        found = profiles(cases(given.mode, given.cases), given.num_threads, given.mode)
    except (machine.Unmeasurable, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table("shares of the time of all threads", ("case", *PARTS), rows(found))
    return 0


def rows(found: Sequence[Profile]) -> list[list[str]]:
    """A line of a table for each case."""
    return [[own.case, *(f"{share:.2f}" if share >= 0.005 else "" for share in own.shares)] for own in found]


if __name__ == "__main__":
    sys.exit(main())
