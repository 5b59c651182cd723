"""Fields of fitted Gaussian mixtures: scikit-learn's estimators in, the options of `VelocityField` out.

A mixture `sum_j C_j N(mu_j, Sigma_j)` is a target like any other: its means are the points, and the field carries noise
to the mixture instead of to the data it was fitted on. scikit-learn is not imported: what has the attributes of a
fitted `GaussianMixture` or `BayesianGaussianMixture` serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays

if TYPE_CHECKING:
    from .field import VelocityField

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
"""The ways in which scikit-learn stores covariances."""

_TAKEN = ("data", "weights", "variance", "covariance", "scale", "offset")
_FITTED = ("weights_", "means_", "covariances_")


def from_mixture(cls: type[VelocityField], gmm: Any, **options: Any) -> VelocityField:
    """The field of a fitted mixture; see `VelocityField.from_mixture`, which this implements."""
    taken = [name for name in _TAKEN if name in options]
    if taken:
        raise TypeError(f"{taken[0]} is given beside gmm, which determines it; accepted are the other options")
    means, target = _target(gmm)
    return cls(means, weights=gmm.weights_, **target, **options)


def _target(gmm: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The means (K, D), and `variance` or `covariance` in the cheapest form that holds the mixture's."""
    kind = getattr(gmm, "covariance_type", None)
    if kind is None or isinstance(gmm, type):
        what = f"the class {gmm.__name__}" if isinstance(gmm, type) else f"a {type(gmm).__name__}"
        raise TypeError(f"gmm is {what}; accepted is a fitted GaussianMixture or BayesianGaussianMixture")
    if kind not in COVARIANCE_TYPES:
        raise ValueError(f"gmm.covariance_type is {kind!r}; accepted is one of {', '.join(COVARIANCE_TYPES)}")
    missing = [name for name in _FITTED if not hasattr(gmm, name)]
    if missing:
        raise ValueError(
            f"gmm has no {missing[0]} and so is not fitted; accepted is a mixture after fit, or one whose "
            f"{', '.join(_FITTED)} are set"
        )
    means = _arrays.real_array("gmm.means_", gmm.means_)
    if means.ndim != 2:
        raise ValueError(f"gmm.means_ has shape {means.shape}; accepted is (K, D), one for each component")
    count, size = means.shape
    covariances = _arrays.real_array("gmm.covariances_", gmm.covariances_)
    shapes = {"full": (count, size, size), "tied": (size, size), "diag": (count, size), "spherical": (count,)}
    if covariances.shape != shapes[kind]:
        raise ValueError(
            f"gmm.covariances_ has shape {covariances.shape}; accepted with covariance_type {kind!r} is {shapes[kind]}"
        )
    if kind == "spherical":
        return means, {"variance": covariances}
    if kind == "diag":
        covariances = covariances[:, :, None] * np.eye(size)
    if count == 1 and kind != "tied":
        covariances = covariances[0]  # shared: a rotation for all time instead of one in each evaluation
    return means, {"covariance": covariances}
