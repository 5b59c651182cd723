"""Posterior moments: the mergeable partial result that every quantity is made of.

For a query x at time t and a part of the data, let `logit_j` be the log of component j's mass times its marginal
density at x, short of the constant `(d/2) log 2 pi` (docs/theory.md, section 3). A part's moments are all
normalised, so each is meaningful by itself: the log of the part's total, and averages under the part's own posterior
weights. Parts merge by the log-sum-exp rule (Fan 22-26; docs/theory.md, section 9), which is associative and
commutative.

At t = 1 without variance only the nearest points have weight, and beside the logs of their densities, which are
infinite, the logs of their masses are lost. There two more numbers say how parts merge: `distance` and `tied`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from . import _arrays


@dataclass(frozen=True, slots=True)
class Moments:
    """Posterior moments of queries under (a part of) the data. Shapes follow the queries.

    A field is None where it was not asked for. Those that speak of `gamma_j` (see `Path`) are there only where the
    points differ in variance; `Cov_w` is the covariance over components under the posterior weights. With full
    covariances `gamma_j` is a matrix, and all vectors are in the frame where the source is isotropic.

    Attributes:
        log_total: `log sum_j exp(logit_j)`, float64, shape (B,).
        mean: `E[mu_j | x]`, the posterior mean of the data points, shape (B, *event).
        residual: `E[r_j | x]` with `r_j = x - alpha m_i - beta mu_j`, shape (B, *event). It equals
            `x - alpha m_i - beta mean`, but is held by itself because that difference cancels as t -> 1.
        entropy: `-sum_j w_j log w_j` in nats, float64, (B,).
        collision: `sum_j w_j^2`, the inverse of the effective sample size, float64, (B,).
        gain: `E[gamma_j]` (of a matrix, its trace over D), float64, (B,).
        gained: `E[gamma_j r_j]`, (B, *event).
        trace: `tr Cov_w(mu_j, mu_j)`, float64, (B,).
        cross: `tr Cov_w(mu_j, gamma_j r_j)`, float64, (B,).
        gained_trace: `tr Cov_w(gamma_j r_j, gamma_j r_j)`, float64, (B,).
        tilt: `E[psi_j]` of the scalar `psi_j` that a `Tangent` defines, float64, (B,).
        mean_product: `Cov_w(mu_j, psi_j)`, (B, *event).
        gained_product: `Cov_w(gamma_j r_j, psi_j)`, (B, *event).
        gain_product: `E[gamma_j] u`, (B, *event).
        distance: where no variance is left, `|r_j|` of the nearest points, else 0; float64, (B,). None where this
            concerns no query.
        tied: where no variance is left, the log of the mass of the nearest points, else -inf; float64, (B,). None as
            for `distance`.
    """

    log_total: np.ndarray
    mean: np.ndarray | None = None
    residual: np.ndarray | None = None
    entropy: np.ndarray | None = None
    collision: np.ndarray | None = None
    gain: np.ndarray | None = None
    gained: np.ndarray | None = None
    trace: np.ndarray | None = None
    cross: np.ndarray | None = None
    gained_trace: np.ndarray | None = None
    tilt: np.ndarray | None = None
    mean_product: np.ndarray | None = None
    gained_product: np.ndarray | None = None
    gain_product: np.ndarray | None = None
    distance: np.ndarray | None = None
    tied: np.ndarray | None = None

    def map(self, change: Callable[[str, np.ndarray], np.ndarray]) -> Moments:
        """These moments with `change(name, array)` in place of each array that is there."""
        arrays = {name: getattr(self, name) for name in NAMES}
        return Moments(**{name: a if a is None else change(name, a) for name, a in arrays.items()})

    def scaled(self, mass: float) -> Moments:
        """These moments with every component's mass multiplied by `mass` > 0.

        A field normalises its weights, so the moments of a part that holds the share `mass` of the whole data set
        enter the merge as `part.scaled(mass)`.
        """
        if isinstance(mass, bool | np.bool_):
            raise TypeError(f"mass is {mass}; accepted is a finite number above zero")
        mass = _arrays.real_number("mass", mass, positive=True)
        tied = None if self.tied is None else self.tied + math.log(mass)
        return replace(self, log_total=self.log_total + math.log(mass), tied=tied)

    def merge(self, other: Moments) -> Moments:
        """The moments of both parts together, for the same queries and times."""
        return merge((self, other))


NAMES = tuple(Moments.__slots__)
# The moments of the shape of the queries; the others hold one number for each query.
VECTORS = frozenset(("mean", "residual", "gained", "mean_product", "gained_product", "gain_product"))


def merge(parts: Iterable[Moments]) -> Moments:
    """Merge the moments of disjoint parts of the data into the moments of the whole.

    Args:
        parts: moments of the same queries at the same times, at least one. A quantity that only some parts carry
            (`mean` and `residual`, `entropy`, `collision`, ...) is an error; but `distance` and `tied`, which only the
            merge reads, are left out where they are missing, and then the masses of ties are lost.

    Returns:
        The merged `Moments`. With `W_a = exp(log_total_a - log_total)`: means average with `W_a`; entropies by the
        chain rule `sum_a W_a (H_a - log W_a)`; collisions as `sum_a W_a^2 c_a`; covariances by the law of total
        covariance, `sum_a W_a (Cov_a(f, g) + (E_a f - E f) (E_a g - E g))`. Where no variance is left the parts with
        the nearest points share by the masses of those; distances are compared to rounding.
    """
    if isinstance(parts, Moments) or not isinstance(parts, Iterable):
        raise TypeError(f"parts is {type(parts).__name__}; accepted is a sequence of Moments")
    parts = [checked(part, "parts") for part in parts]
    if not parts:
        raise ValueError("parts is empty; at least one Moments is needed")
    if any(part.tied is None for part in parts):
        parts = [part if part.tied is None else replace(part, distance=None, tied=None) for part in parts]
    for name in NAMES:
        shapes = {getattr(part, name) is not None and np.shape(getattr(part, name)) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"parts disagree on {name}: all must carry it with one shape, or none may")
    with np.errstate(under="ignore"):
        return _merge(parts)


def _in_order(values: np.ndarray) -> np.ndarray:
    """The sum over the first axis, one after the other: NumPy's own order depends on how long the others are, so that a
    query's would depend on how many there are."""
    return np.add.accumulate(values, axis=0)[-1]


def _merge(parts: list[Moments]) -> Moments:
    logs = np.stack([np.asarray(part.log_total, dtype=np.float64) for part in parts])
    largest = logs.max(axis=0)
    shares = np.exp(logs - largest)
    limit: dict[str, np.ndarray] = {}
    if parts[0].tied is not None:
        tied = np.stack([part.tied for part in parts])
        distances = np.where(tied > -np.inf, np.stack([part.distance for part in parts]), np.inf)
        distance = distances.min(axis=0)
        at_limit = distance < np.inf
        tied = np.where(distances == distance, tied, -np.inf)
        heaviest = np.where(at_limit, tied.max(axis=0), 0.0)
        by_mass = np.exp(tied - heaviest)
        shares = np.where(at_limit, by_mass, shares)
        limit["distance"] = np.where(at_limit, distance, 0.0)
        limit["tied"] = np.where(at_limit, heaviest + np.log(_in_order(shares)), -np.inf)
    total = _in_order(shares)
    shares /= total

    def average(values: list[np.ndarray]) -> np.ndarray:
        extra = (1,) * (np.ndim(values[0]) - np.ndim(total))
        return sum(
            share.reshape(np.shape(share) + extra).astype(np.asarray(value).dtype) * value
            for share, value in zip(shares, values, strict=True)
        )

    merged: dict[str, np.ndarray | None] = {"log_total": largest + np.log(total)}

    def combine(name: str, rule: Callable[[list[np.ndarray]], np.ndarray]) -> None:
        carried = getattr(parts[0], name) is not None
        merged[name] = rule([getattr(part, name) for part in parts]) if carried else None

    def chain_rule(entropies: list[np.ndarray]) -> np.ndarray:
        log_shares = np.log(np.where(shares > 0.0, shares, 1.0))
        return sum(s * (h - ls) for s, h, ls in zip(shares, entropies, log_shares, strict=True))

    def between(name: str) -> list[np.ndarray]:
        """How far each part's average is from that of the whole, one axis for the event."""
        shape = np.shape(merged[name])
        one_axis = (*np.shape(total), math.prod(shape[np.ndim(total) :]))
        return [np.reshape(getattr(part, name) - merged[name], one_axis) for part in parts]

    def total_trace(first: str, second: str) -> Callable[[list[np.ndarray]], np.ndarray]:
        def rule(within: list[np.ndarray]) -> np.ndarray:
            pairs = zip(between(first), between(second), strict=True)
            return average([w + np.einsum("...d,...d->...", f, g) for w, (f, g) in zip(within, pairs, strict=True)])

        return rule

    def total_product(name: str) -> Callable[[list[np.ndarray]], np.ndarray]:
        def rule(within: list[np.ndarray]) -> np.ndarray:
            pairs = zip(between(name), between("tilt"), strict=True)
            return average([w + np.reshape(f * g, np.shape(w)) for w, (f, g) in zip(within, pairs, strict=True)])

        return rule

    for name in ("mean", "residual", "gain", "gained", "tilt", "gain_product"):
        combine(name, average)
    combine("entropy", chain_rule)
    combine("collision", lambda cs: sum(s * s * c for s, c in zip(shares, cs, strict=True)))
    combine("trace", total_trace("mean", "mean"))
    combine("cross", total_trace("mean", "gained"))
    combine("gained_trace", total_trace("gained", "gained"))
    combine("mean_product", total_product("mean"))
    combine("gained_product", total_product("gained"))
    return Moments(**merged, **limit)


def checked(moments: Moments, name: str) -> Moments:
    """`moments`, if its arrays are real and `log_total` is finite; else TypeError or ValueError that says `name`."""
    if not isinstance(moments, Moments):
        held = "holds a" if name == "parts" else "is"
        raise TypeError(f"{name} {held} {type(moments).__name__}; accepted are Moments")
    for field in NAMES:
        value = getattr(moments, field)
        if value is not None and _arrays.real_array(f"{name}.{field}", value).dtype.kind in "iub":
            raise TypeError(f"{name}.{field} has dtype {np.asarray(value).dtype}; accepted are floats")
    if moments.log_total is None:
        raise TypeError(f"{name}.log_total is None; accepted is an array of real numbers")
    _arrays.require_finite(f"{name}.log_total", np.ascontiguousarray(moments.log_total))
    return moments
