"""Cosine between the optimal velocity and the conditional target (Bertrand et al., arXiv 2506.03719, Fig. 1).

The target of conditional flow matching is `x_1 - x_0` at `x_t = (1 - t) x_0 + t x_1`; its mean given `x_t` is the
optimal velocity. Where the two agree the target is not random any more. The README beside this file has the
definitions. From the root of a clone:

    python docs/experiments/cosine.py --out docs/images/cosine.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

import fastflow as ff

OUT = Path(__file__).resolve().parent.parent / "images" / "cosine.png"
NUM_PAIRS = 256  # the paper's
THRESHOLD = 0.9  # the paper's
NUM_MOONS, NUM_PATCHES = 50_000, 20_000
SIDE = 32  # of the crops, in pixels; smaller images are these with pixels left out
SIDES = (4, 8, 16, 32)
TIMES = (0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LATE_TIMES = (*TIMES, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
SHOWN = (0.0, 0.1, 0.2, 0.4, 0.7, 0.9)  # times of the histograms


# The data --------------------------------------------------------------------------------------------------------


def two_moons(num: int = NUM_MOONS, *, seed: int = 0) -> np.ndarray:
    """(num, 2) float32 points of scikit-learn's two moons, with its noise 0.05."""
    from sklearn.datasets import make_moons

    return make_moons(n_samples=num, noise=0.05, random_state=seed)[0].astype(np.float32)


def crops(num: int = NUM_PATCHES, *, seed: int = 0) -> np.ndarray:
    """(num, 32, 32, 3) float32 in [-1, 1]: distinct crops at random places of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    windows = [
        np.lib.stride_tricks.sliding_window_view(photograph, (SIDE, SIDE), axis=(0, 1))
        for photograph in load_sample_images().images
    ]
    rng = np.random.default_rng(seed)
    parts = []
    for k, view in enumerate(windows):
        rows, columns = view.shape[:2]
        count = num // len(windows) + (k < num % len(windows))
        places = rng.choice(rows * columns, size=count, replace=False)
        parts.append(view[places // columns, places % columns])
    return np.concatenate(parts).transpose(0, 2, 3, 1).astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def subsampled(images: np.ndarray, side: int) -> np.ndarray:
    """(n, side, side, 3): every so many-th pixel of each image, as the paper obtains its smaller images."""
    stride = images.shape[1] // side
    return np.ascontiguousarray(images[:, stride // 2 :: stride, stride // 2 :: stride])


# Measurements ----------------------------------------------------------------------------------------------------


class Alignment(NamedTuple):
    """Cosines of one data set.

    Attributes:
        name: of the data set.
        dim: d.
        num_points: n.
        times: (T,) times.
        cosines: (T, B) cosines of the optimal velocity and the conditional target.
        entropy: (T,) mean entropy of the posterior over the data points, in units of log n.
        earliest: the time before which no data of this covariance can be told apart.
    """

    name: str
    dim: int
    num_points: int
    times: np.ndarray
    cosines: np.ndarray
    entropy: np.ndarray
    earliest: float


def cosine(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Cosine of the angles between rows, in float64."""
    u, v = (np.reshape(a, (len(a), -1)).astype(np.float64) for a in (u, v))
    return np.einsum("ij,ij->i", u, v) / np.sqrt(np.einsum("ij,ij->i", u, u) * np.einsum("ij,ij->i", v, v))


def pairs(data: np.ndarray, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`num` independent draws of noise and of data points, `(x_0, x_1)`."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num, *data.shape[1:]), dtype=np.float32), data[rng.integers(len(data), size=num)]


def measure(name: str, data: np.ndarray, times: Sequence[float], *, num: int = NUM_PAIRS, seed: int = 0) -> Alignment:
    """Cosines at all times, for the same `num` pairs."""
    field = ff.VelocityField(data, schedule="linear")
    x0, x1 = pairs(data, num, seed)
    target = x1 - x0
    cosines, entropy = [], []
    for t in times:
        found = field.evaluate(np.float32(1.0 - t) * x0 + np.float32(t) * x1, t, ("velocity", "entropy"))
        cosines.append(cosine(found["velocity"], target))
        entropy.append(found["entropy"].mean() / np.log(len(data)))
    dim = data[0].size
    return Alignment(
        name, dim, len(data), np.asarray(times), np.array(cosines), np.array(entropy), earliest_collapse(data)
    )


# What can be said without the field -------------------------------------------------------------------------------


def start(data: np.ndarray, num: int = NUM_PAIRS, seed: int = 0) -> np.ndarray:
    """(num,) cosines at t = 0, where the optimal velocity is the mean of the data minus `x_0`."""
    x0, x1 = pairs(data, num, seed)
    return cosine(data.mean(axis=0, dtype=np.float64) - x0, x1 - x0)


def earliest_collapse(data: np.ndarray) -> float:
    """The time at which a Gaussian of the covariance of the data would tell `x_t` log(n) nats about its point.

    `x_t` tells `log(n) - E[entropy]` about its data point, and among all distributions of given covariance the Gaussian
    is told most about: `sum_k log(1 + (t / (1 - t))^2 lambda_k) / 2`. So the mean entropy is at least `log(n)` minus
    that, and before this time it is above zero.
    """
    eigenvalues = spectrum(data)
    return brentq(lambda t: told(eigenvalues, t) - np.log(len(data)), 1e-6, 1.0 - 1e-9)


def spectrum(data: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance of the data that are not zero for lack of points."""
    centred = data.reshape(len(data), -1).astype(np.float64)
    centred -= centred.mean(axis=0)
    few = len(centred) < centred.shape[1]
    return np.linalg.eigvalsh(centred @ centred.T if few else centred.T @ centred) / len(centred)


def told(eigenvalues: np.ndarray, t: float) -> float:
    """Nats that `x_t` tells about a Gaussian `x_1` with these eigenvalues of the covariance."""
    return 0.5 * float(np.log1p((t / (1.0 - t)) ** 2 * np.maximum(eigenvalues, 0.0)).sum())


def aligned(measured: Alignment) -> np.ndarray:
    """(T,) share of the pairs whose cosine exceeds 0.9."""
    return np.mean(measured.cosines > THRESHOLD, axis=1)


def rises_through(times: np.ndarray, values: np.ndarray, level: float) -> float:
    """The last time at which the piecewise linear curve rises through the level; nan if it ends below."""
    below = np.flatnonzero(values < level)
    if not len(below):
        return float(times[0])
    k = int(below[-1])
    if k + 1 == len(times):
        return float("nan")
    return float(times[k] + (times[k + 1] - times[k]) * (level - values[k]) / (values[k + 1] - values[k]))


def report(every: Sequence[Alignment]) -> str:
    """The tables, as text."""
    lines = [
        f"Share of the pairs with cosine above {THRESHOLD}, mean cosine, and where they rise through a level",
        "data           d       n   half above 0.9   99 % above 0.9   mean cosine 0.99   entropy 1 % of log n   bound",
    ]
    for m in every:
        share, mean = aligned(m), m.cosines.mean(axis=1)
        lines.append(
            f"{m.name:12s} {m.dim:4d}  {m.num_points:6d}   {rises_through(m.times, share, 0.5):14.4f}"
            f"   {rises_through(m.times, share, 0.99):14.4f}   {rises_through(m.times, mean, 0.99):16.4f}"
            f"   {rises_through(m.times, -m.entropy, -0.01):20.4f}   {m.earliest:.4f}"
        )
    common = [t for t in every[0].times if all(t in m.times for m in every)]
    for title, of in (
        ("Mean cosine", lambda m: m.cosines.mean(axis=1)),
        (f"Share of the pairs with cosine above {THRESHOLD}", aligned),
    ):
        lines += ["", title, "      t " + "".join(f"{m.name:>13s}" for m in every)]
        values = [dict(zip(m.times.tolist(), of(m).tolist(), strict=True)) for m in every]
        lines += [f"{t:7.3f} " + "".join(f"{value[t]:13.3f}" for value in values) for t in common]
    return "\n".join(lines)


# The picture -----------------------------------------------------------------------------------------------------

INK, FAINT = "#1b1f24", "#6b7280"
COLOURS = ("#6b7280", "#e09f3e", "#3d8d7a", "#30638e", "#d1495b")
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}


def draw(out: Path, every: Sequence[Alignment]) -> None:
    """Write the picture: histograms of the first and the last data set above, curves of all below."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 7.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(
            "When the target of flow matching stops being random\n"
            "Setting of Bertrand, Gagneux, Massias and Emonet (arXiv 2506.03719), Fig. 1, with patches of photographs",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.1, 1))
        shown = [t for t in SHOWN if all(t in m.times for m in every)]
        panels = upper.subplots(2, len(shown), sharex=True, sharey=True)
        _draw_histograms(panels, shown, (every[0], every[-1]), (COLOURS[0], COLOURS[-1]))
        upper.supxlabel(r"cosine of $\hat{u}^\star(x_t, t)$ and $x_1 - x_0$", fontsize=9)
        upper.supylabel("share of the pairs", fontsize=9)
        mean, share = lower.subplots(1, 2, sharex=True)
        for m, colour in zip(every, COLOURS[-len(every) :], strict=True):
            label = f"{m.name}, d = {m.dim}"
            middle = m.cosines.mean(axis=1)
            mean.plot(m.times, middle, "o-", color=colour, label=label)
            if m is not every[0]:  # the band of the moons would cover everything
                band = np.quantile(m.cosines, (0.1, 0.9), axis=1)
                mean.fill_between(m.times, *band, color=colour, alpha=0.12, linewidth=0)
            share.plot(m.times, aligned(m), "o-", color=colour, label=label)
            share.plot([m.earliest], [-0.045], marker="^", color=colour, clip_on=False, linestyle="none")
        mean.set(xlabel="time $t$", ylabel="mean cosine", ylim=(0.35, 1.02), xlim=(0.0, 1.0))
        mean.set_title("b  Mean over the pairs; bands: the middle 80 %")
        share.set(xlabel="time $t$", ylabel=f"share with cosine above {THRESHOLD}", ylim=(-0.06, 1.03))
        share.set_title("c  Share above 0.9; triangles: no collapse before")
        share.legend(loc="lower right", bbox_to_anchor=(0.99, 0.04), ncols=2, fontsize=7.5)
        figure.savefig(out, dpi=130)


def _draw_histograms(panels, shown: Sequence[float], sets: Sequence[Alignment], colours: Sequence[str]) -> None:
    edges = np.linspace(-1.0, 1.0, 41)
    for axes_row, m, colour in zip(panels, sets, colours, strict=True):
        for axes, t in zip(axes_row, shown, strict=True):
            cosines = m.cosines[np.flatnonzero(m.times == t)[0]]
            axes.hist(cosines, edges, weights=np.full(len(cosines), 1.0 / len(cosines)), color=colour)
            axes.set(xlim=(-1.05, 1.05), ylim=(0, 1.02))
            if m is sets[0]:
                axes.set_title(f"t = {t:g}", loc="center", fontsize=8.5)
        axes_row[0].set_ylabel(f"{m.name}\nd = {m.dim}", fontsize=8.5)
    panels[0][0].text(-1.05, 1.22, "a  Histograms", fontsize=9.5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="where to write the picture (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer points, pairs and sizes")
    parser.add_argument("--num", type=int, help=f"number of patches (default: {NUM_PATCHES})")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    moons, patches, num, sides = NUM_MOONS, options.num or NUM_PATCHES, NUM_PAIRS, SIDES
    if options.quick:
        moons, patches, num, sides = 5_000, options.num or 2_000, 64, (8, 16)
    every = [measure("two moons", two_moons(moons, seed=options.seed), LATE_TIMES, num=num, seed=options.seed)]
    images = crops(patches, seed=options.seed)
    for side in sides:
        data = subsampled(images, side)
        times = LATE_TIMES if side <= 8 else TIMES  # small images are told apart late
        every.append(measure(f"{side} x {side} x 3", data, times, num=num, seed=options.seed))
    print(report(every))
    draw(options.out, every)
    print(f"\n{options.out}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
