"""Fields of fitted mixtures, against scikit-learn's own densities and samples."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import fastflow as ff
from fastflow import mixtures

mixture = pytest.importorskip("sklearn.mixture")

RNG = np.random.default_rng(0)
CENTRES = np.array([[-3.0, 0.0, 1.0], [2.0, 2.0, -1.0], [0.0, -3.0, 0.0]])
POINTS = np.concatenate(
    [c + RNG.normal(size=(60, 3)) @ (0.6 * np.eye(3) + RNG.normal(scale=0.2, size=(3, 3))) for c in CENTRES]
)
X = POINTS[::17] + 0.1


def fitted(kind, estimator="GaussianMixture", num=3):
    gmm = getattr(mixture, estimator)(n_components=num, covariance_type=kind, random_state=0, max_iter=200)
    return gmm.fit(POINTS)


def log_density(gmm, x):
    """Of the mixture with the fitted parameters."""
    plain = mixture.GaussianMixture(gmm.n_components, covariance_type=gmm.covariance_type)
    plain.weights_, plain.means_ = gmm.weights_ / gmm.weights_.sum(), gmm.means_
    plain.covariances_, plain.precisions_cholesky_ = gmm.covariances_, gmm.precisions_cholesky_
    return plain.score_samples(x)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("kind", mixtures.COVARIANCE_TYPES)
def test_the_density_at_the_end_is_the_mixture(kind, num):
    gmm = fitted(kind, num=num)
    field = ff.VelocityField.from_mixture(gmm, backend="numpy")
    assert field.num_points == num and field.event_shape == (3,)
    np.testing.assert_allclose(field.log_density(X, 1.0), gmm.score_samples(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", mixtures.COVARIANCE_TYPES)
def test_bayesian_mixtures(kind):
    gmm = fitted(kind, "BayesianGaussianMixture")
    field = ff.VelocityField.from_mixture(gmm, backend="numpy")
    np.testing.assert_allclose(field.log_density(X, 1.0), log_density(gmm, X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", mixtures.COVARIANCE_TYPES)
def test_samples_follow_the_mixture(kind):
    gmm = fitted(kind)
    field = ff.VelocityField.from_mixture(gmm, backend="numpy")
    num = 2000
    x = field.sample(num, method="rk4", steps=25, seed=0)
    mean = gmm.weights_ @ gmm.means_
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=4.5 * x.std(axis=0).max() / np.sqrt(num))
    reference = gmm.sample(20_000)[0]
    np.testing.assert_allclose(np.cov(x.T), np.cov(reference.T), atol=0.05 * np.trace(np.cov(reference.T)))
    shares = np.bincount(gmm.predict(x), minlength=3) / num
    np.testing.assert_allclose(shares, gmm.weights_, atol=0.045)
    assert gmm.score(x) == pytest.approx(gmm.score(reference), abs=0.1)


@pytest.mark.parametrize(
    ("kind", "num", "variance", "rotation"),
    [
        ("spherical", 3, (3,), None),
        ("tied", 3, (1, 3), None),
        ("diag", 3, (3, 3), (3, 3, 3)),
        ("full", 3, (3, 3), (3, 3, 3)),
        ("spherical", 1, None, None),
        ("diag", 1, (1, 3), None),
        ("full", 1, (1, 3), None),
    ],
)
def test_the_cheapest_representation(kind, num, variance, rotation):
    points = ff.VelocityField.from_mixture(fitted(kind, num=num), backend="numpy")._parts.points
    assert (points.variance is None and variance is None) or points.variance.shape == variance
    assert (points.rotation is None and rotation is None) or points.rotation.shape == rotation


def test_other_options_pass_through():
    field = ff.VelocityField.from_mixture(
        fitted("full"), schedule="cosine", source_variance=2.0, labels=[0, 1, 1], backend="numpy", num_threads=1
    )
    assert field.schedule == ff.schedules.get("cosine") and field.backend == "numpy"
    assert field.velocity(X, 0.5, label=np.ones(len(X), int)).shape == X.shape

    class Mine(ff.VelocityField):
        pass

    assert type(Mine.from_mixture(fitted("tied"), backend="numpy")) is Mine


def test_what_looks_like_a_mixture_is_one():
    gmm = fitted("diag")
    twin = SimpleNamespace(
        covariance_type="diag", weights_=gmm.weights_, means_=gmm.means_, covariances_=gmm.covariances_
    )
    a, b = (ff.VelocityField.from_mixture(g, backend="numpy") for g in (gmm, twin))
    np.testing.assert_array_equal(a.velocity(X, 0.5), b.velocity(X, 0.5))


def test_every_backend(backend):
    for kind in mixtures.COVARIANCE_TYPES:
        gmm = fitted(kind)
        field = ff.VelocityField.from_mixture(gmm, backend=backend)
        np.testing.assert_allclose(field.log_density(X, 1.0), gmm.score_samples(X), rtol=1e-9, atol=1e-9)


# Refused ------------------------------------------------------------------------------------------------------


def test_an_unfitted_mixture():
    for estimator in ("GaussianMixture", "BayesianGaussianMixture"):
        with pytest.raises(
            ValueError, match=r"gmm has no weights_ and so is not fitted; accepted is a mixture after fit"
        ):
            ff.VelocityField.from_mixture(getattr(mixture, estimator)(n_components=3))


@pytest.mark.parametrize("bad", [None, POINTS, "full", SimpleNamespace(means_=CENTRES)], ids=lambda v: type(v).__name__)
def test_what_is_no_mixture(bad):
    with pytest.raises(TypeError, match=rf"gmm is a {type(bad).__name__}; accepted is a fitted GaussianMixture"):
        ff.VelocityField.from_mixture(bad)


def test_the_class_is_no_mixture():
    with pytest.raises(TypeError, match=r"gmm is the class GaussianMixture; accepted is a fitted"):
        ff.VelocityField.from_mixture(mixture.GaussianMixture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"covariance_type": "banded"},
            r"gmm.covariance_type is 'banded'; accepted is one of full, tied, diag, spherical",
        ),
        ({"covariance_type": "tied"}, r"gmm.covariances_ has shape \(3, 3, 3\); accepted with .* 'tied' is \(3, 3\)"),
        ({"means_": np.zeros(3)}, r"gmm.means_ has shape \(3,\); accepted is \(K, D\)"),
        ({"weights_": np.ones(2)}, r"weights has shape \(2,\)"),
        ({"means_": np.full((3, 3), np.nan)}, r"data\[0, 0\] is nan"),
    ],
    ids=str,
)
def test_inconsistent_attributes(change, message):
    gmm = fitted("full")
    known = {name: getattr(gmm, name) for name in ("covariance_type", "weights_", "means_", "covariances_")}
    with pytest.raises(ValueError, match=message):
        ff.VelocityField.from_mixture(SimpleNamespace(**{**known, **change}))


@pytest.mark.parametrize("name", ["data", "weights", "variance", "covariance"])
def test_options_that_the_mixture_determines(name):
    with pytest.raises(TypeError, match=rf"{name} is given beside gmm, which determines it"):
        ff.VelocityField.from_mixture(fitted("full"), **{name: 1.0})
