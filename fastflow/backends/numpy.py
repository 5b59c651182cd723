"""The reference backend: the formulas of MATH.md, in float64, with NumPy alone.

Everything is computed from the residuals `r_j = x - alpha m_i - beta mu_j`, written as `e - beta (mu_j - c)` with the
data's centre c and `e = x - alpha m_i - beta c`, so that a shift of the data costs no digits. For a query far outside
the data `|r_j|^2` is nearly the same for all points, and its rounding would show in the weights: there the logits are
taken from `|r_j|^2 - |e|^2`. Blocks of queries and points keep the (queries, points, D) array of residuals small: no
B x N array is ever held. The blocks depend on the data alone, so that a query's result does not depend on its company.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..moments import Moments, merge
from . import Backend, Points

# Elements of one block of residuals: 1 MB of float64, which stays in a core's cache.
_BLOCK = 1 << 17


def load() -> Backend:
    return Backend(prepare=lambda points, isa, num_threads: Reference(points), detail=f"NumPy {np.__version__}")


class Queries(NamedTuple):
    """A block of queries: e, beta and variance with axes (query, 1, D) or (query, 1); far as above; base (query,) is
    what the logits leave out."""

    e: np.ndarray
    beta: np.ndarray
    variance: np.ndarray
    far: np.ndarray
    base: np.ndarray


class Reference:
    def __init__(self, points: Points):
        self.data, self.log_mass, self.source_mean = points
        count, size = self.data.shape
        rows = max(1, _BLOCK // size)
        self.centre = sum(
            (self.data[i : i + rows].astype(np.float64) / count).sum(axis=0) for i in range(0, count, rows)
        )
        self.largest_square = max(
            np.square(self.data[i : i + rows] - self.centre).sum(axis=1).max() for i in range(0, count, rows)
        )
        # Few points leave room for many queries, and the other way round.
        self.points = min(count, max(1, _BLOCK // (8 * size)))
        self.queries = max(1, _BLOCK // (self.points * size))

    def moments(self, x: np.ndarray, coefficients: np.ndarray, mean: bool, spread: bool) -> Moments:
        count = len(x)
        result = Moments(
            log_total=np.empty(count),
            mean=np.empty_like(x) if mean else None,
            residual=np.empty_like(x) if mean else None,
            entropy=np.empty(count) if spread else None,
            collision=np.empty(count) if spread else None,
        )
        for i in range(0, count, self.queries):
            some = slice(i, i + self.queries)
            queries = self._offset(x[some], np.broadcast_to(coefficients, (3, count))[:, some])
            whole = merge(
                self._block(queries, slice(j, j + self.points), mean, spread)
                for j in range(0, len(self.data), self.points)
            )
            for name in ("log_total", "mean", "residual", "entropy", "collision"):
                if getattr(result, name) is not None:
                    getattr(result, name)[some] = getattr(whole, name)
            result.log_total[some] += queries.base
        return result

    def logits(self, x: np.ndarray, coefficients: np.ndarray, start: int, stop: int) -> np.ndarray:
        logits = np.empty((len(x), stop - start))
        for i in range(0, len(x), self.queries):
            some = slice(i, i + self.queries)
            queries = self._offset(x[some], np.broadcast_to(coefficients, (3, len(x)))[:, some])
            for j in range(start, stop, self.points):
                part = slice(j, min(j + self.points, stop))
                logits[some, part.start - start : part.stop - start] = self._logits(queries, part)[0]
        return logits

    def _offset(self, x: np.ndarray, coefficients: np.ndarray) -> Queries:
        alpha, beta, variance = coefficients[:, :, None]
        e = x.astype(np.float64)
        if self.source_mean is not None:
            e = _minus_product(e, alpha, self.source_mean)
        e = _minus_product(e, beta, self.centre)
        size = x.shape[1]
        square = np.einsum("bd,bd->b", e, e)[:, None]
        # Beyond twice the data's reach every |r| is at least half of |e|, so nothing cancels in |r|^2 - |e|^2; and
        # where |r|^2 / (2 variance) is many times the D/2 that is typical, its rounding would show in the weights.
        far = (square > 4.0 * beta**2 * self.largest_square) & (square / (2.0 * variance) > 10.0 * size)
        base = -0.5 * size * np.log(variance) - np.where(far, square, 0.0) / (2.0 * variance)
        return Queries(e[:, None, :], beta[:, :, None], variance, far[:, :, None], base[:, 0])

    def _logits(self, queries: Queries, part: slice):
        """Logits `log C_j - |r_j|^2 / (2 variance)` short of the base, mu_j - c, and r_j of a block."""
        offset = self.data[part].astype(np.float64) - self.centre
        shift = queries.beta * offset
        residual = queries.e - shift
        if queries.far.any():
            # |r|^2, or for far queries |r|^2 - |e|^2 = shift (shift - 2 e)
            left = np.where(queries.far, shift, residual)
            right = np.where(queries.far, shift - 2.0 * queries.e, residual)
        else:
            left = right = residual
        distance = np.einsum("bnd,bnd->bn", left, right)
        log_mass = -np.log(len(self.data)) if self.log_mass is None else self.log_mass[part]
        return log_mass - distance / (2.0 * queries.variance), offset, residual

    def _block(self, queries: Queries, part: slice, mean: bool, spread: bool) -> Moments:
        """Moments of a block, log_total short of the base."""
        logits, offset, residual = self._logits(queries, part)
        largest = logits.max(axis=1)
        weights = np.exp(logits - largest[:, None])
        total = weights.sum(axis=1)
        weights /= total[:, None]
        entropy = collision = mean_point = mean_residual = None
        if spread:
            # The log of the weight by difference of logits: the weight itself may have underflowed to zero.
            log_weights = np.where(weights > 0.0, (logits - largest[:, None]) - np.log(total)[:, None], 0.0)
            entropy = -np.sum(weights * log_weights, axis=1)
            collision = np.sum(weights * weights, axis=1)
        if mean:
            # einsum and not a matrix product, whose rounding of a row depends on the number of rows
            mean_point = self.centre + np.einsum("bn,nd->bd", weights, offset)
            mean_residual = np.einsum("bn,bnd->bd", weights, residual)
        return Moments(largest + np.log(total), mean_point, mean_residual, entropy, collision)


def _minus_product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`a - b c` with the product's rounding error put back (Dekker's two-product on Veltkamp's split)."""
    split = 134217729.0  # 2^27 + 1 cuts a float64 into halves of 26 bits, whose products are exact

    def halves(v):
        high = split * v
        high = high - (high - v)
        return high, v - high

    product = b * c
    (b_high, b_low), (c_high, c_low) = halves(b), halves(c)
    error = ((b_high * c_high - product) + b_high * c_low + b_low * c_high) + b_low * c_low
    return (a - product) - error
