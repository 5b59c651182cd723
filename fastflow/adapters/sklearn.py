"""A field as a scikit-learn density estimator: fit, sample, score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays
from .._optional import require
from ..field import VelocityField

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
else:
    _base, _validation = require("sklearn.base", "sklearn"), require("sklearn.utils.validation", "sklearn")
    BaseEstimator, DensityMixin = _base.BaseEstimator, _base.DensityMixin
    check_random_state = require("sklearn.utils", "sklearn").check_random_state
    check_is_fitted, validate_data = _validation.check_is_fitted, _validation.validate_data

__all__ = ["FlowMatchingSampler"]


class FlowMatchingSampler(DensityMixin, BaseEstimator):
    """The exact flow to a data set as an estimator of its density.

    The density at t = 1 is that of a Gaussian of variance `variance` on each data point: `KernelDensity` with
    `bandwidth = sqrt(variance)`. Samples are what the flow carries noise to. Parameters are those of `VelocityField`
    and of its `sample`, and are checked by them when they are used; without variance there are samples but no density,
    so here the default is 1, as that of a bandwidth.

    Args:
        variance: variance `s_f` of every data point, or (n_samples,), one for each.
        covariance: instead of a variance (then 0), covariance(s) of the data points.
        source_mean, source_variance, source_covariance, schedule, backend, num_threads: as for `VelocityField`.
        steps, method: as for `VelocityField.sample`.
        random_state: whole number, `numpy.random.RandomState` or None, for `sample`.

    Attributes:
        field_: the `VelocityField`, once fitted.
        n_features_in_: number of features.
        feature_names_in_: their names, where `X` had names.
    """

    def __init__(
        self,
        *,
        variance: Any = 1.0,
        covariance: Any = None,
        source_mean: Any = 0.0,
        source_variance: float = 1.0,
        source_covariance: Any = None,
        schedule: Any = "linear",
        backend: str = "auto",
        num_threads: int | None = None,
        steps: Any = 50,
        method: str = "euler",
        random_state: Any = None,
    ):
        self.variance = variance
        self.covariance = covariance
        self.source_mean = source_mean
        self.source_variance = source_variance
        self.source_covariance = source_covariance
        self.schedule = schedule
        self.backend = backend
        self.num_threads = num_threads
        self.steps = steps
        self.method = method
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowMatchingSampler:
        """Take the data.

        Args:
            X: (n_samples, n_features) real and finite; copied. float32 stays float32.
            y: ignored.
            sample_weight: (n_samples,) masses of the points, not negative; equal by default.

        Returns:
            self.

        Raises:
            ValueError: X or a parameter is not accepted.
        """
        # A copy, as a field works on the caller's memory and the caller may change it after fit.
        X = validate_data(self, X, dtype=[np.float64, np.float32], order="C", copy=True)
        if sample_weight is not None:
            sample_weight = _arrays.real_array("sample_weight", sample_weight)
            if sample_weight.shape != (len(X),):
                accepted = f"({len(X)},), one for each sample"
                raise ValueError(f"sample_weight has shape {sample_weight.shape}; accepted is {accepted}")
        self.field_ = VelocityField(
            X,
            weights=sample_weight,
            variance=self.variance,
            covariance=self.covariance,
            source_mean=self.source_mean,
            source_variance=self.source_variance,
            source_covariance=self.source_covariance,
            schedule=self.schedule,
            backend=self.backend,
            num_threads=self.num_threads,
        )
        name, widths = ("variance", self.variance) if self.covariance is None else ("covariance", self.covariance)
        widths = np.asarray(_arrays.any_array(name, widths), dtype=np.float64)
        some_point = not (np.any(widths) if name == "covariance" else np.all(widths))
        self._without_density = name if some_point and self.field_.schedule(1.0).alpha == 0.0 else None
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of each sample at t = 1, in nats (Gao 4.3).

        Args:
            X: (n_samples, n_features).

        Returns:
            (n_samples,) float64.

        Raises:
            NotFittedError: before `fit`.
            ValueError: X is not accepted, or there is no variance and so no density.
        """
        check_is_fitted(self)
        if self._without_density is not None:
            raise ValueError(
                f"{self._without_density} is 0, with which the data are a set of points without a density; accepted is "
                "one above 0"
            )
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self.field_.log_density(X, 1.0)

    def score(self, X: Any, y: Any = None) -> float:
        """Total log density of the samples, in nats, as `KernelDensity.score`; y is ignored."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """Draw from the source, and follow the flow to t = 1.

        Args:
            n_samples: how many, at least 1.

        Returns:
            (n_samples, n_features), float32 where X was, else float64. An integer `random_state` gives the same
            samples at each call.

        Raises:
            NotFittedError: before `fit`.
            TypeError: n_samples is no whole number.
            ValueError: a parameter is not accepted.
        """
        check_is_fitted(self)
        if isinstance(n_samples, bool) or not isinstance(n_samples, int | np.integer):
            raise TypeError(f"n_samples is {_arrays.shown(n_samples)}; accepted is a whole number of at least 1")
        if not 1 <= n_samples <= _arrays.LARGEST_COUNT:
            accepted = f"a whole number from 1 to {_arrays.LARGEST_COUNT:g}"
            raise ValueError(f"n_samples is {_arrays.shown(n_samples)}; accepted is {accepted}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return self.field_.sample(n_samples, steps=self.steps, method=self.method, seed=seed)
