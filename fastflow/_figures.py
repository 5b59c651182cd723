"""Pictures of samples for the command line: images in pairs, points in a plane, lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .cli import DataSet, Nearest

matplotlib = require("matplotlib", extra="cli")
Figure = require("matplotlib.figure", extra="cli").Figure
LineCollection = require("matplotlib.collections", extra="cli").LineCollection
# Figures are made on this canvas and never through pyplot, so no display is needed or looked for.
FigureCanvasAgg = require("matplotlib.backends.backend_agg", extra="cli").FigureCanvasAgg

INK, FAINT, ACCENT, DATA = "#1b1f24", "#6b7280", "#d1495b", "#9aa5b1"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "fastflow",  # the same picture gives the same file
}
DOTS_PER_INCH = 150
# More panels than these would be too small to see.
MOST_PAIRS, MOST_LINES = 60, 24
LONGEST_LINE = 512
LEGEND = 9.0  # inches that the longest line of text takes
PAIRS_IN_A_ROW, LINES_IN_A_ROW = 6, 4
SNAPSHOTS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_DATA_DOTS, MOST_TRAILS = 5000, 80


class Drawing(NamedTuple):
    """What there is to draw.

    Attributes:
        data: the data set.
        samples: (B, *event).
        times: (T,) increasing.
        path: (T, R, *event), the way of the first R samples.
        nearest: nearest data point of each sample.
        settled: (R,) when each settled on a point; the last time for those that did not before it.
        facts: what was done, in a few words each.
    """

    data: DataSet
    samples: np.ndarray
    times: np.ndarray
    path: np.ndarray
    nearest: Nearest
    settled: np.ndarray
    facts: tuple[str, ...]


def draw(out: Path, drawing: Drawing) -> int:
    """Write the picture that suits the shape of the points.

    Args:
        out: where to; the suffix says in which format.
        drawing: what to draw.

    Returns:
        How many of the samples are in the picture.
    """
    event = drawing.samples.shape[1:]
    size = drawing.samples[:1].size
    with matplotlib.rc_context(STYLE):
        if _is_image(event):
            figure, shown = _pairs(drawing)
        elif size == 2:
            figure, shown = _plane(drawing)
        elif size == 1:
            figure, shown = _over_time(drawing)
        else:
            figure, shown = _lines(drawing)
        title = f"Samples of the exact flow: {drawing.data.name}"
        if shown < len(drawing.samples):
            title += f" (the first {shown} of {len(drawing.samples):,})"
        _write(figure, 0.18, title, size=13, weight="bold")
        _write(figure, 0.46, "   ·   ".join(drawing.facts), size=8.5, color=FAINT)
        figure.savefig(out, dpi=DOTS_PER_INCH, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
    return shown


def _is_image(event: tuple[int, ...]) -> bool:
    return len(event) == 2 or (len(event) == 3 and (event[2] in (1, 3) or event[0] in (1, 3)))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the top left."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1.0 - (top + height) / h, width / w, height / h))


def _write(figure: Figure, top: float, text: str, left: float = 0.25, **style: Any) -> None:
    """A line of text at a place given in inches from the top left."""
    w, h = figure.get_size_inches()
    figure.text(left / w, 1.0 - top / h, text, va="top", **style)


def _facts(drawing: Drawing, k: int) -> str:
    """When sample k settled, and how far it is from its nearest data point."""
    distance = f"distance {drawing.nearest.distances[k]:.2g}"
    time = f"t {drawing.settled[k]:.2f}" if drawing.settled[k] < drawing.times[-1] else "not settled"
    return f"{time}   {'identical' if drawing.nearest.coincide[k] else distance}"


# Images -------------------------------------------------------------------------------------------------------


def _pairs(drawing: Drawing) -> tuple[Figure, int]:
    """Each sample with its nearest data point to the right of it."""
    shown = min(len(drawing.samples), MOST_PAIRS)
    columns = min(shown, PAIRS_IN_A_ROW)
    side, gap, pitch, row, head = 0.66, 0.05, 1.58, 1.14, 1.12
    rows = -(-shown // columns)
    figure = _figure(max(0.5 + columns * pitch - (pitch - 2 * side - gap), LEGEND), head + rows * row + 0.08)
    indices = drawing.nearest.indices[:shown]
    partners = drawing.data.points(indices)
    low, high = partners.min(), partners.max()
    for k in range(shown):
        left, top = 0.25 + (k % columns) * pitch, head + (k // columns) * row
        same = drawing.nearest.coincide[k]
        for place, image in ((left, drawing.samples[k]), (left + side + gap, partners[k])):
            axes = _axes(figure, place, top, side, side)
            axes.imshow(_pixels(image, low, high), cmap="gray_r" if drawing.data.ink else "gray", vmin=0.0, vmax=1.0)
            axes.set(xticks=[], yticks=[])
            if not same and place == left:
                axes.spines[:].set(color=ACCENT, linewidth=1.4)
        name = f"no. {indices[k]:,}"
        if drawing.data.labels is not None:
            name = f"“{drawing.data.labels[indices[k]]}”  {name}"
        _write(figure, top + side + 0.05, name, left, size=7.5)
        _write(figure, top + side + 0.19, _facts(drawing, k), left, size=7, color=FAINT if same else ACCENT)
    for column in range(columns):
        for place, word in ((0.0, "sample"), (side + gap, "nearest")):
            _write(figure, head - 0.16, word, 0.25 + column * pitch + place, size=7, color=FAINT)
    known = "label and " if drawing.data.labels is not None else ""
    legend = (
        f"Left a sample, right its nearest data point. Below: {known}number of that point; t from when on fewer than"
    )
    _write(figure, 0.66, f"{legend} two points share the posterior weight; distance.", size=7.5, color=FAINT)
    return figure, shown


def _pixels(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values in [0, 1] as (h, w) or (h, w, 3)."""
    if image.ndim == 3 and image.shape[2] not in (1, 3):
        image = np.moveaxis(image, 0, 2)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    return np.clip((image.astype(np.float64) - low) / max(high - low, 1e-300), 0.0, 1.0)


# The plane ----------------------------------------------------------------------------------------------------


def _plane(drawing: Drawing) -> tuple[Figure, int]:
    """Snapshots of the samples on their way, with trails, over the data."""
    shown = drawing.path.shape[1]
    path = drawing.path.reshape(len(drawing.times), shown, 2)
    every = max(1, len(drawing.data.array) // MOST_DATA_DOTS)
    data = drawing.data.points(slice(None, None, every)).reshape(-1, 2)
    # All of the data and nearly all of the noise: its few outermost points would shrink everything else.
    seen = np.concatenate((data, path[-1], np.quantile(path[0], (0.02, 0.98), axis=0)))
    centre = 0.5 * (seen.min(axis=0) + seen.max(axis=0))
    half = 0.53 * np.ptp(seen, axis=0)
    width, gap = 2.1, 0.12
    height = width * min(max(half[1] / max(half[0], 1e-300), 0.5), 1.4)
    half = max(half[0], half[1] * width / height, 1e-300) * np.array([1.0, height / width])
    figure = _figure(0.5 + len(SNAPSHOTS) * (width + gap) - gap, 1.2 + height)
    for k, share in enumerate(SNAPSHOTS):
        t = drawing.times[0] + share * (drawing.times[-1] - drawing.times[0])
        at = int(np.abs(drawing.times - t).argmin())
        axes = _axes(figure, 0.25 + k * (width + gap), 0.98, width, height)
        axes.scatter(*data.T, s=3.0, color=DATA, alpha=0.45, linewidths=0, rasterized=True)
        trails = [path[: at + 1, j] for j in range(min(shown, MOST_TRAILS))]
        axes.add_collection(LineCollection(trails, colors=ACCENT, linewidths=0.5, alpha=0.35))
        axes.scatter(*path[at].T, s=7.0, color=ACCENT, linewidths=0.3, edgecolors="white", zorder=3)
        axes.set(xlim=(centre[0] - half[0], centre[0] + half[0]), ylim=(centre[1] - half[1], centre[1] + half[1]))
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"t = {drawing.times[at]:.2f}", pad=4, color=FAINT)
    return figure, shown


# Everything else ----------------------------------------------------------------------------------------------


def _over_time(drawing: Drawing) -> tuple[Figure, int]:
    """Single numbers: each sample's way through time, and the data at its end."""
    shown = drawing.path.shape[1]
    path = drawing.path.reshape(len(drawing.times), shown)
    every = max(1, len(drawing.data.array) // MOST_DATA_DOTS)
    data = drawing.data.points(slice(None, None, every)).reshape(-1)
    figure = _figure(8.0, 4.6)
    axes = _axes(figure, 0.75, 0.85, 5.6, 3.25)
    axes.plot(drawing.times, path, color=ACCENT, linewidth=0.6, alpha=max(0.08, min(0.8, 20.0 / shown)))
    axes.plot(np.full(len(data), drawing.times[-1]), data, "_", color=INK, markersize=6, markeredgewidth=0.5, alpha=0.5)
    axes.set(xlabel="t", ylabel="x", xlim=(drawing.times[0], drawing.times[-1]))
    beside = _axes(figure, 6.45, 0.85, 1.3, 3.25)
    bins = np.linspace(*axes.get_ylim(), 60)
    beside.hist(data, bins, orientation="horizontal", density=True, color=DATA, alpha=0.6, label="data")
    beside.hist(path[-1], bins, orientation="horizontal", density=True, histtype="step", color=ACCENT, label="samples")
    beside.set(xticks=[], yticks=[], ylim=axes.get_ylim())
    beside.legend(frameon=False, fontsize=7, loc="upper right")
    return figure, shown


def _lines(drawing: Drawing) -> tuple[Figure, int]:
    """Each sample as a line, over that of its nearest data point."""
    shown = min(len(drawing.samples), MOST_LINES)
    columns = min(shown, LINES_IN_A_ROW)
    width, height, gap, row, head = 2.1, 0.95, 0.2, 1.32, 1.1
    rows = -(-shown // columns)
    figure = _figure(max(0.5 + columns * (width + gap) - gap, LEGEND), head + rows * row + 0.1)
    indices = drawing.nearest.indices[:shown]
    partners = drawing.data.points(indices).reshape(shown, -1)[:, :LONGEST_LINE]
    samples = drawing.samples[:shown].reshape(shown, -1)[:, :LONGEST_LINE]
    low, high = min(samples.min(), partners.min()), max(samples.max(), partners.max())
    margin = 0.06 * max(high - low, 1e-300)
    for k in range(shown):
        left, top = 0.25 + (k % columns) * (width + gap), head + (k // columns) * row
        axes = _axes(figure, left, top, width, height)
        marker = "o" if partners.shape[1] <= 16 else ""
        axes.plot(partners[k], color=DATA, linewidth=3.0, solid_capstyle="round")
        axes.plot(samples[k], color=ACCENT, linewidth=0.9, marker=marker, markersize=2.5)
        axes.set(xticks=[], yticks=[], ylim=(low - margin, high + margin))
        text = f"no. {indices[k]:,}   {_facts(drawing, k)}"
        _write(figure, top + height + 0.05, text, left, size=7.5, color=FAINT)
    legend = (
        "Red a sample, grey its nearest data point. Below: number of that point; t from when on fewer than two points"
    )
    legend += " share the posterior weight; distance"
    size = drawing.samples[:1].size
    if size > LONGEST_LINE:
        legend += f"; the first {LONGEST_LINE} of {size:,} values"
    _write(figure, 0.66, f"{legend}.", size=7.5, color=FAINT)
    return figure, shown
