"""The deciding ratios: `python -m bench.compare`.

Every backend of fastflow (with each of its instruction sets) and every rival on every case, timed interleaved in one
run, each answer compared with float64. The ratio is the baseline's time over the contender's, in the same round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import answers, machine, measure, options
from .cases import TIME, Case, cases
from .ceilings import CEILING, Ceiling
from .contenders import REFERENCE, Contender, backend_contenders, rival_contenders
from .rivals import BASELINE, rivals
from .table import print_table

_ROUNDS = {"short": 5, "full": 15}


@dataclass(frozen=True)
class Result:
    """One contender on one case.

    Attributes:
        storage: dtype that it reads the data in.
        times: seconds per call, one for every round.
        seconds: their median.
        ratio, ratio_low, ratio_high: baseline's time over this one's: median, 10 % and 90 % over the rounds.
        error: largest relative error against float64.
        target, met: what the ratio must reach, and whether it does; None where there is no target.
        share: the part of the measured ceiling of the case that it reaches; None where none was measured.
    """

    case: str
    contender: str
    storage: str
    times: list[float]
    seconds: float
    rate: str
    ratio: float
    ratio_low: float
    ratio_high: float
    error: float
    target: str | None
    met: bool | None
    share: float | None = None


def contenders(
    num_threads: int, names: Sequence[str] | None = None, *, every_isa: bool = True
) -> tuple[list[Contender], list[Contender]]:
    """The baseline, then the backends that are meant to be fast, then the other rivals: those that can run, and not.

    With `names` only these and the baseline.
    """
    backends = [c for c in backend_contenders(num_threads, every_isa=every_isa) if c.backend != REFERENCE]
    known = [*(rival.name for rival in rivals()), *(contender.name for contender in backends)]
    for name in names or ():
        if name not in known:
            raise ValueError(f"contender {name!r} is unknown; known are {', '.join(known)}")
    wanted = {*known} if names is None else {BASELINE, *names}
    baseline, *others = rival_contenders(num_threads, wanted)
    found = [baseline, *(c for c in backends if c.name in wanted), *others]
    return [c for c in found if not c.missing], [c for c in found if c.missing]


def compare(
    case: Case,
    chosen: Sequence[Contender],
    rounds: int,
    *,
    pace: measure.Pace = measure.CAREFUL,
    ceiling: Ceiling | None = None,
) -> list[Result]:
    """Check and time the contenders, the baseline among them, on one case; and the ceiling, as if it were one."""
    calls: dict[str, Callable[[], Any]] = {}
    errors = {}
    for contender in chosen:
        call, x = contender.on(case), contender.enter(case.queries())
        try:
            found = contender.leave(call(x))  # the warm-up call
            errors[contender.name] = answers.check(case, found, contender.tolerance)
        except ArithmeticError as error:
            raise ArithmeticError(f"{contender.name}: {error}") from None
        calls[contender.name] = partial(call, x)
    if ceiling is not None:
        calls[CEILING] = ceiling.call
    times = measure.interleaved(calls, rounds, pace)

    results = []
    for contender in chosen:
        own = times[contender.name]
        ratio, low, high = measure.ratio(times[BASELINE], own)
        seconds = float(np.median(own))
        storage = contender.storage(case)
        share = None
        if ceiling is not None and contender.device == "cpu":
            work, _ = case.bounding_work(storage)
            share = measure.ratio(times[CEILING], own)[0] * work / ceiling.work
        target = case.targets.get(contender.name)
        results.append(
            Result(
                case=case.name,
                contender=contender.name,
                storage=storage,
                times=own,
                seconds=seconds,
                rate=case.rate(seconds, storage),
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
                error=errors[contender.name],
                target=None if target is None else str(target),
                met=None if target is None else target.met(ratio),
                share=share,
            )
        )
    return results


def _row(case: Case, result: Result) -> list[str]:
    is_baseline = result.contender == BASELINE
    return [
        f"{case.name}: N={case.num_points:,} d={case.dim:,} B={case.num_queries:,}",
        result.contender,
        result.storage,
        f"{result.seconds * 1e3:.4g}",
        result.rate,
        "1" if is_baseline else f"{result.ratio:.2f}",
        "" if is_baseline else f"{result.ratio_low:.2f} to {result.ratio_high:.2f}",
        result.target or "",
        {None: "", True: "met", False: "NOT MET"}[result.met],
        f"{result.error:.1e}",
    ]


_COLUMNS = ("case", "contender", "storage", "ms", "rate", f"x {BASELINE}", "10-90 %", "target", "", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options.parser("compare", __doc__, _ROUNDS)
    options.add_cases(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, results and all times to FILE")
    given = options.parsed(parser, _ROUNDS, arguments)

    results: list[Result] = []
    rows: list[list[str]] = []
    try:
        machine.require_extension()
        with machine.equal_threads(given.num_threads):
            chosen, missing = contenders(given.num_threads, given.contenders)
            here = machine.machine(given.num_threads)
            for case in cases(given.mode, given.cases):
                print(f"{case.name} ({case.work}) ...", file=sys.stderr, flush=True)
                found = compare(case, chosen, given.rounds)
                results += found
                rows += [_row(case, result) for result in found]
    except (machine.Unmeasurable, ArithmeticError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    print(machine.machine_line(here))
    print_table(f"{given.rounds} rounds, t = {TIME}, medians", _COLUMNS, rows, left=3)
    for contender in missing:
        print(f"missing: {contender.name}: {contender.missing}")
    decided = [result.met for result in results if result.met is not None]
    if decided:
        print(f"targets: {sum(decided)} of {len(decided)} met")
    else:
        print("targets: none, they are set for the full sizes")
    if given.json:
        report = {
            "machine": here,
            "mode": given.mode,
            "rounds": given.rounds,
            "time": TIME,
            "results": [asdict(result) for result in results],
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
