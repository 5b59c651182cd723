"""The source and target distributions beside the points: means, variances, covariances, and the frame they are seen in.

With full covariances everything is computed in a *frame*, linear coordinates `y = A x` in which the source is isotropic
and, where all points share one covariance, that is diagonal too (Fan 4, 16-20): `A = Q^T S^(-1/2) U^T` with
`Sigma_i = U S U^T` and `A Sigma_j A^T = Q_j diag(lambda_j) Q_j^T`. One factorisation at construction; at every later t
`M_j = alpha^2 Sigma_i + beta^2 Sigma_j` is diagonal, and nothing is inverted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .path import Variances

# Negative eigenvalues of a covariance this far below its largest one, times D, are taken for rounding and as zero.
_ROUNDING = 1e-12
# Eigenvalues below this share of the largest one, times D, are rounding errors of a matrix of lower rank, and zero.
_ZERO = 2.0**-52
# Eigenvalues of a source covariance below this share of the largest make it singular: its inverse has no digits left.
_SINGULAR = 1e-13


class Frame(NamedTuple):
    """Linear coordinates `y = x A^T` (rows are points).

    Attributes:
        to: (D, D), `A^T`: points and velocities go in as `x @ to`.
        back: (D, D), its inverse: they come back as `y @ back`.
        log_volume: `-log |det A|`, which densities lose.
        scale: s where `A` is an isometry times `s^(-1/2)`, else None.
    """

    to: np.ndarray
    back: np.ndarray
    log_volume: float
    scale: float | None

    def enter(self, value: np.ndarray, kind: str) -> np.ndarray:
        """Vectors or covectors (gradients), (..., D), into the frame; float64."""
        return value.astype(np.float64) @ (self.to if kind == "vector" else self.back.T)

    def leave(self, value: np.ndarray, kind: str) -> np.ndarray:
        """Back from the frame."""
        return value @ (self.back if kind == "vector" else self.to.T)


class Model(NamedTuple):
    """What a quantity may need of the field besides the moments, in the frame where there is one.

    Attributes:
        source_mean: (D,) float64, or None where it is zero.
        source_variance: variance `s_i` of the source.
        target: variance `s_f` that all points share, or the range of theirs.
        size: D, the number of values in an event.
        frame: the frame, or None where the coordinates are the caller's.
    """

    source_mean: np.ndarray | None
    source_variance: float
    target: float | Variances
    size: int
    frame: Frame | None = None

    @property
    def log_volume(self) -> float:
        """What log densities in the frame exceed those outside by."""
        return 0.0 if self.frame is None else self.frame.log_volume

    @property
    def scale(self) -> float | None:
        """What squared lengths in the frame are multiplied with outside; None where that depends on the direction."""
        return 1.0 if self.frame is None else self.frame.scale


def spectrum(name: str, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (..., D), none negative, and eigenvectors (..., D, D) of symmetric positive semi-definite matrices.

    Raises ValueError naming the first matrix that has a negative eigenvalue.
    """
    values, vectors = np.linalg.eigh(covariance)
    largest = np.maximum(values[..., -1:], 0.0)
    bad = values < -_ROUNDING * covariance.shape[-1] * largest
    if bad.any():
        where = np.argwhere(bad)[0][:-1]
        place = f"{name}[{int(where[0])}]" if len(where) else name
        raise ValueError(
            f"{place} has the eigenvalue {values[tuple(np.argwhere(bad)[0])]:g}; accepted are positive semi-definite "
            "matrices"
        )
    return np.where(values > _ZERO * covariance.shape[-1] * largest, values, 0.0), vectors


class Covariances(NamedTuple):
    """Target covariances in a frame, `Q_j diag(values_j) Q_j^T`; `values` (1, D) and no rotation for a shared one."""

    frame: Frame | None
    values: np.ndarray
    rotation: np.ndarray | None


def factorise(target: np.ndarray, source: np.ndarray | None) -> Covariances:
    """Factorise target covariances, (D, D) shared or (N, D, D), beside a source covariance (D, D) or an isotropic one.

    Raises ValueError for a matrix that is not positive semi-definite, or a source that is not positive definite.
    """
    size = target.shape[-1]
    whiten, colour, log_volume, scale = np.eye(size), np.eye(size), 0.0, 1.0
    if source is not None:
        values, vectors = spectrum("source_covariance", source)
        if values[0] <= _SINGULAR * values[-1]:
            raise ValueError(
                f"source_covariance has the eigenvalues {values[0]:g} to {values[-1]:g} and is singular; accepted are "
                "positive definite matrices"
            )
        whiten, colour = vectors / np.sqrt(values), (vectors * np.sqrt(values)).T
        log_volume = 0.5 * float(np.log(values).sum())
        scale = float(values[0]) if values[-1] - values[0] <= 1e-14 * values[-1] else None
    inside = target if source is None else whiten.T @ target @ whiten
    values, vectors = spectrum("covariance", 0.5 * (inside + np.swapaxes(inside, -1, -2)))
    rotation = vectors
    if target.ndim == 2:
        whiten, colour, values, rotation = whiten @ vectors, vectors.T @ colour, values[None], None
    frame = None if source is None and target.ndim == 3 else Frame(whiten, colour, log_volume, scale)
    return Covariances(frame, values, None if rotation is None else np.ascontiguousarray(rotation))


def target_range(values: Any) -> Variances:
    """The range of target variances."""
    return Variances(float(np.min(values)), float(np.max(values)))
