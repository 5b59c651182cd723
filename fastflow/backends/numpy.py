"""The reference backend: the formulas of docs/theory.md, in float64, with NumPy alone.

Everything is computed from the residuals `r_j = x - alpha m_i - beta mu_j`, written as `e - beta (mu_j - c)` with the
data's centre c and `e = x - alpha m_i - beta c`, so that a shift of the data costs no digits. For a query far outside
the data `|r_j|^2` is nearly the same for all points, and its rounding would show in the weights: there the logits are
taken from `|r_j|^2 - |e|^2`. Blocks of queries and points keep the (queries, points, D) array of residuals small: no
B x N array is ever held. The blocks depend on the data alone, so that a query's result does not depend on its company.

Variances are held with axes (query, point, direction), each of length one where all share one value.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._arrays import LOG_ZERO
from ..moments import NAMES, Moments, merge
from . import Backend, Points, Tangent, Want

# Elements of one block of residuals: 1 MB of float64, which stays in a core's cache.
_BLOCK = 1 << 17


def load() -> Backend:
    return Backend(prepare=lambda points, isa, num_threads: Reference(points), detail=f"NumPy {np.__version__}")


class Queries(NamedTuple):
    """A block of queries, with axes (query, point, direction).

    Attributes:
        e: offset from the centre, so that `r_j = e - beta (mu_j - c)`. beta: as it is.
        variance, slope, gain: D_j = variance + slope variance_j, gamma_j = (gain[0] + gain[1] variance_j) / D_j.
        far: whether logits are taken from `|r_j|^2 - |e|^2`.
        inverse: 1/D of the widest component, by which far queries measure. base: (query,), what the logits leave out.
    """

    e: np.ndarray
    beta: np.ndarray
    variance: np.ndarray
    slope: np.ndarray | None
    gain: np.ndarray | None
    far: np.ndarray
    inverse: np.ndarray
    base: np.ndarray


class Block(NamedTuple):
    """Queries against points: logits (query, point) short of the base; mu_j - c (point, D); r_j and gamma_j r_j
    (query, point, D); gamma_j (query, point, 1 or D)."""

    logits: np.ndarray
    offset: np.ndarray
    residual: np.ndarray
    gained: np.ndarray | None
    gain: np.ndarray | None


class Reference:
    small_batch = 0

    def __init__(self, points: Points):
        self.points = points
        self.count, self.size = points.count, points.data.shape[1]
        rows = max(1, _BLOCK // self.size)
        parts = [slice(i, min(i + rows, self.count)) for i in range(0, self.count, rows)]
        self.centre = sum((self._rows(part) / self.count).sum(axis=0) for part in parts)
        self.largest_square = max(np.square(self._rows(part) - self.centre).sum(axis=1).max() for part in parts)
        self.variance = points.variance
        if self.variance is not None and self.variance.ndim == 1:
            self.variance = self.variance[:, None]  # (N, 1): the same in all directions
        # Few points leave room for many queries, and the other way round.
        work = self.size * (1 if points.rotation is None else self.size)
        self.block = min(self.count, max(1, _BLOCK // (8 * work)))
        self.queries = max(1, _BLOCK // (self.block * self.size))

    def _rows(self, part: slice) -> np.ndarray:
        """Points of a range, in float64."""
        return self.points.rows(part)

    def moments(self, x: np.ndarray, coefficients: np.ndarray, want: Want) -> Moments:
        count = len(x)
        coefficients = np.broadcast_to(coefficients, (len(coefficients), count))
        blocks = []
        for i in range(0, max(count, 1), self.queries):
            some = slice(i, i + self.queries)
            queries = self._offset(x[some], coefficients[:, some])
            tangent = want.tangent and Tangent(want.tangent.direction[some], want.tangent.factors[:, some])
            exclude = None if want.exclude is None else want.exclude[some]
            cut = want._replace(tangent=tangent, exclude=exclude)
            whole = merge(
                self._moments(queries, slice(j, min(j + self.block, self.count)), cut)
                for j in range(0, self.count, self.block)
            )
            total = whole.log_total + queries.base
            blocks.append(whole.map(lambda name, a, total=total: total if name == "log_total" else a))
        names = [name for name in NAMES if getattr(blocks[0], name) is not None]
        joined = Moments(**{name: np.concatenate([getattr(block, name) for block in blocks]) for name in names})
        return joined.map(lambda name, a: a.astype(x.dtype, copy=False) if a.ndim == 2 else a)

    def logits(self, x: np.ndarray, coefficients: np.ndarray, start: int, stop: int) -> np.ndarray:
        logits = np.empty((len(x), stop - start))
        coefficients = np.broadcast_to(coefficients, (len(coefficients), len(x)))
        for i in range(0, len(x), self.queries):
            some = slice(i, i + self.queries)
            queries = self._offset(x[some], coefficients[:, some])
            for j in range(start, stop, self.block):
                part = slice(j, min(j + self.block, stop))
                logits[some, part.start - start : part.stop - start] = self._block(queries, part).logits
        return logits

    def _offset(self, x: np.ndarray, coefficients: np.ndarray) -> Queries:
        alpha, beta, variance, *others = coefficients[:, :, None]
        e = x.astype(np.float64)
        if self.points.source_mean is not None:
            e = _minus_product(e, alpha, self.points.source_mean)
        e = _minus_product(e, beta, self.centre)
        slope, gain, widest = None, None, variance
        if others:
            slope, gain = others[0][:, :, None], np.array(others[1:])[:, :, :, None]
            # The widest component in each direction, (query, 1 or D)
            widest = variance + others[0] * self.variance.max(axis=0)
        square = np.square(e)
        size = x.shape[1]
        terms = 0.5 * np.broadcast_to(square / widest, square.shape).sum(axis=1, keepdims=True)
        # Beyond twice the data's reach every |r| is at least half of |e|, so nothing cancels in |r|^2 - |e|^2; and
        # where |r|^2 / (2 variance) is many times the D/2 that is typical, its rounding would show in the weights.
        far = square.sum(axis=1, keepdims=True) > 4.0 * beta**2 * self.largest_square
        far &= (terms > 10.0 * size) & (self.points.rotation is None)
        base = -np.where(far, terms, 0.0)[:, 0]
        return Queries(
            e[:, None],
            beta[:, :, None],
            variance[:, :, None],
            slope,
            gain,
            far[:, :, None],
            1.0 / widest[:, None],
            base,
        )

    def _block(self, queries: Queries, part: slice) -> Block:
        offset = self._rows(part) - self.centre
        shift = queries.beta * offset
        residual = queries.e - shift
        size = self.size
        rotation = None if self.points.rotation is None else self.points.rotation[part]
        turned = residual if rotation is None else np.einsum("bnd,nde->bne", residual, rotation)
        variance, gain = queries.variance, None
        if queries.slope is not None:
            own = self.variance[part if len(self.variance) > 1 else slice(None)]
            variance = variance + queries.slope * own
            gain = (queries.gain[0] + queries.gain[1] * own) / variance
        squares = np.square(turned)
        if queries.far.any():
            # |r|^2 / D_j less |e|^2 / D of the widest: (|r|^2 - |e|^2) / D_j + |e|^2 (1/D_j - 1/D)
            excess = 0.0
            if queries.slope is not None:
                excess = queries.slope * (self.variance.max(axis=0) - own) * queries.inverse * np.square(queries.e)
            squares = np.where(queries.far, shift * (shift - 2.0 * queries.e) + excess, squares)
        terms = np.broadcast_to(squares / variance, residual.shape).sum(axis=2)
        log_determinant = np.log(variance).sum(axis=2) * (size // variance.shape[2])
        log_mass = -np.log(self.count) if self.points.log_mass is None else self.points.log_mass[part]
        logits = log_mass - 0.5 * (terms + log_determinant)
        gained = None
        if gain is not None:
            gained = turned * gain
            if rotation is not None:
                gained = np.einsum("bne,nde->bnd", gained, rotation)
        return Block(logits, offset, residual, gained, gain)

    def _moments(self, queries: Queries, part: slice, want: Want) -> Moments:
        """Moments of a block, log_total short of the base."""
        block = self._block(queries, part)
        logits = block.logits
        if want.exclude is not None:
            rows = np.flatnonzero((want.exclude >= part.start) & (want.exclude < part.stop))
            logits[rows, want.exclude[rows] - part.start] = LOG_ZERO
        largest = logits.max(axis=1)
        weights = np.exp(logits - largest[:, None])
        total = weights.sum(axis=1)
        weights /= total[:, None]
        result = {"log_total": largest + np.log(total)}
        if want.spread:
            # The log of the weight by difference of logits: the weight itself may have underflowed to zero.
            log_weights = np.where(weights > 0.0, (logits - largest[:, None]) - np.log(total)[:, None], 0.0)
            result["entropy"] = -np.sum(weights * log_weights, axis=1)
            result["collision"] = np.sum(weights * weights, axis=1)
        if not want.mean:
            return Moments(**result)

        # einsum and not a matrix product, whose rounding of a row depends on the number of rows
        def average(values: np.ndarray) -> np.ndarray:
            return np.einsum("bn,bnd->bd", weights, values)

        mean = np.einsum("bn,nd->bd", weights, block.offset)
        result |= {"mean": self.centre + mean, "residual": average(block.residual)}
        beside = block.offset - mean[:, None]  # mu_j less its average
        gained = None
        if block.gained is not None:
            share = np.broadcast_to(block.gain.mean(axis=2), weights.shape)
            result |= {"gain": np.einsum("bn,bn->b", weights, share), "gained": average(block.gained)}
            gained = block.gained - result["gained"][:, None]
        if want.trace:
            result["trace"] = np.einsum("bn,bnd,bnd->b", weights, beside, beside)
            if gained is not None:
                result["cross"] = np.einsum("bn,bnd,bnd->b", weights, beside, gained)
                result["gained_trace"] = np.einsum("bn,bnd,bnd->b", weights, gained, gained)
        if want.tangent:
            u = want.tangent.direction.astype(np.float64)
            a, b, c = want.tangent.factors[:, :, None]
            psi = a * np.einsum("bd,bnd->bn", u, block.residual) + c * np.einsum("bd,d->b", u, self.centre)[:, None]
            psi += c * np.einsum("bd,nd->bn", u, block.offset)
            if gained is not None:
                psi += b * np.einsum("bd,bnd->bn", u, block.gained)
            result["tilt"] = np.einsum("bn,bn->b", weights, psi)
            if gained is not None:
                result["gain_product"] = average(self._turned_gain(block, part, u))
            weights = weights * (psi - result["tilt"][:, None])  # with these the average is a covariance
            result["mean_product"] = average(beside)
            if gained is not None:
                result["gained_product"] = average(gained)
        return Moments(**result)

    def _turned_gain(self, block: Block, part: slice, u: np.ndarray) -> np.ndarray:
        """`gamma_j u`, (query, point, D)."""
        if self.points.rotation is None:
            return np.broadcast_to(block.gain * u[:, None], block.residual.shape)
        rotation = self.points.rotation[part]
        return np.einsum("bne,nde->bnd", np.einsum("bd,nde->bne", u, rotation) * block.gain, rotation)


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
