"""The pictures of a report: roofline, threads, and the growth of the time. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastflow._optional import require

from .scaling import Speedup, Sweep

ROOFLINE, THREADS, LINEAR = "roofline.png", "thread-scaling.png", "linear-cost.png"


@dataclass(frozen=True)
class Dot:
    """One contender on one case: floating-point operations per byte that one pass reads, and GFLOP/s."""

    case: str
    contender: str
    intensity: float
    rate: float


def roofline(dots: Sequence[Dot], multiply_adds: float, bandwidth: float, path: Path) -> None:
    """Rates under the roof that multiply-adds (GFLOP/s) and bandwidth (GB/s) leave."""
    figure, (axes,) = _figure(1)
    widest = max(dot.intensity for dot in dots)
    intensity = np.geomspace(0.25, 4 * max(widest, multiply_adds / bandwidth), 200)
    axes.loglog(intensity, np.minimum(multiply_adds, bandwidth * intensity), color="black", label="measured ceilings")
    for marker, name in zip("os^vDPX*<>", dict.fromkeys(dot.contender for dot in dots), strict=False):
        own = [dot for dot in dots if dot.contender == name]
        axes.loglog([d.intensity for d in own], [d.rate for d in own], marker, alpha=0.8, label=name)
    for place in dict.fromkeys(dot.intensity for dot in dots):
        here = [dot for dot in dots if dot.intensity == place]
        names = "\n".join(dict.fromkeys(dot.case for dot in here))
        lowest = min(dot.rate for dot in here)
        style = {"rotation": 90, "fontsize": 6, "va": "top", "ha": "center"}
        axes.annotate(names, (place, lowest), (0, -8), textcoords="offset points", **style)
    axes.set(xlabel="floating-point operations per byte of data", ylabel="GFLOP/s", title="Roofline")
    axes.set_ylim(bottom=min(dot.rate for dot in dots) / 8)
    axes.legend(fontsize=8)
    _save(figure, path)


def threads(speedups: Sequence[Speedup], path: Path) -> None:
    """Speed over one thread."""
    figure, (axes,) = _figure(1)
    most = max(max(own.threads) for own in speedups)
    axes.plot([1, most], [1, most], color="grey", linewidth=0.8, label="proportional")
    for own in speedups:
        axes.plot(own.threads, own.factors, "o-" if own.is_case else "x--", label=own.name)
    axes.set(xlabel="threads", ylabel="speed over one thread", title="Threads", xticks=speedups[0].threads)
    axes.legend(fontsize=8)
    _save(figure, path)


def linear_cost(sweeps: Sequence[Sweep], path: Path) -> None:
    """Times along each size, and the fitted lines."""
    figure, all_axes = _figure(len(sweeps))
    for axes, sweep in zip(all_axes, sweeps, strict=True):
        sizes = np.geomspace(sweep.sizes[0], sweep.sizes[-1], 100)
        axes.loglog(sweep.sizes, 1e3 * np.array(sweep.seconds), "o", label="measured")
        axes.loglog(sizes, 1e3 * (sweep.start + sweep.slope * sizes), "-", label="fitted line")
        axes.set(xlabel=sweep.name, ylabel="ms", title=sweep.fixed)
        axes.legend(fontsize=8)
    _save(figure, path)


def _figure(columns: int) -> tuple[Any, Sequence[Any]]:
    figures = require("matplotlib.figure", "bench")
    figure = figures.Figure(figsize=(7.5 if columns == 1 else 3.5 * columns, 5.0), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
