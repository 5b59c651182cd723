"""Parts of a field's data in the hands of a backend: all of it, one class, a subset, or all but one class.

A part holds indices into the data, never a copy of it. Its masses sum to one among themselves; `log_share` is the log
of their sum among all, by which the moments of parts merge into those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from . import _arrays
from .backends import Choice, Points, Prepared, Want
from .limit import LOGIT_BLOCK, Nearest, limit_moments, nearest, no_moments
from .model import Model
from .moments import Moments, merge
from .path import Path, Variances


class Part(NamedTuple):
    """Some of the points, prepared.

    Attributes:
        points: what they are. model: the field's model, of them.
        prepared: the same in the hands of the backend.
        log_share: log of the share of the whole mass that they hold.
    """

    points: Points
    model: Model
    prepared: Prepared
    log_share: float

    def moments(self, x: np.ndarray, path: Path, want: Want) -> Moments:
        """Moments of queries (B, D), with their limit where no variance is left."""
        coefficients = path.kernel_coefficients()
        found = self._nearest(x, path, want.exclude)
        if found and len(found) == len(x) and not want.trace and want.tangent is None and self.model.target == 0.0:
            moments = no_moments(x, want.mean, want.spread)
        else:
            moments = self.prepared.moments(x, coefficients, want)
        return limit_moments(moments, found, self.points, x, coefficients)

    def log_mass_left(self, exclude: np.ndarray) -> np.ndarray:
        """Log of the mass of the part without the points that queries leave out, (B,)."""
        if self.points.log_mass is None:
            mass = np.full(len(exclude), 1.0 / self.points.count)
        else:
            mass = np.exp(self.points.log_mass[exclude])
        return np.log1p(-np.where(exclude >= 0, mass, 0.0))

    def limits(self, x: np.ndarray, path: Path, exclude: np.ndarray | None) -> Iterator[tuple[int, tuple]]:
        """Pairs of row and (indices, weights) of the queries where no variance is left."""
        return ((row, (found.index, found.weights)) for row, found in self._nearest(x, path, exclude))

    def _nearest(self, x: np.ndarray, path: Path, exclude: np.ndarray | None) -> list[tuple[int, Nearest]]:
        """Rows of the queries where no variance is left, and the points that share all of the weight there.

        Among points with variance, those without it have all of the weight where the query is on one of them, and
        none elsewhere.
        """
        if path.singular is False:
            return []
        variance, alone = self.points.variance, self.model.target == 0.0
        rows = np.flatnonzero(np.broadcast_to(path.singular, len(x)))
        if not len(rows) or not (alone or (variance is not None and variance.ndim == 1)):
            return []
        coefficients = path.kernel_coefficients()
        coefficients = np.broadcast_to(coefficients, (len(coefficients), len(x)))[:, rows]
        own_exclude = None if exclude is None else exclude[rows]
        found = nearest(self.points, x[rows], coefficients, own_exclude, None if alone else variance == 0.0)
        return [pair for pair in zip(rows.tolist(), found, strict=True) if alone or pair[1].distance == 0.0]

    def logits(self, x: np.ndarray, coefficients: np.ndarray, start: int, stop: int, exclude: Any) -> np.ndarray:
        """Logits of the points start..stop-1, each query's short of a constant; those left out are `LOG_ZERO`."""
        return masked(self.prepared.logits(x, coefficients, start, stop), start, stop, exclude)


def masked(logits: np.ndarray, start: int, stop: int, exclude: np.ndarray | None) -> np.ndarray:
    """`logits` of the points start..stop-1, changed in place where a query leaves one of them out."""
    if exclude is not None:
        rows = np.flatnonzero((exclude >= start) & (exclude < stop))
        logits[rows, exclude[rows] - start] = _arrays.LOG_ZERO
    return logits


def largest_weights(
    part: Part, x: np.ndarray, path: Path, k: int, exclude: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the part and weights of the k points of largest weight, largest first, both (B, k)."""
    count = len(x)
    step = max(k, LOGIT_BLOCK // max(count, 1))
    coefficients = path.kernel_coefficients()
    best = np.empty((count, 0))
    indices = np.empty((count, 0), dtype=np.int64)
    largest, total = np.full((count, 1), -np.inf), np.zeros((count, 1))
    for start in range(0, part.points.count, step):
        stop = min(start + step, part.points.count)
        block = part.logits(x, coefficients, start, stop, exclude)
        raised = np.maximum(largest, block.max(axis=1, keepdims=True))
        total = total * np.exp(largest - raised) + np.exp(block - raised).sum(axis=1, keepdims=True)
        largest = raised
        best = np.concatenate((best, block), axis=1)
        indices = np.concatenate((indices, np.broadcast_to(np.arange(start, stop), block.shape)), axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]  # earlier points come first among equals
        best, indices = np.take_along_axis(best, order, 1), np.take_along_axis(indices, order, 1)
    weights = np.exp(best - largest) / total
    for row, (index, limit) in part.limits(x, path, exclude):
        others = indices[row][~np.isin(indices[row], index)]
        order = np.argsort(-limit, kind="stable")
        indices[row] = np.concatenate((index[order], others))[:k]
        weights[row] = np.concatenate((limit[order], np.zeros(len(others))))[:k]
    return indices, weights


class Group(NamedTuple):
    """Queries that see the same part: their rows (None for all), the part, the rest of the data where that is asked
    for, and the position in the part (and in the rest) of the point that each leaves out."""

    rows: np.ndarray | None
    part: Part
    rest: Part | None = None
    exclude: np.ndarray | None = None
    rest_exclude: np.ndarray | None = None


class Parts:
    """All the data of a field, and its parts, prepared when first asked for.

    Args:
        points: all points. choice: the backend and its settings. model: the field's model.
        labels: (N,) int64 classes, or None.
    """

    def __init__(self, points: Points, choice: Choice, model: Model, labels: np.ndarray | None):
        self.points, self.choice, self.model, self.labels = points, choice, model, labels
        self.count = points.count
        self.whole = self._prepare(points, 0.0)
        self.known = () if labels is None else tuple(int(v) for v in np.unique(labels))
        self._classes: dict[tuple[int, bool], Part | None] = {}

    def _prepare(self, points: Points, log_share: float) -> Part:
        choice, model = self.choice, self.model
        if points.variance is not None and not points.variance.any():
            # Points without variance have limits of their own at t = 1, where others beside them have not.
            points, model = points._replace(variance=None, rotation=None), model._replace(target=0.0)
        elif points.variance is not None:
            # The largest stays that of all points: gamma_j, and so merging, depends on it.
            model = model._replace(target=Variances(float(points.variance.min()), self.model.target.largest))
        prepared = choice.backend.prepare(points, choice.isa, choice.num_threads)
        return Part(points, model, prepared, log_share)

    def subset(self, index: np.ndarray) -> Part:
        """The points of an increasing list of indices."""
        points = self.points
        variance, rotation, log_mass = points.variance, points.rotation, points.log_mass
        log_share = math.log(len(index) / self.count)
        if log_mass is not None:
            log_mass = log_mass[index]
            largest = float(log_mass.max())
            if largest <= 0.5 * _arrays.LOG_ZERO:
                raise ValueError("the points chosen by label or subset have no weight; at least one must have some")
            positive = log_mass > 0.5 * _arrays.LOG_ZERO
            log_share = largest + math.log(np.exp(log_mass[positive] - largest).sum())
            log_mass[positive] -= log_share
        if variance is not None and len(variance) == self.count > 1:
            variance = variance[index]
        part = points._replace(
            index=index,
            log_mass=log_mass,
            variance=variance,
            rotation=None if rotation is None else rotation[index],
        )
        return self._prepare(part, log_share)

    def labelled(self, label: int, rest: bool = False) -> Part | None:
        """The points of a class, or all others (None where there are none); kept for later calls."""
        key = (label, rest)
        if key not in self._classes:
            index = np.flatnonzero((self.labels == label) != rest)
            self._classes[key] = self.subset(index) if len(index) else None
        return self._classes[key]

    def groups(self, label: Any, subset: Any, exclude: Any, count: int, guided: bool) -> list[Group]:
        """Which queries see which points. `count` is the number of queries, `guided` whether the rest is wanted."""
        left_out = self._left_out(exclude, count)
        groups = self._groups(label, subset, left_out, count, guided)
        for group in groups if left_out is not None else ():
            self._require_others(group)
        return groups

    def _groups(self, label: Any, subset: Any, left_out: np.ndarray | None, count: int, guided: bool) -> list[Group]:
        if subset is not None:
            if label is not None:
                raise ValueError("label and subset are both given; accepted is one of them")
            part = self.subset(self._subset(subset))
            return [Group(None, part, exclude=self._position(left_out, part))]
        if label is None:
            return [Group(None, self.whole, exclude=left_out)]
        labels = self._labels_of(label, count)
        if count == 0:
            return [Group(None, self.whole)]
        groups = []
        for value in np.unique(labels):
            rows = None if labels.ndim == 0 else np.flatnonzero(labels == value)
            own = left_out if rows is None or left_out is None else left_out[rows]
            part, rest = self.labelled(int(value)), self.labelled(int(value), rest=True) if guided else None
            groups.append(Group(rows, part, rest, self._position(own, part), rest and self._position(own, rest)))
        return groups

    def joined(self, parts: Iterable[tuple[Part, Moments]], path: Path) -> Moments:
        """The moments of disjoint parts together, as those of the field's whole model at `path`."""
        return merge(self._lifted(moments, part, path).scaled(math.exp(part.log_share)) for part, moments in parts)

    def _lifted(self, moments: Moments, part: Part, path: Path) -> Moments:
        """Moments of points without variance, as those of points that differ in it."""
        same = isinstance(part.model.target, float) == isinstance(self.model.target, float)
        if same or moments.mean is None:
            return moments
        if np.any(path.singular):
            raise ValueError(
                "guidance is given at t = 1, where some points have no variance and others have; accepted are t < 1, "
                "or a field whose points all have variance"
            )
        gamma = np.broadcast_to(path.gain[0] / path.variance, len(moments.residual))
        gained = moments.residual * gamma.astype(moments.residual.dtype)[:, None]
        return replace(moments, gain=np.array(gamma), gained=gained)

    def _labels_of(self, label: Any, count: int) -> np.ndarray:
        if self.labels is None:
            raise ValueError("label is given, but the field was made without labels; accepted is None")
        labels = _arrays.any_array("label", label)
        labels = _arrays.whole_numbers("label", label, () if labels.ndim == 0 else (count,), "a number or ")
        unknown = ~np.isin(labels, self.known)
        if unknown.any():
            known = ", ".join(str(v) for v in self.known[:20]) + (", ..." if len(self.known) > 20 else "")
            raise ValueError(f"label {int(labels[unknown].flat[0])} does not occur; known are {known}")
        return labels

    def _subset(self, subset: Any) -> np.ndarray:
        array = _arrays.any_array("subset", subset)
        if array.dtype == bool:
            if array.shape != (self.count,):
                raise ValueError(f"subset has shape {array.shape}; accepted is a mask ({self.count},) or indices")
            index = np.flatnonzero(array)
        else:
            index = np.unique(
                self._indices(
                    "subset", _arrays.whole_numbers("subset", array, accepted=f"a mask ({self.count},) or indices ")
                )
            )
            if len(index) < array.size:
                raise ValueError("subset names a point twice; accepted are different indices")
        if not len(index):
            raise ValueError("subset is empty; at least one point is needed")
        return index

    def _left_out(self, exclude: Any, count: int) -> np.ndarray | None:
        if exclude is None:
            return None
        array = _arrays.any_array("exclude", exclude)
        index = _arrays.whole_numbers("exclude", array, () if array.ndim == 0 else (count,), "a number or ")
        return np.ascontiguousarray(np.broadcast_to(self._indices("exclude", index), (count,)))

    def _indices(self, name: str, index: np.ndarray) -> np.ndarray:
        bad = (index < 0) | (index >= self.count)
        if bad.any():
            raise ValueError(f"{name} holds {int(index[bad].flat[0])}; accepted are indices from 0 to {self.count - 1}")
        return index

    def _position(self, left_out: np.ndarray | None, part: Part) -> np.ndarray | None:
        """Where the points left out lie in a part, -1 for those outside it."""
        if left_out is None or part.points.index is None:
            return left_out
        index = part.points.index
        at = np.minimum(np.searchsorted(index, left_out), len(index) - 1)
        return np.where(index[at] == left_out, at, -1)

    def _require_others(self, group: Group) -> None:
        """Raise where a query leaves out the only point that has any mass."""
        points, exclude = group.part.points, group.exclude
        log_mass = points.log_mass
        massive = np.arange(min(points.count, 2))
        if log_mass is not None:
            massive = np.flatnonzero(log_mass > 0.5 * _arrays.LOG_ZERO)
        if len(massive) == 1 and (exclude == massive[0]).any():
            row = int(np.argmax(exclude == massive[0]))
            row = row if group.rows is None else int(group.rows[row])
            raise ValueError(f"exclude leaves query {row} no point; accepted is an index that is not the only one")
