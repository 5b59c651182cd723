"""What the figures of a report must reach, for each kind of machine that targets are set for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import overhead
from .cases import NAMES

SPEED, SHARE = "speed over the best processor rival", "share of the ceiling"
GPU = "speed over the GPU in float32"
# What the speed over the best rival would be at the ceiling itself.
AT_CEILING = "speed over the best processor rival at the ceiling"

MET, MISSED, STATED = "met", "NOT MET", "stated, no target"


@dataclass(frozen=True)
class Goal:
    """A figure of one case, the least that it must be; or, where `strict`, what it must exceed."""

    case: str
    figure: str
    least: float
    strict: bool = False

    def met(self, value: float) -> bool:
        return value > self.least if self.strict else value >= self.least

    @property
    def limit(self) -> str:
        return f"{'>' if self.strict else '≥'} {self.least:g}"


@dataclass(frozen=True)
class Kind:
    """A kind of machine: its name, who is of it (instruction set of the native backend, threads), and its goals."""

    name: str
    matches: Callable[[str | None, int], bool]
    goals: tuple[Goal, ...]


KINDS = (
    Kind(
        "two cores with AVX2",
        lambda isa, threads: isa == "avx2" and threads == 2,
        (
            Goal("toy2d", SPEED, 5.0),
            Goal("digits", SPEED, 1.4),
            Goal("mnist-batch", SPEED, 1.5),
            Goal("mnist-batch", SHARE, 0.8),
            Goal("cifar-batch", SPEED, 1.3),
            Goal("cifar-batch", SHARE, 0.8),
            Goal("mnist-single", SPEED, 2.2),
            Goal("mnist-single", SHARE, 0.8),
            Goal("cifar-single", SPEED, 2.2),
            Goal("cifar-single", SHARE, 0.8),
            Goal("mnist-single-uint8", SPEED, 6.0),
            Goal("cifar-single-uint8", SPEED, 6.0),
        ),
    ),
    Kind(
        "16 cores with AMX",
        lambda isa, threads: isa == "amx" and threads >= 16,
        tuple(
            Goal(name, SPEED, 4.0) if name == "cifar-batch-uint8" else Goal(name, SPEED, 1.0, True) for name in NAMES
        ),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured for it, what would be at the ceiling that bounds the case, the outcome in words."""

    target: str
    limit: str
    value: str
    at_ceiling: str
    outcome: str


def verdicts(
    figures: Mapping[tuple[str, str], float],
    overheads: list[overhead.Overhead],
    isa: str | None,
    num_threads: int,
    full: bool,
) -> list[Verdict]:
    """All targets, with what was measured; those of other kinds of machine undecided, as those of reduced sizes.

    Args:
        figures: by case and figure.
        overheads: of the backends that have to be quick.
        isa: the most capable instruction set that the native backend may use here.
        full: whether the cases have their full sizes.
    """
    found = []
    for kind in KINDS:
        here = kind.matches(isa, num_threads)
        for goal in kind.goals:
            value = figures.get((goal.case, goal.figure))
            if value is None:
                outcome = "not measured"
            elif not here:
                outcome = "undecided: another kind of machine"
            elif not full:
                outcome = "undecided: reduced size"
            else:
                outcome = MET if goal.met(value) else MISSED
            most = figures.get((goal.case, AT_CEILING)) if goal.figure == SPEED else None
            shown, at_ceiling = ("" if number is None else f"{number:.2f}" for number in (value, most))
            found.append(Verdict(f"{kind.name}: {goal.case}: {goal.figure}", goal.limit, shown, at_ceiling, outcome))
    for (case, figure), value in figures.items():
        if figure == GPU:
            found.append(Verdict(f"{case}: {figure}", "", f"{value:.3g}", "", STATED))
    for own in overheads:
        target = f"any machine: small call, {own.backend}, {own.dtype}, t {own.form}: microseconds"
        found.append(Verdict(target, f"< {overhead.TARGET:g}", f"{own.median:.1f}", "", MET if own.met else MISSED))
    return found
