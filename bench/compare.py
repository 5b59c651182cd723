"""The deciding ratios: `python -m bench.compare`.

Every backend of fastflow (with each of its instruction sets) and every rival on every case, timed interleaved in one
run, each answer compared with float64. The ratio is the baseline's time over the contender's, in the same round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastflow.backends import usable_cores

from . import answers, machine, measure
from .cases import MODES, NAMES, TIME, Case, cases
from .contenders import REFERENCE, Call, Contender, backend_contenders, rival_contenders
from .rivals import BASELINE
from .table import print_table

_ROUNDS = {"short": 5, "full": 15}


@dataclass(frozen=True)
class Result:
    """One contender on one case.

    Attributes:
        times: seconds per call, one for every round.
        ratio, ratio_low, ratio_high: baseline's time over this one's: median, 10 % and 90 % over the rounds.
        error: largest relative error against float64.
        target, met: what the ratio must reach, and whether it does; None where there is no target.
    """

    case: str
    contender: str
    times: list[float]
    seconds: float
    rate: str
    ratio: float
    ratio_low: float
    ratio_high: float
    error: float
    target: str | None
    met: bool | None


def contenders(num_threads: int) -> list[Contender]:
    """The baseline, then the backends that are meant to be fast, then the other rivals; those that can run here."""
    baseline, *others = rival_contenders()
    backends = backend_contenders(num_threads, every_isa=True)
    chosen = [baseline, *(c for c in backends if c.backend != REFERENCE), *others]
    return [c for c in chosen if not c.missing]


def compare(case: Case, chosen: Sequence[Contender], rounds: int) -> list[Result]:
    """Check and time the contenders, the baseline among them, on one case."""
    x = case.queries()
    calls: dict[str, Callable[[], np.ndarray]] = {}
    errors = {}
    for contender in chosen:
        call: Call = contender.prepare(case.data(), TIME)
        try:
            errors[contender.name] = answers.check(case, call(x))  # the warm-up call
        except ArithmeticError as error:
            raise ArithmeticError(f"{contender.name}: {error}") from None
        calls[contender.name] = partial(call, x)
    times = measure.interleaved(calls, rounds)

    results = []
    for contender in chosen:
        own = times[contender.name]
        ratio, low, high = measure.band([base / mine for base, mine in zip(times[BASELINE], own, strict=True)])
        seconds = float(np.median(own))
        target = case.targets.get(contender.name)
        results.append(
            Result(
                case=case.name,
                contender=contender.name,
                times=own,
                seconds=seconds,
                rate=case.rate(seconds),
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
                error=errors[contender.name],
                target=None if target is None else str(target),
                met=None if target is None else target.met(ratio),
            )
        )
    return results


def _row(case: Case, result: Result) -> list[str]:
    is_baseline = result.contender == BASELINE
    return [
        f"{case.name}: N={case.num_points:,} d={case.dim:,} B={case.num_queries:,}",
        result.contender,
        f"{result.seconds * 1e3:.4g}",
        result.rate,
        "1" if is_baseline else f"{result.ratio:.2f}",
        "" if is_baseline else f"{result.ratio_low:.2f} to {result.ratio_high:.2f}",
        result.target or "",
        {None: "", True: "met", False: "NOT MET"}[result.met],
        f"{result.error:.1e}",
    ]


_COLUMNS = ("case", "contender", "ms", "rate", f"x {BASELINE}", "10-90 %", "target", "", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("--mode", choices=MODES, default="full", help="short: fewer points and rounds, no targets")
    parser.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES, metavar="CASE", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, help="rounds per case (full: 15, short: 5)")
    parser.add_argument("--num-threads", type=int, default=usable_cores(), help="for fastflow and BLAS alike")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, results and all times to FILE")
    options = parser.parse_args(arguments)
    rounds = _ROUNDS[options.mode] if options.rounds is None else options.rounds
    if rounds < 1 or options.num_threads < 1:
        parser.error("--rounds and --num-threads must be at least 1")

    results: list[Result] = []
    rows: list[list[str]] = []
    try:
        machine.require_extension()
        with machine.equal_threads(options.num_threads):
            here = machine.machine(options.num_threads)
            chosen = contenders(options.num_threads)
            for case in cases(options.mode, options.cases):
                print(f"{case.name} ({case.work}) ...", file=sys.stderr, flush=True)
                found = compare(case, chosen, rounds)
                results += found
                rows += [_row(case, result) for result in found]
    except (machine.Unmeasurable, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    print(machine.machine_line(here))
    print_table(f"{rounds} rounds, t = {TIME}, float32, medians", _COLUMNS, rows, left=2)
    decided = [result.met for result in results if result.met is not None]
    if decided:
        print(f"targets: {sum(decided)} of {len(decided)} met")
    else:
        print("targets: none, they are set for the full sizes")
    if options.json:
        report = {
            "machine": here,
            "mode": options.mode,
            "rounds": rounds,
            "time": TIME,
            "results": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
