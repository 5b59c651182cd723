"""The reference backend: the formulas of MATH.md, in float64, with NumPy alone.

Everything is computed from the residuals `r_j = x - alpha m_i - beta mu_j`, written as `e - beta (mu_j - c)` with the
data's centre c and `e = x - alpha m_i - beta c`, so that a shift of the data costs no digits. Blocks of queries and
points keep the (queries, points, D) array of residuals small: no B x N array is ever held.
"""

from __future__ import annotations

import numpy as np

from ..moments import Moments, merge
from . import Backend, Points

# Elements of one block of residuals: 1 MB of float64, which stays in a core's cache.
_BLOCK = 1 << 17


def load() -> Backend:
    return Backend(prepare=lambda points, isa, num_threads: Reference(points), detail=f"NumPy {np.__version__}")


class Reference:
    def __init__(self, points: Points):
        self.data, self.log_mass, self.source_mean = points
        rows = max(1, _BLOCK // self.data.shape[1])
        count = len(self.data)
        self.centre = sum(self.data[i : i + rows].sum(axis=0, dtype=np.float64) / count for i in range(0, count, rows))

    def moments(self, x: np.ndarray, coefficients: np.ndarray, mean: bool, spread: bool) -> Moments:
        count, size = x.shape
        coefficients = np.broadcast_to(coefficients, (3, count))
        queries, points = self._block_shape(count)
        result = Moments(
            log_total=np.empty(count),
            mean=np.empty_like(x) if mean else None,
            residual=np.empty_like(x) if mean else None,
            entropy=np.empty(count) if spread else None,
            collision=np.empty(count) if spread else None,
        )
        for i in range(0, count, queries):
            some = slice(i, i + queries)
            whole = None
            for j in range(0, len(self.data), points):
                part = self._block(x[some], coefficients[:, some], slice(j, j + points), mean, spread)
                whole = part if whole is None else merge((whole, part))
            for name in ("log_total", "mean", "residual", "entropy", "collision"):
                if getattr(result, name) is not None:
                    getattr(result, name)[some] = getattr(whole, name)
        return result

    def logits(self, x: np.ndarray, coefficients: np.ndarray, start: int, stop: int) -> np.ndarray:
        coefficients = np.broadcast_to(coefficients, (3, len(x)))
        queries, points = self._block_shape(len(x))
        logits = np.empty((len(x), stop - start))
        for i in range(0, len(x), queries):
            some = slice(i, i + queries)
            for j in range(start, stop, points):
                part = slice(j, min(j + points, stop))
                block, *_ = self._logits(x[some], coefficients[:, some], part)
                logits[some, part.start - start : part.stop - start] = block
        return logits

    def _block_shape(self, count: int) -> tuple[int, int]:
        """Queries and points of one block: few queries leave room for many points."""
        size = self.data.shape[1]
        queries = max(1, min(count, _BLOCK // (size * min(64, len(self.data)))))
        return queries, max(1, _BLOCK // (size * queries))

    def _logits(self, x: np.ndarray, coefficients: np.ndarray, part: slice):
        """Logits and residuals of a block: `log C_j - (D/2) log variance - |r_j|^2 / (2 variance)`."""
        alpha, beta, variance = coefficients[:, :, None]
        size = self.data.shape[1]
        centre = x.astype(np.float64)
        if self.source_mean is not None:
            centre = centre - alpha * self.source_mean
        centre = _minus_product(centre, beta, self.centre)
        offset = self.data[part].astype(np.float64) - self.centre
        residual = centre[:, None, :] - beta[:, :, None] * offset
        log_mass = -np.log(len(self.data)) if self.log_mass is None else self.log_mass[part]
        square = np.einsum("bnd,bnd->bn", residual, residual)
        logits = log_mass - 0.5 * size * np.log(variance) - square / (2.0 * variance)
        return logits, offset, residual

    def _block(self, x: np.ndarray, coefficients: np.ndarray, part: slice, mean: bool, spread: bool) -> Moments:
        logits, offset, residual = self._logits(x, coefficients, part)
        largest = logits.max(axis=1)
        weights = np.exp(logits - largest[:, None])
        total = weights.sum(axis=1)
        weights /= total[:, None]
        log_total = largest + np.log(total)
        entropy = collision = None
        if spread:
            # The log of the weight by difference of logits: the weight itself may have underflowed to zero.
            log_weights = np.where(weights > 0.0, (logits - largest[:, None]) - np.log(total)[:, None], 0.0)
            entropy = -np.sum(weights * log_weights, axis=1)
            collision = np.sum(weights * weights, axis=1)
        if not mean:
            return Moments(log_total, entropy=entropy, collision=collision)
        return Moments(
            log_total,
            mean=self.centre + weights @ offset,
            residual=np.einsum("bn,bnd->bd", weights, residual),
            entropy=entropy,
            collision=collision,
        )


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
