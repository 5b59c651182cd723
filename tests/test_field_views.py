"""What a field tells of itself, and the same data along another schedule."""

import pickle

import numpy as np
import pytest

import fastflow as ff


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(size=(30, 2, 3))


@pytest.mark.parametrize("schedule", ff.schedules.names())
def test_with_schedule_is_the_field_of_that_schedule(data, schedule, backend):
    options = {"variance": 0.1, "source_mean": 0.3, "labels": np.arange(30) % 2, "backend": backend}
    field = ff.VelocityField(data, schedule="cosine", **options)
    other, expected = field.with_schedule(schedule), ff.VelocityField(data, schedule=schedule, **options)
    x = data[:5] + 0.1
    for query in ({"t": 0.4}, {"t": 0.4, "label": 1}):
        np.testing.assert_array_equal(other(x, **query), expected(x, **query))
    np.testing.assert_array_equal(other.posterior_sample(x, 0.4, rng=0), expected.posterior_sample(x, 0.4, rng=0))
    assert other.schedule == expected.schedule and field.schedule == ff.schedules.get("cosine")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(other))(x, 0.4), expected(x, 0.4))


def test_with_schedule_prepares_no_data_again(data):
    field = ff.VelocityField(data)
    assert field.with_schedule("vp")._parts is field._parts
    with pytest.raises(ValueError, match="schedule"):
        field.with_schedule("no such")


@pytest.mark.parametrize(
    ("options", "mean", "variance"),
    [
        ({}, 0.0, 1.0),
        ({"source_mean": 2.0, "source_variance": 3.0}, 2.0, 3.0),
        ({"source_mean": np.arange(6.0).reshape(2, 3)}, np.arange(6.0).reshape(2, 3), 1.0),
        ({"source_mean": 2.0, "source_variance": 3.0, "covariance": np.diag(np.arange(1.0, 7.0))}, 2.0, 3.0),
        ({"source_mean": 2.0, "source_covariance": 3.0 * np.eye(6)}, 2.0, 3.0),
        ({"source_mean": 2.0, "source_covariance": np.diag(np.arange(1.0, 7.0))}, 2.0, None),
    ],
)
def test_source(data, options, mean, variance):
    source = ff.VelocityField(data, **options).source
    np.testing.assert_allclose(source.mean, np.broadcast_to(mean, (2, 3)), rtol=1e-12, atol=1e-12)
    assert source.variance is None if variance is None else source.variance == pytest.approx(variance, rel=1e-12)
    assert (source.variance is None) == (variance is None)


def test_source_is_a_copy(data):
    field = ff.VelocityField(data, source_mean=1.0)
    field.source.mean[:] = 7.0
    assert (field.source.mean == 1.0).all()


def test_classes(data):
    assert ff.VelocityField(data).classes == ()
    assert ff.VelocityField(data, labels=np.array([5, -1, 3] * 10)).classes == (-1, 3, 5)
