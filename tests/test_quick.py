"""The shorter way of plain calls: the same bits as the general one, and no call less refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastflow as ff

SCHEDULES = ("linear", "cosine", "vp", "ve", ff.schedules.Polynomial(2), ff.schedules.OptimalTransport(0.1))


def ways(field, x, t):
    """The result of the short way, or None, and of the general one."""
    return field._quick_velocity(x, t), field.evaluate(x, t, ("velocity",))["velocity"]


def times(batch):
    """Forms of the time: for all queries, and one for each of a batch."""
    yield from (
        0.0,
        0.3,
        0.999,
        1.0,
        np.float64(0.7),
        np.array(0.3, dtype=np.float32),
        np.array([0.3]),
        np.array([[0.6]]),
    )
    each = np.linspace(0.0, 1.0, batch)
    yield from (each, each.astype(np.float32), each[:, None])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float32", "float64", "uint8"])
def test_the_same_bits(backend, stored, dtype, schedule):
    if schedule == "ve":
        schedule = ff.schedules.VE(0.01, 10.0)
    rng = np.random.default_rng(3)
    for shape, batch in (((2,), 1), ((3, 2), 7), ((20,), 3), ((40,), 9), ((5,), 70)):
        data = (100 * rng.uniform(size=(150, *shape))).astype(stored)
        options = {"variance": 0.01, "scale": 0.02, "offset": -1.0, "backend": backend}
        for mean in (0.0, rng.normal(size=shape)):
            field = ff.VelocityField(data, schedule=schedule, source_mean=mean, **options)
            x = rng.normal(size=(batch, *shape)).astype(dtype)
            for query, t in [(x, t) for t in times(batch)] + [(x[0], t) for t in times(1)]:
                if np.ndim(mean) and schedule == "vp" and np.max(t) == 1.0:
                    continue  # unbounded
                short, general = ways(field, query, t)
                assert (short is not None) == (field.backend == "native")
                if short is not None:
                    assert short.dtype == general.dtype == dtype and short.shape == query.shape
                    assert short.tobytes() == general.tobytes()
                assert field(query, t).tobytes() == general.tobytes()


def test_what_is_not_plain_goes_the_general_way(backend):
    rng = np.random.default_rng(4)
    data, x = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    plain = ff.VelocityField(data, backend=backend)
    assert (ways(plain, x, 0.5)[0] is not None) == (plain.backend == "native")
    for other in (
        x.astype(np.float16),
        x.astype(">f8"),
        np.asfortranarray(x),
        x.tolist(),
        x[:0],
        1e20 * x,
        x[None],
        x[:, :2],
        x[0, 0],
        np.ma.array(x),
    ):
        assert plain._quick_velocity(other, 0.5) is None
    for t in (1, 0, True, None, "0.5", np.float32(0.5), [0.5], np.nan, -0.1, 1.1, np.full(3, 0.5), np.full((1, 4), 0.5),
              np.full((1, 1, 1), 0.5), np.array([0.1, 0.2, 1.5, 0.3]), np.full(8, 0.5)[::2]):  # fmt: skip
        assert plain._quick_velocity(x, t) is None
    assert plain._quick_velocity(x[0], np.full(4, 0.5)) is None
    assert plain._quick_velocity(x, 1.0) is None  # no variance is left
    for options in (
        {"variance": rng.uniform(0.1, 0.2, 50)},
        {"covariance": np.diag([0.1, 0.2, 0.3])},
        {"source_covariance": np.diag([1.0, 2.0, 3.0])},
        {"schedule": ff.schedules.Custom(lambda t: 1.0 - t, lambda t: t)},
    ):
        field = ff.VelocityField(data, backend=backend, **options)
        assert field._quick_velocity(x, 0.5) is None
        assert np.isfinite(field(x, 0.5)).all()


class Half(float):
    """What NumPy takes for another number than C does."""

    def __float__(self):
        return 0.25


class Nameless(ff.schedules.Schedule):
    def __call__(self, t):
        return ff.schedules.Coefficients(1.0 - t, t, -1.0, 1.0, t - 1.0)


def test_own_schedules_and_numbers_go_the_general_way(backend):
    field = ff.VelocityField(np.eye(2), schedule=Nameless(), backend=backend)
    x = np.ones((1, 2))
    assert field._quick_velocity(x, 0.5) is None
    plain = ff.VelocityField(np.eye(2), backend=backend)
    assert np.array_equal(field(x, 0.5), plain(x, 0.5))
    assert plain._quick_velocity(x, Half(0.5)) is None


@pytest.mark.parametrize("schedule", [ff.schedules.Polynomial(2), ff.schedules.VE(0.01, 1.0)])
def test_a_mean_beyond_float32_that_does_not_count(backend, schedule):
    """beta' is zero there: no NaN comes of zero times an infinite mean."""
    field = ff.VelocityField(np.array([[1e40], [2e40]]), schedule=schedule, backend=backend)
    x = np.ones((1, 1), dtype=np.float32)
    result = field(x, 0.0)
    assert result.tobytes() == field.evaluate(x, 0.0)["velocity"].tobytes()
    assert not np.isnan(result).any()


def test_another_schedule_is_another_way(backend):
    """What is kept for quick calls is of one field: not of its copies with another schedule, nor of another process."""
    rng = np.random.default_rng(5)
    data, x = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    field = ff.VelocityField(data, backend=backend)
    first = field(x, 0.5)
    other = field.with_schedule("cosine")
    assert np.array_equal(other(x, 0.5), ff.VelocityField(data, backend=backend, schedule="cosine")(x, 0.5))
    assert np.array_equal(pickle.loads(pickle.dumps(field))(x, 0.5), first)
    assert np.array_equal(copy.deepcopy(other)(x, 0.5), other(x, 0.5))
    with pytest.raises(AttributeError):
        field.schedule = "cosine"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_refused_is_still_named(backend, bad):
    field = ff.VelocityField(np.eye(3), backend=backend)
    x = np.ones((2, 3))
    x[1, 2] = bad
    with pytest.raises(ValueError, match=r"x\[1, 2\]"):
        field(x, 0.5)
    with pytest.raises(ValueError, match=r"accepted is one event of shape \(3,\)"):
        field(np.ones((2, 4)), 0.5)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1\]"):
        field(np.ones((2, 3)), 1.5)
