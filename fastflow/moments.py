"""Posterior moments: the mergeable partial result that every quantity is made of.

For a query x at time t and a part of the data, let `logit_j` be the log of component j's mass times its marginal
density at x, short of the constant `(d/2) log 2 pi` (MATH.md, Posterior weights). A part's moments are all
normalised, so each is meaningful by itself: the log of the part's total, and averages under the part's own posterior
weights. Parts merge by the log-sum-exp rule (Fan 22-26), which is associative and commutative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Moments:
    """Posterior moments of queries under (a part of) the data. Shapes follow the queries.

    Attributes:
        log_total: `log sum_j exp(logit_j)`, float64, shape (B,).
        mean: `E[mu_j | x]`, the posterior mean of the data points, shape (B, *event), or None if not asked for.
        residual: `E[r_j | x]` with `r_j = x - alpha m_i - beta mu_j`, shape (B, *event), or None. It equals
            `x - alpha m_i - beta mean`, but is held by itself because that difference cancels as t -> 1.
        entropy: `-sum_j w_j log w_j` in nats, float64, (B,), or None.
        collision: `sum_j w_j^2`, the inverse of the effective sample size, float64, (B,), or None.
    """

    log_total: np.ndarray
    mean: np.ndarray | None = None
    residual: np.ndarray | None = None
    entropy: np.ndarray | None = None
    collision: np.ndarray | None = None

    def scaled(self, mass: float) -> Moments:
        """These moments with every component's mass multiplied by `mass` > 0.

        A field normalises its weights, so the moments of a part that holds the share `mass` of the whole data set
        enter the merge as `part.scaled(mass)`.
        """
        if not (mass > 0.0 and math.isfinite(mass)):
            raise ValueError(f"mass is {mass}; accepted is a finite number above zero")
        return replace(self, log_total=self.log_total + math.log(mass))

    def merge(self, other: Moments) -> Moments:
        """The moments of both parts together, for the same queries and times."""
        return merge((self, other))


def merge(parts: Iterable[Moments]) -> Moments:
    """Merge the moments of disjoint parts of the data into the moments of the whole.

    Args:
        parts: moments of the same queries at the same times, at least one. A quantity that only some parts carry
            (`mean` and `residual`, `entropy`, `collision`) is an error.

    Returns:
        The merged `Moments`. With `W_a = exp(log_total_a - log_total)`: means average with `W_a`; entropies by the
        chain rule `sum_a W_a (H_a - log W_a)`; collisions as `sum_a W_a^2 c_a`.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts is empty; at least one Moments is needed")
    for part in parts:
        if not isinstance(part, Moments):
            raise TypeError(f"parts holds a {type(part).__name__}; accepted are Moments")
    names = ("log_total", "mean", "residual", "entropy", "collision")
    for name in names:
        shapes = {getattr(part, name) is not None and np.shape(getattr(part, name)) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"parts disagree on {name}: all must carry it with one shape, or none may")
    logs = np.stack([np.asarray(part.log_total, dtype=np.float64) for part in parts])
    largest = logs.max(axis=0)
    shares = np.exp(logs - largest)
    total = shares.sum(axis=0)
    shares /= total

    def average(values: list[np.ndarray]) -> np.ndarray:
        extra = (1,) * (np.ndim(values[0]) - np.ndim(total))
        return sum(
            share.reshape(np.shape(share) + extra).astype(np.asarray(value).dtype) * value
            for share, value in zip(shares, values, strict=True)
        )

    def merged(name: str, combine) -> np.ndarray | None:
        return None if getattr(parts[0], name) is None else combine([getattr(part, name) for part in parts])

    def chain_rule(entropies: list[np.ndarray]) -> np.ndarray:
        log_shares = np.log(np.where(shares > 0.0, shares, 1.0))
        return sum(s * (h - ls) for s, h, ls in zip(shares, entropies, log_shares, strict=True))

    return Moments(
        log_total=largest + np.log(total),
        mean=merged("mean", average),
        residual=merged("residual", average),
        entropy=merged("entropy", chain_rule),
        collision=merged("collision", lambda cs: sum(s * s * c for s, c in zip(shares, cs, strict=True))),
    )
