"""The figures of this machine: `python -m bench.report` measures them and writes docs/performance.md.

Speed of every contender on every case beside the ceilings of the machine, accuracy on real images, the cost of a
small call, the growth of the time with the sizes, and what threads bring; and which targets these figures reach.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastflow._optional import require

from . import ROOT, accuracy, ceilings, held, machine, measure, options, overhead, pictures, profile, scaling, targets
from .cases import TIME, Case, cases
from .compare import Result, compare, contenders
from .contenders import Contender, isas
from .table import markdown_table, plain_table

_ROUNDS = {"short": 2, "full": 9}
_PACE = {"short": measure.QUICK, "full": measure.CAREFUL}
_LIBRARIES = ("sklearn.datasets", "skimage.data", "matplotlib.figure")
_CALLS = {"short": 200, "full": 20_000}

_OUT = ROOT / "docs"

# The contender whose figures the targets are about, and the rival that the GPU is judged by.
OURS, GPU = "native", "cuda-float32"


@dataclass(frozen=True)
class Section:
    """A table of the report with the words that explain it, and its picture, a file name."""

    title: str
    words: str
    columns: Sequence[str]
    rows: list[list[str]]
    left: int = 1
    picture: str = ""


@dataclass
class Speeds:
    """What `compare` found, and what follows from it."""

    cases: list[Case]
    results: dict[tuple[str, str], Result] = field(default_factory=dict)  # by case and contender
    devices: dict[str, str] = field(default_factory=dict)  # by contender
    rivals: set[str] = field(default_factory=set)

    def best_rival(self, case: Case) -> Result:
        """The fastest rival on the processor."""
        found = (self.results[case.name, name] for name in self.rivals if self.devices[name] == "cpu")
        return min(found, key=lambda result: result.seconds)

    def ratio(self, case: Case, name: str) -> tuple[float, float, float]:
        """Speed over the best processor rival, within rounds: median, 10 % and 90 %."""
        return measure.ratio(self.best_rival(case).times, self.results[case.name, name].times)

    def figures(self) -> dict[tuple[str, str], float]:
        """What the targets ask for, of our contender."""
        found = {}
        for case in self.cases:
            own = self.results.get((case.name, OURS))
            if own is None:
                continue
            found[case.name, targets.SPEED] = self.ratio(case, OURS)[0]
            if own.share is not None:
                found[case.name, targets.SHARE] = own.share
                found[case.name, targets.AT_CEILING] = found[case.name, targets.SPEED] / own.share
            gpu = self.results.get((case.name, GPU))
            if gpu is not None:
                found[case.name, targets.GPU] = measure.ratio(gpu.times, own.times)[0]
        return found


def speeds(chosen: Sequence[Contender], names: Sequence[str], mode: str, rounds: int, num_threads: int) -> Speeds:
    """All contenders on all cases, interleaved with the ceiling of each case."""
    found = Speeds(cases(mode, list(names)))
    found.devices = {contender.name: contender.device for contender in chosen}
    found.rivals = {contender.name for contender in chosen if contender.backend is None}
    for case in found.cases:
        _progress(f"{case.name} ({case.work})")
        ceiling = ceilings.bounding(case, num_threads, mode)
        for result in compare(case, chosen, rounds, pace=_PACE[mode], ceiling=ceiling):
            found.results[case.name, result.contender] = result
    return found


# Sections -------------------------------------------------------------------------------------------------------


def _speed_section(found: Speeds) -> Section:
    rows = []
    for (name, contender), result in found.results.items():
        case = next(case for case in found.cases if case.name == name)
        ratio, low, high = found.ratio(case, contender)
        best = contender == found.best_rival(case).contender
        rows.append(
            [
                f"{name}: N={case.num_points:,} d={case.dim:,} B={case.num_queries:,}",
                contender,
                result.storage,
                f"{result.seconds * 1e3:.4g}",
                "best rival" if best else f"{ratio:.2f}",
                "" if best else f"{low:.2f} to {high:.2f}",
                result.rate,
                "" if result.share is None else f"{result.share:.2f}",
                f"{result.error:.1e}",
            ]
        )
    words = (
        f"Linear schedule, t = {TIME}, medians. All contenders of a case take turns in one run, and a ratio is the "
        "median of the ratios within a round, with its 10 % and 90 % quantiles. The best rival is the fastest on the "
        "processor; contenders on a GPU have their data and queries there before the time starts. The share is that of "
        "the ceiling that bounds the case, multiply-adds or reading (each stored value once), timed in the same "
        "rounds. It can exceed 1 where matrix units do the multiply-adds, or where data stay in a cache."
    )
    columns = ("case", "contender", "storage", "ms", "x best rival", "10-90 %", "rate", "share", "error")
    return Section("Speed", words, columns, rows, left=3, picture=pictures.ROOFLINE)


def _overview_section(found: Speeds) -> Section:
    names = list(found.devices)
    rows = [
        [
            case.name,
            *(f"{found.results[case.name, n].seconds * 1e3:.4g} ({found.ratio(case, n)[0]:.2f})" for n in names),
        ]
        for case in found.cases
    ]
    words = "Milliseconds, and in brackets the speed over the best rival on the processor, which itself has 1.00."
    return Section("All cases, all contenders", words, ("case", *names), rows)


def _roof(num_threads: int, mode: str) -> list[tuple[ceilings.Ceiling, list[float]]]:
    """The ceilings, first multiply-adds and then reading, and some measured rates of each, in its unit."""
    all_ = (ceilings.multiply_adds(num_threads), ceilings.reading(num_threads, mode), ceilings.sgemm(mode))
    return [
        (ceiling, [ceiling.rate(measure.turn(ceiling.call, measure.TURN, _PACE[mode])) for _ in range(5)])
        for ceiling in all_
    ]


def _ceiling_section(roof: list[tuple[ceilings.Ceiling, list[float]]], num_threads: int) -> Section:
    rows = [[own.name, f"{np.median(rates):.4g}", f"{max(rates):.4g}", own.unit] for own, rates in roof]
    words = f"By {num_threads} threads. `bench/ceilings.c` is compiled for this processor when the report is made."
    return Section("Ceilings", words, ("what", "median", "best", "unit"), rows)


def _accuracy_section(found: Sequence[accuracy.Accuracy], mode: str) -> Section:
    rows = [
        [f"[-1, 1] + {own.shift:g}" if own.shift else "[-1, 1]", own.contender, own.storage]
        + [f"{error:.1e}" for error in own.errors]
        for own in found
    ]
    words = (
        "Largest relative error of the velocity against float64, over queries on the path to patches of photographs "
        f"({accuracy.size(mode)}): the largest difference of a component over the largest component."
    )
    return Section(
        "Accuracy", words, ("data", "contender", "storage", *(f"t = {t:g}" for t in accuracy.TIMES)), rows, 3
    )


def _overhead_section(found: Sequence[overhead.Overhead]) -> Section:
    rows = [[o.backend, o.dtype, o.form, f"{o.median:.1f}", f"{o.low:.1f} to {o.high:.1f}"] for o in found]
    words = f"Microseconds per call, N = {overhead.NUM_POINTS:,}, d = {overhead.DIM}, B = 1."
    return Section("Small calls", words, ("backend", "x", "t", "us", "10-90 %"), rows, left=3)


def _linear_section(found: Sequence[scaling.Sweep]) -> Section:
    rows = []
    for sweep in found:
        growth, size = sweep.steepest
        rows.append(
            [
                sweep.name,
                f"{sweep.sizes[0]:,} to {sweep.sizes[-1]:,}",
                sweep.fixed,
                f"{sweep.start * 1e3:.3g}",
                f"{sweep.slope * 1e6:.3g}",
                f"{sweep.off:.2f}",
                f"{growth:.2f} (at {size:,})",
                f"{1 / sweep.fall[0]:.2f} (at {sweep.fall[1]:,})" if sweep.fall[0] < 1.0 else "",
                "YES" if sweep.has_cliff else "none",
            ]
        )
    words = (
        "Straight lines fitted to the times (relative least squares): start in ms, slope in us for each further point, "
        "dimension or query. *Off* is the largest factor between a time and its line. The *steepest step* is the "
        "growth of the time from one size to the next over that of the size: 1 is proportional. The *deepest fall* is "
        "the factor by which a larger size takes less time than the one before it. Either is a cliff above "
        f"{scaling.CLIFF:g}."
    )
    columns = ("size", "range", "fixed", "start", "slope", "off", "steepest step", "deepest fall", "cliff")
    return Section("Linear cost", words, columns, rows, left=3, picture=pictures.LINEAR)


def _path_section(found: Sequence[scaling.Path]) -> Section:
    rows = [[own.name, *(f"{seconds * 1e3:.4g}" for seconds in own.seconds)] for own in found]
    words = (
        f"Milliseconds of `{OURS}` from noise almost to the data, with queries on the path to points of it. Near t = 0 "
        "all points have weight, and near t = 1 float32 loses its digits: neither may cost much."
    )
    return Section("Along the path", words, ("case", *(f"t = {t:g}" for t in scaling.TIMES)), rows)


def _thread_section(found: Sequence[scaling.Speedup]) -> Section:
    counts = found[0].threads
    rows = [[own.name, *(f"{factor:.2f}" for factor in own.factors)] for own in found]
    words = "Speed over one thread, of two cases and of the ceilings that bound them."
    columns = ("what", *(f"{count} threads" if count > 1 else "1 thread" for count in counts))
    return Section("Threads", words, columns, rows, picture=pictures.THREADS)


def _target_section(found: Sequence[targets.Verdict]) -> Section:
    rows = [[own.target, own.limit, own.value, own.at_ceiling, own.outcome] for own in found]
    met, missed = (sum(own.outcome == word for own in found) for word in (targets.MET, targets.MISSED))
    words = (
        f"Of the figures of `{OURS}`: {met} met, {missed} not met, {len(found) - met - missed} not decided here. "
        "*At the ceiling* is what a speed would be if the whole call ran at the measured ceiling that bounds the case: "
        "a limit above it asks for more than the machine does. *Where the time goes* has the rest."
    )
    return Section("Targets", words, ("target", "limit", "measured", "at the ceiling", ""), rows)


def _profile_section(found: Sequence[profile.Profile]) -> Section:
    words = (
        f"Shares of the time of all threads of `{OURS}`, sampled by perf. Products are the dot products and the sums, "
        "with the reading of the data where queries are few; weights are logits and their exponentials."
    )
    return Section("Where the time goes", words, ("case", *profile.PARTS), profile.rows(found))


# The report -----------------------------------------------------------------------------------------------------


def _dots(found: Speeds) -> list[pictures.Dot]:
    """Our contender and the best rival on the cases that do arithmetic or read."""
    dots = []
    for case in found.cases:
        if case.bound == "exponentials":
            continue
        for result in (found.results.get((case.name, OURS)), found.best_rival(case)):
            if result is not None:
                name = f"{OURS}, {result.storage}" if result.contender == OURS else "best rival"
                intensity = case.flop / case.bytes_read(result.storage)
                dots.append(pictures.Dot(case.name, name, intensity, case.flop / 1e9 / result.seconds))
    return dots


@dataclass(frozen=True)
class Figures:
    """What the pictures show."""

    speeds: Speeds
    roof: tuple[float, float]
    sweeps: list[scaling.Sweep]
    speedups: list[scaling.Speedup]

    def draw(self, folder: Path) -> None:
        """Write the pictures into a folder."""
        pictures.roofline(_dots(self.speeds), *self.roof, folder / pictures.ROOFLINE)
        if self.sweeps:
            pictures.linear_cost(self.sweeps, folder / pictures.LINEAR)
            pictures.threads(self.speedups, folder / pictures.THREADS)


def measured(
    chosen: Sequence[Contender], names: Sequence[str], mode: str, rounds: int, num_threads: int
) -> tuple[list[Section], Figures]:
    """Everything, in the order of the page."""
    _progress("ceilings")
    roof = _roof(num_threads, mode)
    found = speeds(chosen, names, mode, rounds, num_threads)
    _progress("accuracy")
    accuracies = accuracy.accuracies(chosen, mode)
    backends = [contender.backend for contender in chosen if contender.backend is not None]
    _progress("small calls")
    overheads = overhead.overheads(num_threads, _CALLS[mode], backends)
    shares: list[profile.Profile] = []
    sweeps: list[scaling.Sweep] = []
    paths: list[scaling.Path] = []
    speedups: list[scaling.Speedup] = []
    if OURS in backends:
        if not profile.missing():
            _progress("where the time goes")
            shares = profile.profiles(found.cases, num_threads, mode)
        _progress("growth of the time, threads")
        sweeps, paths = scaling.sweeps(OURS, num_threads, mode), scaling.paths(OURS, num_threads, mode)
        speedups = scaling.speedups(OURS, num_threads, mode)

    verdicts = targets.verdicts(
        found.figures(),
        [own for own in overheads if own.backend == OURS],
        next(iter(isas(OURS)), None),
        num_threads,
        mode == "full",
    )
    page = [
        _overview_section(found),
        _target_section(verdicts),
        _speed_section(found),
        *([_profile_section(shares)] if shares else []),
        _ceiling_section(roof, num_threads),
        _accuracy_section(accuracies, mode),
    ]
    if overheads:
        page.append(_overhead_section(overheads))
    if sweeps:
        page += [_linear_section(sweeps), _path_section(paths), _thread_section(speedups)]
    multiply_adds, reading = (float(np.median(rates)) for _, rates in roof[:2])
    return page, Figures(found, (multiply_adds, reading), sweeps, speedups)


def markdown(here: dict[str, str], sections: Sequence[Section], missing: Sequence[str], mode: str) -> str:
    """The page."""
    lines = [
        "# Performance",
        "",
        f"Written by `python -m bench.report --mode {mode}` on {here['date']}: edit `bench/report.py`, not this page.",
        "Times hold for this machine alone; ratios carry further. `bench/README.md` says how they are taken.",
        "",
        markdown_table(("machine", ""), [[name, value] for name, value in here.items()], left=2),
    ]
    lines += ["", *(f"- Not here: {words}" for words in missing)] if missing else []
    for section in sections:
        lines += ["", f"## {section.title}", "", section.words, ""]
        lines.append(markdown_table(section.columns, section.rows, left=section.left))
        if section.picture:
            lines += ["", f"![{section.title}](images/{section.picture})"]
    return "\n".join(lines) + "\n"


def _progress(words: str) -> None:
    print(f"{words} ...", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options.parser("report", __doc__, _ROUNDS)
    options.add_cases(parser)
    parser.add_argument("--out", type=Path, default=_OUT, metavar="DIR", help="where to write (default: docs)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = options.parsed(parser, _ROUNDS, arguments)
    if held.isa() and given.out == _OUT and not given.no_write:
        parser.error(f"--out is needed where all are held to {held.isa()}: {_OUT} has the page of a whole machine")
    try:
        machine.require_extension()
        for library in _LIBRARIES:  # before the work, not after it
            require(library, "bench")
        with machine.equal_threads(given.num_threads):
            chosen, absent = contenders(given.num_threads, given.contenders, every_isa=False)
            missing = [f"{contender.name}: {contender.missing}" for contender in absent]
            if reason := profile.missing():
                missing.append(f"where the time goes: {reason}")
            if given.mode == "short" and given.contenders is None:
                missing += [f"{c.name}: compiles for seconds, left out of short runs" for c in chosen if c.compiles]
                chosen = [contender for contender in chosen if not contender.compiles]
            page, figures = measured(chosen, given.cases, given.mode, given.rounds, given.num_threads)
            here = machine.machine(given.num_threads)
    except (machine.Unmeasurable, ArithmeticError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    if not given.no_write:
        figures.draw(given.out / "images")
        (given.out / "performance.md").write_text(markdown(here, page, missing, given.mode))
        _progress(f"written: {given.out / 'performance.md'}")
    print(machine.machine_line(here))
    for words in missing:
        print(f"missing: {words}")
    for section in reversed(page):  # the first of the page last: the end of a log has what matters most
        print()
        print(plain_table(f"{section.title}. {section.words}", section.columns, section.rows, left=section.left))
    return 0


if __name__ == "__main__":
    sys.exit(main())
