"""The shorter way of small and plain calls: the same bits as the general one, and no call less refused."""

from __future__ import annotations

import numpy as np
import pytest

import fastflow as ff
from fastflow import quick

SCHEDULES = ("linear", "cosine", "vp", "ve", ff.schedules.Polynomial(2), ff.schedules.OptimalTransport(0.1))


def ways(field, x, t):
    """The result of the short way, or None, and of the general one."""
    short = quick.velocity(field._parts.whole, field.schedule, x, t, field.event_shape)
    return short, field.evaluate(x, t, ("velocity",))["velocity"]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float32", "float64", "uint8"])
def test_the_same_bits(backend, stored, dtype, schedule):
    if schedule == "ve":
        schedule = ff.schedules.VE(0.01, 10.0)
    rng = np.random.default_rng(3)
    for shape, batch in (((2,), 1), ((3, 2), 7), ((20,), 3), ((40,), 9)):
        data = (100 * rng.uniform(size=(150, *shape))).astype(stored)
        field = ff.VelocityField(data, schedule=schedule, variance=0.01, scale=0.02, offset=-1.0, backend=backend)
        for x in rng.normal(size=(batch, *shape)).astype(dtype), rng.normal(size=shape).astype(dtype):
            for t in (0.0, 0.3, 0.999, 1.0):
                short, general = ways(field, x, t)
                assert short is not None and short.dtype == general.dtype == dtype and short.shape == x.shape
                assert np.array_equal(short, general)
                assert np.array_equal(field(x, t), general)


def test_what_is_not_plain_goes_the_general_way():
    rng = np.random.default_rng(4)
    data, x = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    plain = ff.VelocityField(data, backend="numpy")
    assert ways(plain, x, 0.5)[0] is not None
    for other in (
        x.astype(np.float16),
        x.astype(">f8"),
        np.asfortranarray(x),
        x.tolist(),
        x[:0],
        1e20 * x,
        x[None],
        x[:, :2],
    ):
        assert quick.velocity(plain._parts.whole, plain.schedule, other, 0.5, (3,)) is None
    for t in (1, 0, np.float32(0.5), np.full(4, 0.5), np.nan, -0.1, 1.1):
        assert quick.velocity(plain._parts.whole, plain.schedule, x, t, (3,)) is None
    assert quick.velocity(plain._parts.whole, plain.schedule, x, 1.0, (3,)) is None  # no variance is left
    for options in (
        {"source_mean": np.ones(3)},
        {"variance": rng.uniform(0.1, 0.2, 50)},
        {"covariance": np.diag([0.1, 0.2, 0.3])},
        {"source_covariance": np.diag([1.0, 2.0, 3.0])},
    ):
        field = ff.VelocityField(data, backend="numpy", **options)
        assert quick.velocity(field._parts.whole, field.schedule, x, 0.5, (3,)) is None
        assert np.isfinite(field(x, 0.5)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_refused_is_still_named(bad):
    field = ff.VelocityField(np.eye(3), backend="numpy")
    x = np.ones((2, 3))
    x[1, 2] = bad
    with pytest.raises(ValueError, match=r"x\[1, 2\]"):
        field(x, 0.5)
    with pytest.raises(ValueError, match=r"accepted is one event of shape \(3,\)"):
        field(np.ones((2, 4)), 0.5)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 1\]"):
        field(np.ones((2, 3)), 1.5)
