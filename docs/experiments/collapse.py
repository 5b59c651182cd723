"""Speciation and collapse of the exact flow to two Gaussian clusters (Biroli et al., arXiv 2402.18491, Figs. 2 and 3).

Times here are the paper's: the forward process is `x = exp(-tau) a + sqrt(1 - exp(-2 tau)) z`, so that `tau` runs from
0 (data) to infinity (noise). That is the schedule `linear_vp` at the flow's own time `exp(-tau)`. The README beside
this file has the definitions. From the root of a clone:

    python docs/experiments/collapse.py --out docs/images/collapse.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.sparse.linalg import svds
from scipy.special import entr, expit

import fastflow as ff

OUT = Path(__file__).resolve().parent.parent / "images" / "collapse.png"
# The paper's settings: centres at +-m with |m|^2 = d mu^2, clusters of variance sigma^2, 20,000 points.
MU, SIGMA, NUM_POINTS = 1.0, 1.0, 20_000
DIMS = (256, 512, 1024, 4096)
# Where f/alpha is measured: at these depths `half log(1 + snr) / alpha`, which the paper's formula maps to 1 - depth.
DEPTHS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.35, 1.7)
# Where the class probability is measured, in units of t_S.
SPECIATION_GRID = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
# The paper's value of phi(t_S), which does not depend on d while sigma = 1 (the dashed line of its Fig. 2).
PHI_AT_T_S = 0.7753
FITTED = (0.3, 0.85)  # the part of f/alpha that is extrapolated to zero: below it, finite n bends the curve


# The data and the forward process --------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """Points of two clusters.

    Attributes:
        points: (n, d) float32.
        labels: (n,) bool, True for the cluster at `+centre`.
        centre: (d,) float32.
    """

    points: np.ndarray
    labels: np.ndarray
    centre: np.ndarray


def gaussian_mixture(dim: int, num_points: int = NUM_POINTS, *, seed: int = 0) -> Mixture:
    """`num_points` draws of the mixture of `N(m, sigma^2 I)` and `N(-m, sigma^2 I)`, each with probability one half."""
    rng = np.random.default_rng(seed)
    labels = rng.random(num_points) < 0.5
    centre = np.full(dim, MU, dtype=np.float32)
    points = rng.standard_normal((num_points, dim), dtype=np.float32)
    points *= np.float32(SIGMA)
    points += np.where(labels, np.float32(1.0), np.float32(-1.0))[:, None] * centre
    return Mixture(points, labels, centre)


def field_of(points: np.ndarray, variance: float = 0.0) -> ff.VelocityField:
    """The exact field of these points, on a schedule whose time is `exp(-tau)`."""
    return ff.VelocityField(points, schedule="linear_vp", variance=variance)


def noised(points: np.ndarray, tau: float, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`num` draws of the empirical `P_t`, an even number, and the noise in them.

    Each drawn point is used with a noise and with its negative: most of the scatter of `log P_t` is odd in the noise.

    Returns:
        x, z: both (num, d) float32; row k and row k + num/2 belong together.
    """
    chosen = points[rng.integers(len(points), size=num // 2)]
    half = rng.standard_normal(chosen.shape, dtype=np.float32)
    z = np.concatenate((half, -half))
    x = np.float32(np.exp(-tau)) * np.concatenate((chosen, chosen)) + np.float32(np.sqrt(noise_variance(tau))) * z
    return x, z


def noise_variance(tau: float | np.ndarray) -> float | np.ndarray:
    """`Delta_t = 1 - exp(-2 tau)`."""
    return -np.expm1(-2.0 * tau)


def snr(tau: float | np.ndarray) -> float | np.ndarray:
    """`sigma^2 exp(-2 tau) / Delta_t`, the variance of a cluster over that of the noise."""
    return SIGMA**2 / np.expm1(2.0 * tau)


# What the paper says ---------------------------------------------------------------------------------------------


def collapse_time(num_points: float, dim: int) -> float:
    """The paper's `t_C` of the mixture, where its excess entropy vanishes: half log(1 + sigma^2 / (n^(2/d) - 1))."""
    return 0.5 * float(np.log1p(SIGMA**2 / np.expm1(2.0 * np.log(num_points) / dim)))


def time_of_depth(depth: float, num_points: int, dim: int) -> float:
    """The time at which `half log(1 + snr)` is `depth` times `alpha = log(n) / d`; depth 1 is `t_C`."""
    return 0.5 * float(np.log1p(SIGMA**2 / np.expm1(2.0 * depth * np.log(num_points) / dim)))


def depth_of_time(tau: float | np.ndarray, num_points: int, dim: int) -> float | np.ndarray:
    """Inverse of `time_of_depth`."""
    return 0.5 * np.log1p(snr(tau)) * dim / np.log(num_points)


def excess_entropy_limit(tau: float | np.ndarray, num_points: int, dim: int) -> float | np.ndarray:
    """The paper's `f(t) / alpha` in its limit of large d and n, the solid lines of its Fig. 3."""
    return np.maximum(0.0, 1.0 - depth_of_time(tau, num_points, dim))


def speciation_time(eigenvalue: float) -> float:
    """`t_S = half log(Lambda)`, Eq. 4, with the largest eigenvalue of the covariance of the data."""
    return 0.5 * float(np.log(eigenvalue))


def _class_posterior(tau: float, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the right class over the position along m, and the weights of a quadrature over that position."""
    spread = noise_variance(tau) + SIGMA**2 * np.exp(-2.0 * tau)
    shift = MU * np.sqrt(dim) * np.exp(-tau) / np.sqrt(spread)
    y = np.linspace(-9.0, 9.0, 3601)
    weights = np.exp(-0.5 * y**2)
    return expit(2.0 * shift * (y + shift)), weights / weights.sum()


def same_class_limit(tau: float, dim: int) -> float:
    """`phi(t)` of Eq. 6: two clones of a state at time t end in the same cluster, under the score of the mixture.

    By symmetry the integral of Eq. 6 is the mean of `p^2 + (1 - p)^2` over states that come from one cluster.
    """
    p, weights = _class_posterior(tau, dim)
    return float(weights @ (p**2 + (1.0 - p) ** 2))


# What finite n says ----------------------------------------------------------------------------------------------
#
# d f(t) is the mean entropy of the posterior weights (README), so by the chain rule it is the entropy of the class plus
# that of the point within its class. For large d and any n the latter is a random energy model with Gaussian energies:
# a point differs from the right one by exp(-lam + sqrt(lam) (u + v_j)) in weight, u and v_j standard normal, and
# lam = d log(1 + snr). With L(a) = E exp(-exp(a + sqrt(lam) v)) and log(1 + S) = int (1 - exp(-S e^a)) exp(-e^a) da,
# the means over u and all v_j are one-dimensional integrals.


def _random_energies(lam: float, others: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """`1 - L(a)^others`, `L(a + lam)` and `-L'(a + lam)` on a grid of a, and its step."""
    root = np.sqrt(lam)
    v = np.linspace(-9.0, 9.0, 361)
    weights = np.exp(-0.5 * v**2)
    weights /= weights.sum()
    a = np.linspace(-lam - 9.0 * root - 40.0, 9.0 * root + 5.0, 1200)
    exponent = np.exp(np.minimum(a[:, None] + root * v, 40.0))
    none = -np.expm1(others * np.log1p(np.expm1(-exponent) @ weights))
    exponent = np.exp(np.minimum(a[:, None] + lam + root * v, 40.0))
    decay = np.exp(-exponent)
    return none, decay @ weights, (exponent * decay) @ weights, float(a[1] - a[0])


def excess_entropy_finite(tau: float, num_points: int, dim: int) -> float:
    """`f(t) / alpha` for n points in two clusters, for large d."""
    p, weights = _class_posterior(tau, dim)
    of_class = weights @ (entr(p) + entr(1.0 - p))
    none, decay, _, step = _random_energies(dim * float(np.log1p(snr(tau))), 0.5 * num_points - 1.0)
    return float((of_class + step * (none @ decay)) / np.log(num_points))


def same_point_finite(tau: float, num_points: int, dim: int) -> float:
    """`phi_C(t)` for n points, for large d and well separated clusters: the mean weight of the right point."""
    none, _, slope, step = _random_energies(dim * float(np.log1p(snr(tau))), 0.5 * num_points - 1.0)
    return float(step * ((1.0 - none) @ slope))


# What the package measures ---------------------------------------------------------------------------------------


class Collapse(NamedTuple):
    """Measurements at one time; pairs are a mean and its standard error.

    Attributes:
        by_density: `f(t) / alpha` from its definition, with `log_density`.
        by_entropy: the same from the entropy of the weights.
        difference: of the two, query by query.
        same_point: `phi_C(t)`, the probability that two clones end on the same point.
    """

    by_density: tuple[float, float]
    by_entropy: tuple[float, float]
    difference: tuple[float, float]
    same_point: tuple[float, float]


def mean_of_pairs(values: np.ndarray) -> tuple[float, float]:
    """Mean of values that belong together in pairs, as `noised` makes them, and its standard error."""
    pairs = 0.5 * (values[: len(values) // 2] + values[len(values) // 2 :])
    return float(pairs.mean()), float(pairs.std(ddof=1) / np.sqrt(len(pairs)))


def measure_collapse(field: ff.VelocityField, points: np.ndarray, tau: float, num: int, seed: int = 0) -> Collapse:
    """Excess entropy and cloning probability at time `tau` from `num` draws of the empirical process."""
    x, z = noised(points, tau, num, np.random.default_rng((seed, 1)))
    found = field.evaluate(x, float(np.exp(-tau)), ("log_density", "entropy", "effective_sample_size"))
    dim, log_n = points.shape[1], np.log(len(points))
    # f = log(n)/d + 1/2 + log(2 pi Delta)/2 + E[log P_t]/d, where 1/2 is written as the mean of |z|^2 / (2 d): drawn
    # together with log P_t it takes the scatter of |z|^2 out, which otherwise needs 100 times as many draws.
    square = np.einsum("ij,ij->i", z, z, dtype=np.float64)
    excess = found["log_density"] + 0.5 * square + 0.5 * dim * np.log(2.0 * np.pi * noise_variance(tau))
    return Collapse(
        mean_of_pairs(1.0 + excess / log_n),
        mean_of_pairs(found["entropy"] / log_n),
        mean_of_pairs(1.0 + (excess - found["entropy"]) / log_n),
        mean_of_pairs(1.0 / found["effective_sample_size"]),
    )


def measure_same_class(
    plus: ff.VelocityField, minus: ff.VelocityField, mixture: Mixture, tau: float, num: int, seed: int = 0
) -> tuple[float, float]:
    """`phi(t)` of the empirical process: two draws of the posterior over the points are of the same class.

    Clones of a state under the exact backward process are independent draws of the posterior, and the mass of a class
    in it follows from the densities of the two classes.
    """
    x, _ = noised(mixture.points, tau, num, np.random.default_rng((seed, 2)))
    s = float(np.exp(-tau))
    odds = plus.log_density(x, s) - minus.log_density(x, s) + np.log(plus.num_points / minus.num_points)
    p = expit(odds)
    return mean_of_pairs(p**2 + (1.0 - p) ** 2)


def measure_clones(
    dim: int, taus: Sequence[float], num: int, *, step: float = 0.02, start: float = 7.0, seed: int = 0
) -> np.ndarray:
    """The paper's own experiment: run the backward equation with the exact score, clone at each tau, compare classes.

    The score is that of the mixture itself: a field of two points with variance sigma^2.

    Returns:
        (len(taus),) share of the `num` pairs of clones that end in the same cluster.
    """
    rng = np.random.default_rng((seed, 3))
    centre = np.full(dim, MU, dtype=np.float32)
    field = field_of(np.stack((centre, -centre)), variance=SIGMA**2)

    def back(x: np.ndarray, from_step: int, to_step: int) -> np.ndarray:
        """Euler-Maruyama steps of dx = (x + 2 score) dtau + sqrt(2) dW, with tau falling."""
        for k in range(from_step, to_step, -1):
            drift = x + 2.0 * field.score(x, float(np.exp(-k * step)))
            x = x + np.float32(step) * drift
            x += np.float32(np.sqrt(2.0 * step)) * rng.standard_normal(x.shape, dtype=np.float32)
        return x

    x = rng.standard_normal((num, dim), dtype=np.float32)
    now, shares = round(start / step), np.empty(len(taus))
    for k in np.argsort(taus)[::-1]:
        branch = round(taus[k] / step)
        x, now = back(x, now, branch), branch
        first, second = (back(x, branch, 0) @ centre > 0.0 for _ in range(2))
        shares[k] = np.mean(first == second)
    return shares


def measure_choice(field: ff.VelocityField, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """When samples of the deterministic flow have chosen their data point.

    Returns:
        taus, shares: (T,) falling times, and the share of `num` samples whose likeliest data point at that time is the
        one they end on.
    """
    taus = np.linspace(6.0, 0.2, 88)
    _, path = field.sample(
        num, steps=np.concatenate(([0.0], np.exp(-taus))), method="heun", seed=seed, return_path=True
    )
    end = field.top_k(path[-1], np.exp(-taus[-1]), 1)[0]
    looked = slice(0, None, 3)
    pairs = zip(path[1:][looked], taus[looked], strict=True)
    shares = [np.mean(field.top_k(x, np.exp(-tau), 1)[0] == end) for x, tau in pairs]
    return taus[looked], np.array(shares)


def crossing(taus: np.ndarray, values: np.ndarray, level: float) -> float:
    """The first time at which the piecewise linear curve falls through the level."""
    taus, values = np.asarray(taus), np.asarray(values)
    order = np.argsort(taus)
    taus, values = taus[order], values[order]
    k = int(np.flatnonzero((values[:-1] >= level) & (values[1:] < level))[0])
    return float(taus[k] + (taus[k + 1] - taus[k]) * (values[k] - level) / (values[k] - values[k + 1]))


def vanishing(taus: np.ndarray, excess: np.ndarray, num_points: int, dim: int) -> float:
    """Where the straight part of `f / alpha`, as a function of depth, extrapolates to zero."""
    excess = np.asarray(excess)
    used = (excess > FITTED[0]) & (excess < FITTED[1])
    slope, offset = np.polyfit(depth_of_time(np.asarray(taus)[used], num_points, dim), excess[used], 1)
    return time_of_depth(-offset / slope, num_points, dim)


# The experiment --------------------------------------------------------------------------------------------------


class Curves(NamedTuple):
    """Everything that is measured for one dimension.

    Attributes:
        dim: d.
        taus, collapse: times and measurements of the collapse.
        speciation_taus, same_class: times and `phi(t)`, pairs of mean and standard error.
        eigenvalue: largest eigenvalue of the covariance of the data.
        choice: what `measure_choice` returns, or None.
    """

    dim: int
    taus: np.ndarray
    collapse: list[Collapse]
    speciation_taus: np.ndarray
    same_class: list[tuple[float, float]]
    eigenvalue: float
    choice: tuple[np.ndarray, np.ndarray] | None


def measure(
    dim: int,
    num_points: int = NUM_POINTS,
    *,
    num: int = 512,
    depths: Sequence[float] = DEPTHS,
    grid: Sequence[float] = SPECIATION_GRID,
    choices: int = 0,
    seed: int = 0,
) -> Curves:
    """Curves of one dimension, from `num` queries at each time and `choices` samples of the flow."""
    mixture = gaussian_mixture(dim, num_points, seed=seed)
    field = field_of(mixture.points)
    taus = np.array([time_of_depth(depth, num_points, dim) for depth in depths])
    collapse = [measure_collapse(field, mixture.points, tau, num, seed) for tau in taus]
    choice = measure_choice(field, choices, seed) if choices else None
    del field
    eigenvalue = float(svds(mixture.points - mixture.points.mean(axis=0), k=1, tol=1e-4)[1][0]) ** 2 / num_points
    speciation_taus = speciation_time(dim * MU**2) * np.asarray(grid)
    plus, minus = field_of(mixture.points[mixture.labels]), field_of(mixture.points[~mixture.labels])
    same = [measure_same_class(plus, minus, mixture, tau, num, seed) for tau in speciation_taus]
    return Curves(dim, taus, collapse, speciation_taus, same, eigenvalue, choice)


class Row(NamedTuple):
    """Times of one dimension: those of the paper, those measured, and what finite n predicts.

    Attributes:
        collapse, vanishing, finite: `t_C` of the paper; where f vanishes, measured and predicted at finite n.
        half, half_finite: where `phi_C` is one half, measured and predicted at finite n.
        speciation, level, crossing: `t_S`, `phi(t_S)` of Eq. 6, and where the measured phi falls through that.
        deviation, error: of the measured `f / alpha` from the prediction at finite n, the largest, and the largest
            standard error.
        definitions: largest difference of the two measurements of `f / alpha`, in its standard errors.
    """

    dim: int
    collapse: float
    vanishing: float
    finite: float
    half: float
    half_finite: float
    speciation: float
    level: float
    crossing: float
    deviation: float
    error: float
    definitions: float


def summary(curves: Curves, num_points: int) -> Row:
    """The numbers of the table, for one dimension."""
    dim, taus = curves.dim, curves.taus
    t_c = collapse_time(num_points, dim)
    excess = np.array([at.by_entropy[0] for at in curves.collapse])
    fine = np.array([time_of_depth(depth, num_points, dim) for depth in np.linspace(0.15, 0.7, 12)])
    finite = vanishing(fine, [excess_entropy_finite(tau, num_points, dim) for tau in fine], num_points, dim)
    half = brentq(lambda tau: same_point_finite(tau, num_points, dim) - 0.5, 0.5 * t_c, 1.5 * t_c, xtol=1e-4)
    t_s = speciation_time(dim * MU**2)
    level = same_class_limit(t_s, dim)
    phi = np.array([mean for mean, _ in curves.same_class])
    expected = np.array([excess_entropy_finite(tau, num_points, dim) for tau in taus])
    return Row(
        dim,
        t_c,
        vanishing(taus, excess, num_points, dim),
        finite,
        crossing(taus, np.array([at.same_point[0] for at in curves.collapse]), 0.5),
        half,
        t_s,
        level,
        crossing(curves.speciation_taus, phi, level),
        float(np.abs(excess - expected).max()),
        max(at.by_entropy[1] for at in curves.collapse),
        max(abs(at.difference[0]) / at.difference[1] for at in curves.collapse),
    )


def report(every: Sequence[Curves], clones: tuple[int, np.ndarray, np.ndarray, int], num_points: int) -> str:
    """The tables, as text."""
    lines = [
        f"Collapse, n = {num_points:,}: times; 'finite n' is the prediction of the random energy model",
        "    d   t_C paper  f=0 measured  finite n   phi_C=1/2 measured  finite n",
    ]
    rows = [summary(curves, num_points) for curves in every]
    lines += [
        f"{r.dim:5d}   {r.collapse:9.3f}  {r.vanishing:12.3f}  {r.finite:8.3f}   {r.half:18.3f}  {r.half_finite:8.3f}"
        for r in rows
    ]
    lines += [
        "",
        "    d   max |f - finite n| / alpha (standard error)   max |by log_density - by entropy|, in standard errors",
    ]
    lines += [f"{r.dim:5d}   {r.deviation:26.3f} ({r.error:.3f})   {r.definitions:34.1f}" for r in rows]
    lines += [
        "",
        "Speciation: the measured time is where phi falls through its analytic value at t_S",
        "    d   t_S = log(d)/2  log(Lambda)/2 of the data  phi(t_S) Eq. 6   t_S measured",
    ]
    lines += [
        f"{r.dim:5d}   {r.speciation:14.3f}  {speciation_time(c.eigenvalue):26.3f}  {r.level:14.4f}"
        f"   {r.crossing:12.3f}"
        for r, c in zip(rows, every, strict=True)
    ]
    dim, taus, shares, num = clones
    lines += ["", f"Clones by the backward equation, d = {dim}, {num:,} pairs", "    t   t/t_S   Eq. 6   measured"]
    t_s = speciation_time(dim * MU**2)
    lines += [
        f"{tau:5.2f}   {tau / t_s:5.2f}   {same_class_limit(tau, dim):5.3f}   {share:.3f} +- "
        f"{np.sqrt(share * (1.0 - share) / num):.3f}"
        for tau, share in zip(taus, shares, strict=True)
    ]
    for curves in every:
        if curves.choice is not None:
            taus, shares = curves.choice
            named = {
                "t = 6": 6.0,
                "t_S": speciation_time(curves.dim * MU**2),
                "t_C": collapse_time(num_points, curves.dim),
            }
            at = {name: np.interp(tau, taus[::-1], shares[::-1]) for name, tau in named.items()}
            lines += [
                "",
                f"Deterministic flow, d = {curves.dim}: share of samples whose likeliest point is the one they end on",
                "    " + ", ".join(f"{100 * share:.0f} % at {name}" for name, share in at.items()),
            ]
    return "\n".join(lines)


# The picture -----------------------------------------------------------------------------------------------------

INK, FAINT = "#1b1f24", "#6b7280"
COLOURS, MARKERS = ("#d1495b", "#e09f3e", "#3d8d7a", "#30638e", "#6a4c93"), ("o", "s", "^", "D", "v")
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
    "lines.markersize": 4.5,
}


def draw(out: Path, every: Sequence[Curves], clones: tuple[int, np.ndarray, np.ndarray, int], num_points: int) -> None:
    """Write the picture: collapse above, speciation and the three regimes below."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 7.8), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(
            "Speciation and collapse of the exact flow to two Gaussian clusters\n"
            "Setting of Biroli, Bonnaire, de Bortoli and Mézard (arXiv 2402.18491), Figs. 2 and 3; "
            "bars: three standard errors",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        ((entropy, point), (label, regimes)) = figure.subplots(2, 2)
        dims = [Line2D([], [], color=c, marker=m) for c, m in zip(COLOURS, MARKERS, strict=True)]
        dims = [(line, f"d = {curves.dim}") for line, curves in zip(dims, every, strict=False)]
        for curves, colour, marker in zip(every, COLOURS, MARKERS, strict=False):
            _draw_collapse(entropy, point, curves, num_points, colour, marker)
            _draw_speciation(label, curves, colour, marker)
        kinds = [
            (Line2D([], [], color=INK), "limit of large n, d"),
            (Line2D([], [], color=INK, linestyle=(0, (3, 2))), f"n = {num_points:,}"),
        ]
        entropy.legend(*zip(*dims, *kinds, strict=True), loc="lower right", fontsize=8)
        entropy.set(xlabel="time $t$", ylabel=r"excess entropy  $f(t)\,/\,\alpha$", xlim=(0, 6), ylim=(-0.03, 1.03))
        entropy.set_title(r"a  Collapse: $f(t)$ vanishes at $t_C$ (dotted)")
        point.axvline(1, color=FAINT, linewidth=0.8, linestyle=":")
        point.set(xlabel="$t\\,/\\,t_C$", ylabel=r"probability $\phi_C(t)$", xlim=(0.6, 1.8), ylim=(-0.02, 1.02))
        point.set_title("b  Collapse: two clones end on the same data point")

        dim, taus, shares, num = clones
        error = 3.0 * np.sqrt(shares * (1.0 - shares) / num)
        t_s = speciation_time(dim * MU**2)
        label.errorbar(
            taus / t_s, shares, error, fmt="x", color=INK, markersize=6, linewidth=1, label=f"clones, d = {dim}"
        )
        label.axvline(1, color=FAINT, linewidth=0.8, linestyle=":")
        label.axhline(PHI_AT_T_S, color=FAINT, linewidth=0.8, linestyle=":")
        label.annotate(f"{PHI_AT_T_S}", (1.5, PHI_AT_T_S), color=FAINT, fontsize=8, ha="right", va="bottom")
        label.set(
            xlabel=r"$t\,/\,t_S$, where $t_S = \frac{1}{2}\log d$",
            ylabel=r"probability $\phi(t)$",
            xlim=(0.48, 1.52),
            ylim=(0.49, 1.01),
        )
        label.legend(loc="upper right", fontsize=8)
        label.set_title("c  Speciation: two clones end in the same cluster (lines: Eq. 6)")
        _draw_regimes(regimes, every, num_points)
        figure.savefig(out, dpi=130)


def _draw_collapse(entropy, point, curves: Curves, num_points: int, colour: str, marker: str) -> None:
    dim, t_c = curves.dim, collapse_time(num_points, curves.dim)
    times = np.concatenate((np.linspace(0.05, 1.3, 40) * t_c, np.linspace(1.35 * t_c, 6.0, 40)))
    entropy.plot(times, excess_entropy_limit(times, num_points, dim), color=colour, alpha=0.6)
    finite = [excess_entropy_finite(tau, num_points, dim) for tau in times]
    entropy.plot(times, finite, color=colour, linewidth=1.1, linestyle=(0, (3, 2)))
    entropy.axvline(t_c, color=colour, linewidth=0.8, linestyle=":")
    at, error = np.array([m.by_entropy for m in curves.collapse]).T
    entropy.errorbar(curves.taus, at, 3.0 * error, fmt=marker, color=colour, linewidth=1)
    times = np.linspace(0.6, 1.8, 60)
    finite = [same_point_finite(tau * t_c, num_points, dim) for tau in times]
    point.plot(times, finite, color=colour, linewidth=1.1, linestyle=(0, (3, 2)))
    at, error = np.array([m.same_point for m in curves.collapse]).T
    point.errorbar(curves.taus / t_c, at, 3.0 * error, fmt=marker, color=colour, linewidth=1)


def _draw_speciation(axes, curves: Curves, colour: str, marker: str) -> None:
    t_s = speciation_time(curves.dim * MU**2)
    times = np.linspace(0.48, 1.52, 80)
    axes.plot(times, [same_class_limit(tau * t_s, curves.dim) for tau in times], color=colour, alpha=0.7)
    at, error = np.array(curves.same_class).T
    axes.errorbar(curves.speciation_taus / t_s, at, 3.0 * error, fmt=marker, color=colour, linewidth=1)


def _draw_regimes(axes, every: Sequence[Curves], num_points: int) -> None:
    rows = [summary(curves, num_points) for curves in every]
    dims = np.geomspace(rows[0].dim / 1.4, rows[-1].dim * 1.4, 60)
    t_s, t_c = 0.5 * np.log(dims * MU**2), np.array([collapse_time(num_points, dim) for dim in dims])
    top = 1.08 * t_s[-1]
    axes.fill_between(dims, t_s, top, color="#eef1f4", linewidth=0)
    axes.fill_between(dims, 0, t_c, color="#f6e6e8", linewidth=0)
    axes.plot(dims, t_s, color="#30638e", label=r"$t_S = \frac{1}{2}\log d$")
    axes.plot(dims, t_c, color="#d1495b", label="$t_C$, closed form")
    measured = [row.dim for row in rows]
    axes.plot(measured, [row.crossing for row in rows], "o", color="#30638e", label=r"measured: $\phi$ = 0.7752")
    axes.plot(measured, [row.vanishing for row in rows], "o", color="#d1495b", label="measured: $f$ extrapolates to 0")
    axes.plot(measured, [row.half for row in rows], "x", color="#d1495b", label=r"measured: $\phi_C = 1/2$")
    for text, x, y in (("I  noise", 0.12, 0.88), ("II  generalisation", 0.72, 0.66), ("III  memorisation", 0.72, 0.08)):
        axes.text(x, y, text, transform=axes.transAxes, color=FAINT, ha="center", fontsize=8.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(measured, [str(dim) for dim in measured])
    axes.minorticks_off()
    axes.set(xlabel="dimension $d$", ylabel="time $t$", xlim=(dims[0], dims[-1]), ylim=(0, top))
    axes.legend(loc="lower right", fontsize=7.5, bbox_to_anchor=(1.0, 0.12))
    axes.set_title(f"d  Where the regimes begin, n = {num_points:,}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="where to write the picture (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer points, dimensions and queries")
    parser.add_argument("--dims", type=int, nargs="+", help=f"dimensions, up to {len(COLOURS)} (default: {DIMS})")
    parser.add_argument("--num", type=int, help="queries at each time, an even number (default: by dimension)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.dims is not None and not 1 <= len(options.dims) <= len(COLOURS):
        parser.error(f"--dims takes 1 to {len(COLOURS)} dimensions")
    begun = time.perf_counter()
    num_points = 2_000 if options.quick else NUM_POINTS
    every = []
    for dim in options.dims or ((64, 256) if options.quick else DIMS):
        num = options.num or (128 if options.quick else 512 if dim < 2048 else 192)
        choices = 128 if dim == 256 and not options.quick else 0
        every.append(measure(dim, num_points, num=num, choices=choices, seed=options.seed))
    dim, num = every[0].dim, 100 if options.quick else 1000
    taus = speciation_time(dim * MU**2) * np.array(SPECIATION_GRID[::3] if options.quick else SPECIATION_GRID[1:-1])
    step = 0.1 if options.quick else 0.02
    clones = (dim, taus, measure_clones(dim, taus, num, step=step, seed=options.seed), num)
    print(report(every, clones, num_points))
    draw(options.out, every, clones, num_points)
    print(f"\n{options.out}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
