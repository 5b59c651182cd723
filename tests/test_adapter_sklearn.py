"""The scikit-learn estimator: scikit-learn's own checks, and the values against KernelDensity and the field."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastflow import VelocityField, schedules
from fastflow.adapters.sklearn import FlowMatchingSampler


@parametrize_with_checks([FlowMatchingSampler()])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(size=(60, 3))


def test_density_is_that_of_a_kernel_density(data):
    queries = np.random.default_rng(1).normal(size=(20, 3))
    weight = np.random.default_rng(2).uniform(size=60)
    ours = FlowMatchingSampler(variance=0.09).fit(data, sample_weight=weight)
    theirs = KernelDensity(bandwidth=0.3).fit(data, sample_weight=weight)
    np.testing.assert_allclose(ours.score_samples(queries), theirs.score_samples(queries), rtol=1e-10)
    np.testing.assert_allclose(ours.score(queries), theirs.score(queries), rtol=1e-10)


def test_samples_are_those_of_the_field(data):
    model = FlowMatchingSampler(variance=0.1, schedule="cosine", steps=20, method="heun", random_state=3).fit(data)
    samples = model.sample(50)
    assert samples.shape == (50, 3) and samples.dtype == np.float64
    np.testing.assert_array_equal(samples, model.sample(50))
    seed = np.random.RandomState(3).randint(2**31 - 1)
    expected = VelocityField(data, variance=0.1, schedule="cosine").sample(50, steps=20, method="heun", seed=seed)
    np.testing.assert_array_equal(samples, expected)
    state = np.random.RandomState(3)
    model.set_params(random_state=state)
    assert not np.array_equal(model.sample(50), model.sample(50))


def test_clone_pickle_and_float32(data):
    model = FlowMatchingSampler(variance=0.2, random_state=0).fit(data.astype(np.float32))
    assert model.sample(2).dtype == np.float32
    assert clone(model).get_params() == model.get_params()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.score_samples(data), model.score_samples(data))
    np.testing.assert_array_equal(again.sample(4), model.sample(4))


def test_what_is_done_to_the_data_after_fit_changes_nothing(data):
    model = FlowMatchingSampler().fit(data)
    before = model.score_samples(np.zeros((1, 3)))
    data[:] = 7.0
    np.testing.assert_array_equal(model.score_samples(np.zeros((1, 3))), before)


def test_works_in_a_pipeline_and_a_grid_search(data):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), FlowMatchingSampler()), {"flowmatchingsampler__variance": [1e-4, 0.2, 50.0]}
    ).fit(data)
    assert search.best_params_ == {"flowmatchingsampler__variance": 0.2}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_what_is_refused(data):
    with pytest.raises(NotFittedError):
        FlowMatchingSampler().sample()
    with pytest.raises(ValueError, match="schedule"):
        FlowMatchingSampler(schedule="no such").fit(data)
    with pytest.raises(ValueError, match="variance is 0"):
        FlowMatchingSampler(variance=0.0).fit(data).score_samples(data)
    for bad in (0, -1, 10**15, 10**400):
        with pytest.raises(ValueError, match=r"n_samples is .*; accepted is a whole number from 1 to"):
            FlowMatchingSampler().fit(data).sample(bad)
    for bad in ("a", 2.5, True, None, [3]):
        with pytest.raises(TypeError, match=r"n_samples is .*; accepted is a whole number of at least 1"):
            FlowMatchingSampler().fit(data).sample(bad)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(2,\); accepted is \(60,\)"):
        FlowMatchingSampler().fit(data, sample_weight=[1.0, 2.0])


@pytest.mark.parametrize("method", ["score", "score_samples"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": 0.0}, "variance is 0"),
        ({"variance": np.arange(60.0)}, "variance is 0"),
        ({"variance": 0.0, "covariance": np.zeros((3, 3))}, "covariance is 0"),
        ({"variance": 0.0, "covariance": np.diag([1.0, 0.0, 1.0])}, "covariance is singular"),
        ({"variance": 0.0, "covariance": np.stack([np.zeros((3, 3)), *[np.eye(3)] * 59])}, "covariance is singular"),
    ],
)
def test_there_is_no_density_without_variance(data, options, message, method):
    model = FlowMatchingSampler(**options).fit(data)
    model.set_params(variance=1.0, covariance=None)  # which is for the next fit
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(data)


def test_a_schedule_that_ends_in_noise_has_a_density_without_variance(data):
    model = FlowMatchingSampler(variance=0.0, schedule=schedules.OptimalTransport(0.2)).fit(data)
    theirs = KernelDensity(bandwidth=0.2).fit(data)
    np.testing.assert_allclose(model.score_samples(data), theirs.score_samples(data), rtol=1e-10)
