"""Draws from the posterior: which data point, and which ends of the path, a query may have come from.

The point `j ~ w(x, t)` is drawn exactly and without ever holding the weights. The points are cut into ranges; the log
totals of the ranges, by one pass of the fused primitive over all of them, are the logits of a mixture of ranges
(Fan 22-26). One uniform number chooses the range by inverting the distribution function of these, a second one the
point, by inverting that of the exact logits of the chosen range alone. Nothing here depends on the queries beside one:
so a draw is a function of its query and its two uniform numbers, whatever the batch or the number of threads.

Given the point, `(x_i, x_f)` are jointly Gaussian with x, and one standard normal z moves both along the line on which
`alpha x_i + beta x_f = x` (docs/theory.md, 4.2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .backends import Prepared, Want
from .limit import LOGIT_BLOCK
from .parts import Part, Parts
from .path import Path

# Points of a range, at least, and ranges, at most. Each range is one call of the primitive, and a draw reads one range
# a second time, for the exact logits, which cost some 5 times as much a point. Measured (native, AVX-512, 2 cores,
# d = 784, float32, 128 queries at t = 0.3): with N = 60,000 a draw takes 0.8 to 0.85 of a velocity with 16 to 64
# ranges, 0.92 with 128; with N = 5,000 (t = 0.5) 1.8 with ranges of 1,024 points, 1.4 with 512 or 256, 2.1 with 128.
RANGE_POINTS = 512
RANGES = 64

# The log totals of ranges have offsets of their own; so large a one rounds visibly (2e-10 at 1e6), and the ranges are
# then weighed by the exact logits, which leave out what the points share.
_LARGE_LOG = 1e6


class Ranges(NamedTuple):
    """A part of the data cut into ranges.

    Attributes:
        part: the part.
        edges: the positions in the part where they begin, and the end of the last.
        prepared: each range in the hands of the backend; views of the data, not copies. Empty where there is one range.
        log_share: what the log total of each range lacks to be one of the part.
    """

    part: Part
    edges: tuple[int, ...]
    prepared: tuple[Prepared, ...]
    log_share: np.ndarray


class Posterior:
    """Draws from the posterior of a field's data; holds the ranges of the parts that the field keeps.

    Args:
        parts: the field's data.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self._ranges: dict[int, Ranges] = {}

    def sample(
        self, part: Part, x: np.ndarray, path: Path, exclude: np.ndarray | None, uniforms: np.ndarray, keep: bool
    ) -> np.ndarray:
        """Positions in a part of points `j ~ w(x, t)`, (B,) int64.

        Args:
            part: the points that count.
            x: (B, D) queries, in the field's frame.
            path: the path of this part at their times.
            exclude: (B,) the position that each query leaves out, negative for none; or None.
            uniforms: (B, 2) in [0, 1).
            keep: whether the part is one that the field keeps, so that its ranges are worth keeping too.
        """
        chosen = np.empty(len(x), dtype=np.int64)
        regular = np.ones(len(x), dtype=bool)
        for row, (index, weights) in part.limits(x, path, exclude):
            chosen[row] = index[inverse(weights[None], uniforms[row, :1])[0]]
            regular[row] = False
        rows = np.flatnonzero(regular)
        if not len(rows):
            return chosen
        ranges = self._ranges_of(part, keep)
        coefficients = path.kernel_coefficients()
        coefficients = np.broadcast_to(coefficients, (len(coefficients), len(x)))
        found = self._range_of(ranges, *_some(x, coefficients, exclude, rows), uniforms[rows, 0])
        for number in np.unique(found):
            start, stop = ranges.edges[number], ranges.edges[number + 1]
            within = rows[found == number]
            step = max(1, LOGIT_BLOCK // (stop - start))
            for first in range(0, len(within), step):
                own = within[first : first + step]
                some_x, some_coefficients, some_exclude = _some(x, coefficients, exclude, own)
                logits = part.logits(some_x, some_coefficients, start, stop, some_exclude)
                chosen[own] = start + inverse(_shares(logits), uniforms[own, 1])
        return chosen

    def _ranges_of(self, part: Part, keep: bool) -> Ranges:
        known = self._ranges.get(id(part.prepared))  # the ranges hold the part, so that its id is not given again
        if known is None:
            known = self._cut(part)
            if keep:
                self._ranges[id(part.prepared)] = known
        return known

    def _cut(self, part: Part) -> Ranges:
        points, choice = part.points, self._parts.choice
        number = max(1, min(RANGES, points.count // RANGE_POINTS))
        edges = tuple(k * points.count // number for k in range(number + 1))
        log_share = np.zeros(number)
        prepared = []
        for k in range(number if number > 1 else 0):
            some = slice(edges[k], edges[k + 1])
            variance = points.variance
            if points.log_mass is None:
                log_share[k] = np.log((some.stop - some.start) / points.count)
            if variance is not None and len(variance) == points.count:
                variance = variance[some]
            own = points._replace(
                data=points.data[some] if points.index is None else points.data,
                index=None if points.index is None else points.index[some],
                log_mass=None if points.log_mass is None else points.log_mass[some],
                variance=variance,
                rotation=None if points.rotation is None else points.rotation[some],
            )
            prepared.append(choice.backend.prepare(own, choice.isa, choice.num_threads))
        return Ranges(part, edges, tuple(prepared), log_share)

    def _range_of(
        self, ranges: Ranges, x: np.ndarray, coefficients: np.ndarray, exclude: np.ndarray | None, uniforms: np.ndarray
    ) -> np.ndarray:
        """The number of the range that each query's point lies in, (B,)."""
        count = len(x)
        if not ranges.prepared:
            return np.zeros(count, dtype=np.int64)
        # The kernel for small batches rounds differently: small ones are filled up with copies of the first query.
        missing = max(0, ranges.prepared[0].small_batch + 1 - count)
        filled = np.concatenate((np.arange(count), np.zeros(missing, dtype=np.int64)))
        all_x, all_coefficients, all_exclude = _some(x, coefficients, exclude, filled)
        logs = np.empty((count, len(ranges.prepared)))
        for k, prepared in enumerate(ranges.prepared):
            want = Want(mean=False)
            if all_exclude is not None:
                inside = (all_exclude >= ranges.edges[k]) & (all_exclude < ranges.edges[k + 1])
                want = want._replace(exclude=np.where(inside, all_exclude - ranges.edges[k], -1))
            logs[:, k] = prepared.moments(all_x, all_coefficients, want).log_total[:count]
        logs += ranges.log_share
        large = np.flatnonzero(np.abs(logs.max(axis=1)) > _LARGE_LOG)
        if len(large):
            logs[large] = self._exact_logs(ranges, *_some(x, coefficients, exclude, large))
        return inverse(_shares(logs), uniforms)

    def _exact_logs(
        self, ranges: Ranges, x: np.ndarray, coefficients: np.ndarray, exclude: np.ndarray | None
    ) -> np.ndarray:
        """Log totals of the ranges, each query's short of a constant, from the exact logits."""
        logs = np.empty((len(x), len(ranges.prepared)))
        for k in range(len(ranges.prepared)):
            start, stop = ranges.edges[k], ranges.edges[k + 1]
            step = max(1, LOGIT_BLOCK // (stop - start))
            for first in range(0, len(x), step):
                own = np.arange(first, min(first + step, len(x)))
                logits = ranges.part.logits(*_some(x, coefficients, exclude, own)[:2], start, stop, _rows(exclude, own))
                largest = logits.max(axis=1)
                logs[own, k] = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        return logs


def needs_noise(part: Part, path: Path) -> bool:
    """Whether the ends of a path still vary once the point is known."""
    return part.model.target != 0.0 or bool(np.any(path.singular))


def ends_of_path(
    part: Part, x: np.ndarray, path: Path, position: np.ndarray, noise: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """`(x_i, x_f)` given x and the points j, (B, D) float64 each, in the field's frame.

    In each direction, with `r = x - alpha m_i - beta mu_j` and `D = alpha^2 s_i + beta^2 s_f` (docs/theory.md, 4.2):
    `x_i = m_i + (alpha s_i / D) r + beta w z` and `x_f = mu_j + (beta s_f / D) r - alpha w z`, `w^2 = s_i s_f / D`.
    Where D = 0 the point is `x_f` itself, and `x_i` is as free as in the source.

    Args:
        part, x, path: as for `Posterior.sample`.
        position: (B,) the points, by their positions in the part.
        noise: (B, D) standard normal z; may be None where `needs_noise` is false.
    """
    points, model = part.points, part.model
    alpha, beta = (np.reshape(v, (-1, 1)) for v in (path.alpha, path.beta))
    mean = 0.0 if model.source_mean is None else model.source_mean
    data = points.rows(position)
    residual = x.astype(np.float64) - alpha * mean - beta * data
    if noise is None:
        return mean + residual / alpha, data
    if points.variance is None:
        own, rotation = np.array([[model.target]]), None
    else:
        own = points.variance if len(points.variance) == 1 else points.variance[position]
        own = own[:, None] if points.variance.ndim == 1 else own
        rotation = None if points.rotation is None else points.rotation[position]
    if rotation is not None:
        residual = np.einsum("nd,nde->ne", residual, rotation)
    source = model.source_variance
    total = alpha**2 * source + beta**2 * own
    free = total == 0.0
    safe = np.where(free, 1.0, total)
    width = np.sqrt(source * (own / safe))
    x_i = alpha * source / safe * residual + np.where(free, np.sqrt(source), beta * width) * noise
    x_f = beta * own / safe * residual - alpha * width * noise
    if rotation is not None:
        x_i, x_f = (np.einsum("ne,nde->nd", v, rotation) for v in (x_i, x_f))
    return mean + x_i, data + x_f


def inverse(shares: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Columns drawn in proportion to each row of `shares`, (B, n), at `uniforms` (B,) in [0, 1); never one of share 0.

    The first column whose cumulative share exceeds the uniform number's part of the row's total. There always is one:
    a uniform number is at most 1 - 2^-53, and that part of a total rounds to less than the total.
    """
    edges = np.cumsum(shares, axis=1)
    return np.count_nonzero(edges <= (uniforms * edges[:, -1])[:, None], axis=1)


def _shares(logits: np.ndarray) -> np.ndarray:
    """Weights (B, n) of which each row's largest is one."""
    return np.exp(logits - logits.max(axis=1, keepdims=True))


def _rows(values: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[rows]


def _some(
    x: np.ndarray, coefficients: np.ndarray, exclude: np.ndarray | None, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Those of some rows, as backends take them."""
    return x[rows], np.ascontiguousarray(coefficients[:, rows]), _rows(exclude, rows)
