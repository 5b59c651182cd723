"""The log density by integration, against the closed form, and where none exists against the derivative of the flow."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import fastflow as ff
from fastflow import likelihood, samplers

K, D = 6, 3
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(K, D))
X = RNG.normal(size=(5, D))
_FACTORS = RNG.normal(size=(K + 1, D, D))
COVARIANCES = 0.2 * _FACTORS @ np.swapaxes(_FACTORS, 1, 2) + 0.05 * np.eye(D)
CLASSES = np.arange(K) % 2

MODELS = {
    "variance": {"variance": 0.3},
    "weights": {"variance": 0.2, "weights": np.arange(1.0, K + 1.0)},
    "per-point": {"variance": np.linspace(0.05, 0.8, K)},
    "shared covariance": {"covariance": COVARIANCES[0]},
    "covariances": {"covariance": COVARIANCES[:K]},
    "source covariance": {"covariance": COVARIANCES[:K], "source_covariance": COVARIANCES[K]},
    "source": {"variance": 0.3, "source_variance": 2.0},
}


def made(data=DATA, **options):
    options.setdefault("backend", "numpy")
    return ff.VelocityField(data, **options)


# Against the closed form --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("schedule", ff.schedules.names())
def test_dopri5_is_the_closed_form(schedule, model):
    field = made(schedule=schedule, **MODELS[model])
    found = field.log_likelihood(X)
    exact = field.log_density(X, 1.0)
    # Measured: at most 1.4e-5 at the default tolerances.
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4)
    assert found.dtype == np.float64 and found.shape == (5,)


@pytest.mark.parametrize("schedule", ["linear", "vp", "ve"])
def test_the_error_falls_with_the_tolerances(schedule):
    field = made(schedule=schedule, variance=0.3)
    exact = field.log_density(X, 1.0)
    errors = [np.abs(field.log_likelihood(X, rtol=tol, atol=tol) - exact).max() for tol in (1e-3, 1e-6, 1e-9)]
    assert errors[1] < 0.1 * errors[0] and errors[2] < 0.1 * errors[1] and errors[2] < 1e-6, errors


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_order_of_convergence(method, order):
    field = made(variance=0.3, schedule="cosine")
    exact = field.log_density(X, 1.0)
    errors = [np.abs(field.log_likelihood(X, steps=n, method=method) - exact).max() for n in (40, 80, 160)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > order - 0.35), (errors, orders)


@pytest.mark.parametrize("label", [1, np.array([0, 1, 1, 0, 1])], ids=["one", "each"])
def test_labels(label):
    field = made(variance=0.2, labels=CLASSES, weights=np.arange(1.0, K + 1.0))
    found = field.log_likelihood(X, label=label)
    np.testing.assert_allclose(found, field.log_density(X, 1.0, label=label), rtol=0, atol=1e-4)
    assert np.abs(found - field.log_likelihood(X)).max() > 0.1


def test_source_mean():
    field = made(variance=0.3, source_mean=[0.5, -1.0, 2.0], schedule="cosine")
    np.testing.assert_allclose(field.log_likelihood(X), field.log_density(X, 1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [0.2, 0.9])
def test_times_before_the_end_need_no_variance(t):
    field = made()
    exact = field.log_density(X, t)
    for span in ({"t": t}, {"t_span": (t, 0.0)}, {"t_span": (t, 0.1)}, {"t_span": (t, 0.95)}):
        found = field.log_likelihood(X, rtol=1e-9, atol=1e-10, **span)
        np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-6)


def test_ve_ends_with_the_mixture_and_not_with_the_source():
    """beta(0) = 1: what is known at t = 0 is not the source's density."""
    field = made(schedule=ff.schedules.VE(0.1, 2.0))
    found = field.log_likelihood(X, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found, field.log_density(X, 1.0), rtol=1e-7, atol=1e-6)


def test_every_backend(backend):
    for options in (MODELS["weights"], MODELS["per-point"]):
        for schedule in ("linear", "vp"):
            field = made(schedule=schedule, backend=backend, **options)
            np.testing.assert_allclose(field.log_likelihood(X), field.log_density(X, 1.0), rtol=0, atol=1e-4)


def test_one_pass_for_each_stage(monkeypatch):
    field = made(variance=0.3)
    calls = []
    evaluate = type(field).evaluate
    monkeypatch.setattr(type(field), "evaluate", lambda *args, **kw: calls.append(args[3]) or evaluate(*args, **kw))
    field.log_likelihood(X, method="rk4", steps=3)
    assert calls == [("velocity", "divergence")] * 12


# Guidance -----------------------------------------------------------------------------------------------------


def test_guided_density_is_that_of_the_guided_samples():
    """In one dimension the density of a flow's end is that of its start over the derivative of the map."""
    data = np.array([-2.0, -1.5, 0.0, 1.0, 2.5])
    field = made(data, variance=0.3, labels=[0, 0, 1, 1, 1])
    options = {"label": 1, "guidance": 1.5, "rtol": 1e-10, "atol": 1e-11}
    start, step = np.linspace(-1.5, 1.5, 7), 1e-4
    low, end, high = (field.sample(start + h, method="dopri5", **options) for h in (-step, 0.0, step))
    expected = -0.5 * start**2 - 0.5 * math.log(2.0 * math.pi) - np.log((high - low) / (2.0 * step))
    found, noise = field.log_likelihood(end, return_noise=True, **options)
    np.testing.assert_allclose(noise, start, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(found - field.log_density(end, 1.0, label=1)).max() > 0.05


def test_guidance_of_zero_is_none():
    field = made(variance=0.3, labels=CLASSES)
    np.testing.assert_array_equal(field.log_likelihood(X, label=1, guidance=0.0), field.log_likelihood(X, label=1))


# Noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", likelihood.METHODS)
def test_the_noise_is_what_encode_gives(method):
    field = made(variance=0.3, labels=CLASSES)
    options = {"steps": 200, "method": method, "rtol": 1e-9, "atol": 1e-10, "label": 1}
    _, noise = field.log_likelihood(X, return_noise=True, **options)
    encoded = field.encode(X, **options)
    np.testing.assert_allclose(noise, encoded, rtol=0, atol=1e-7)
    np.testing.assert_allclose(encoded, field.sample(X, t_span=(1.0, 0.0), **options), rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", ["linear", "vp", "optimal_transport"])
def test_encode_and_back(schedule):
    field = made(variance=0.2, schedule=schedule)
    options = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-10}
    noise = field.encode(X, **options)
    np.testing.assert_allclose(field.sample(noise, **options), X, rtol=0, atol=1e-6)
    assert np.abs(noise - X).max() > 0.1


def test_encode_from_earlier_and_along_a_grid():
    field = made()
    early = field.encode(X, t=0.8, steps=40, method="rk4")
    grid = field.encode(X, steps=np.linspace(0.8, 0.0, 41), method="rk4")
    np.testing.assert_allclose(early, grid, rtol=0, atol=1e-12)
    times, path = field.encode(X, t=0.8, steps=4, return_path=True)
    np.testing.assert_allclose(times, [0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-15)
    np.testing.assert_array_equal(path[0], X)


def test_a_number_is_an_event_for_encode():
    field = made(np.array([-1.0, 0.5, 2.0]), variance=0.1)
    assert field.encode(1).shape == ()
    assert field.log_likelihood(1).shape == ()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("event", [(), (3,), (2, 2)])
def test_shapes_and_dtypes(event, dtype):
    data = np.random.default_rng(0).normal(size=(5, *event))
    field = made(data, variance=0.5)
    expected = np.float64 if dtype is np.int64 else dtype
    for x, batch in ((data[:4], (4,)), (data[:1], (1,)), (data[0], ())):
        x = (2.0 * x).astype(dtype)
        value, noise = field.log_likelihood(x, method="heun", steps=5, return_noise=True)
        assert value.shape == batch and value.dtype == np.float64
        assert noise.shape == (*batch, *event) and noise.dtype == expected
        np.testing.assert_array_equal(value, field.log_likelihood(x, method="heun", steps=5))
        assert field.encode(x, method="heun", steps=5).dtype == expected


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_empty_batches(method):
    value, noise = made(variance=0.3).log_likelihood(np.empty((0, D)), method=method, steps=3, return_noise=True)
    assert value.shape == (0,) and noise.shape == (0, D)


def test_a_grid_of_times_equals_a_number_of_steps():
    field = made(variance=0.3)
    number = field.log_likelihood(X, method="rk4", steps=20)
    grid = field.log_likelihood(X, method="rk4", steps=np.linspace(1.0, 0.0, 21))
    np.testing.assert_allclose(grid, number, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(number, field.log_likelihood(X, method="rk4", steps=20, t=1.0))
    np.testing.assert_array_equal(number, field.log_likelihood(X, method="rk4", steps=20, t_span=(1.0, 0.0)))


def test_the_points_are_left_alone():
    field = made(variance=0.3)
    before = X.copy()
    x = X.copy()
    x.flags.writeable = False
    _, noise = field.log_likelihood(x, method="heun", steps=3, return_noise=True)
    np.testing.assert_array_equal(x, before)
    assert not np.shares_memory(noise, x)


def test_progress(capsys):
    pytest.importorskip("tqdm")
    field = made(variance=0.3)
    field.log_likelihood(X, method="rk4", steps=3)
    assert capsys.readouterr().err == ""
    field.log_likelihood(X, method="rk4", steps=3, progress=True)
    assert "rk4" in capsys.readouterr().err


# Refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.0, np.array([0.0, 0.1, 0.1, 0.1, 0.1, 0.1])], ids=["none", "not all"])
def test_no_density_without_variance_at_the_end(variance):
    field = made(variance=variance)
    for options, method in itertools.product(({}, {"t": 1.0}, {"t_span": (0.5, 1.0)}), ("dopri5", "euler")):
        with pytest.raises(
            ValueError, match=r"log_likelihood does not exist at t = 1 with variance 0.*accepted are t < 1"
        ):
            field.log_likelihood(X, method=method, **options)
    with pytest.raises(ValueError, match=r"cannot start from .* t = 1"):
        field.encode(X)


def test_no_density_where_the_velocity_is_unbounded():
    field = made(variance=0.3, source_mean=1.0, schedule="vp")
    with pytest.raises(ValueError, match=r"unbounded at t = 1; accepted is t < 1"):
        field.log_likelihood(X)
    np.testing.assert_allclose(field.log_likelihood(X, t=0.99), field.log_density(X, 0.99), rtol=0, atol=1e-4)


BAD = [
    ({"method": "rk5"}, ValueError, r"method 'rk5' is unknown here; accepted is one of euler, heun, rk4, dopri5"),
    ({"method": None}, TypeError, r"method is NoneType"),
    ({"steps": 0}, ValueError, r"steps is 0; accepted is a whole number of steps of at least 1"),
    ({"steps": [1.0, 0.5, 0.5]}, ValueError, r"steps\[1\] is 0\.5"),
    ({"t": 0.0}, ValueError, r"t is 0\.0; accepted is a time above 0, at most 1"),
    ({"t": 1.5}, ValueError, r"t is 1\.5"),
    ({"t": [0.5, 0.6]}, ValueError, r"t has shape \(2,\); accepted is one number"),
    ({"t": 0.5, "steps": [0.5, 0.0]}, ValueError, r"beside a grid of times"),
    ({"label": 7}, ValueError, r"label 7 does not occur"),
    ({"guidance": 1.0}, ValueError, r"guidance is given without label"),
    ({"rtol": 0.0}, ValueError, r"rtol is 0\.0"),
    ({"atol": math.nan}, ValueError, r"atol is nan"),
    ({"x": np.zeros((2, 4))}, ValueError, r"^x has shape \(2, 4\)"),
    ({"x": np.full((2, D), np.nan)}, ValueError, r"^x\[0, 0\] is nan"),
    ({"x": "many"}, TypeError, r"^x has dtype"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(options) for options, *_ in BAD])
@pytest.mark.parametrize("call", ["log_likelihood", "encode"])
def test_bad_input(call, options, error, message):
    field = made(variance=0.3, labels=CLASSES)
    options = {"x": X, **options}
    with pytest.raises(error, match=message):
        getattr(field, call)(options.pop("x"), **options)


def test_t_and_t_span_are_not_both_given():
    with pytest.raises(ValueError, match="t and t_span are both given"):
        made(variance=0.3).log_likelihood(X, t=0.5, t_span=(0.5, 0.0))


def test_methods_are_the_deterministic_ones():
    assert set(likelihood.METHODS) <= set(samplers.METHODS)
