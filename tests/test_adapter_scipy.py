"""The adapter for SciPy's ODE solvers: their results are those of the field's own sampler."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import quick_backend
from scipy.integrate import solve_ivp

import fastflow as ff
from fastflow.adapters.scipy import ode_function

RNG = np.random.default_rng(0)
DATA, X0 = RNG.normal(size=(50, 2, 3)), RNG.normal(size=(6, 2, 3))
LABELS = np.arange(50) % 3


def made(data=DATA, **options):
    return ff.VelocityField(data, backend=quick_backend(), **options)


def exact(field, **options):
    return field.sample(X0, method="dopri5", rtol=1e-9, atol=1e-11, **options)


def solved(field, method, t_span=(0, 1), vectorized=False, rtol=1e-7, **options):
    fun = ode_function(field, t_span=t_span, **options)
    found = solve_ivp(fun, t_span, X0.reshape(-1), method=method, vectorized=vectorized, rtol=rtol, atol=0.01 * rtol)
    assert found.success, found.message
    return found.y[:, -1].reshape(X0.shape)


@pytest.mark.parametrize("schedule", ff.schedules.names())
@pytest.mark.parametrize("method", ["RK45", "LSODA"])
def test_as_the_sampler(schedule, method):
    field = made(variance=0.01, schedule=schedule)
    np.testing.assert_allclose(solved(field, method), exact(field), rtol=0, atol=1e-4)


def test_back_in_time():
    field = made(variance=0.01)
    t_span = (1.0, 0.0)
    np.testing.assert_allclose(solved(field, "RK45", t_span), exact(field, t_span=t_span), rtol=0, atol=1e-5)


def test_arrives_on_points_without_variance():
    found = solved(made(), "RK45")
    distance = np.linalg.norm((found[:, None] - DATA).reshape(len(X0), len(DATA), -1), axis=-1).min(axis=1)
    assert np.all(distance < 1e-5)


@pytest.mark.parametrize("label", [1, np.arange(6) % 3], ids=["one class", "a class for each"])
def test_classes_and_columns(label):
    """Radau asks for columns of states, to take the Jacobian by differences."""
    field = made(variance=0.01, labels=LABELS)
    found = solved(field, "Radau", vectorized=True, rtol=1e-4, label=label, guidance=0.5)
    np.testing.assert_allclose(found, exact(field, label=label, guidance=0.5), rtol=0, atol=1e-3)


def test_one_gaussian_in_closed_form():
    """One component: `x_t = m_t + sqrt(D_t / D_0) (x_0 - m_0)` with the mean m_t and variance D_t of its path."""
    point, variance = DATA[:1], 0.25
    field = made(point, variance=variance)
    times = np.array([0.0, 0.3, 0.7, 1.0])
    found = solve_ivp(ode_function(field), (0, 1), X0.reshape(-1), t_eval=times, rtol=1e-9, atol=1e-11).y
    widths = np.sqrt((1 - times) ** 2 + variance * times**2)
    expected = times * point.reshape(1, -1, 1) + widths * X0.reshape(len(X0), -1, 1)
    np.testing.assert_allclose(found.reshape(len(X0), -1, len(times)), expected, rtol=0, atol=1e-7)


def test_shapes_and_times():
    field = made(variance=0.01)
    fun = ode_function(field)
    flat = X0.reshape(-1)
    kept = flat.copy()
    expected = field(X0, 0.4).reshape(-1)
    assert fun(0.4, flat).dtype == np.float64
    np.testing.assert_array_equal(fun(0.4, flat), expected)
    np.testing.assert_allclose(fun(0.4, np.stack([flat, flat], axis=1)), np.stack([expected, expected], axis=1), 1e-12)
    assert fun(0.4, np.empty((len(flat), 0))).shape == (len(flat), 0)
    np.testing.assert_array_equal(fun(1.0 + 1e-9, flat), fun(1.0, flat))
    np.testing.assert_array_equal(fun(-1e-9, flat), fun(0.0, flat))
    np.testing.assert_array_equal(flat, kept)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"t_span": (1.0, 0.0)}, ValueError, "cannot start from or pass through t = 1"),
        ({"t_span": (0.0, 2.0)}, ValueError, "times must lie in"),
        ({"t_span": (0.5, 0.5)}, ValueError, "must differ"),
        ({"t_span": 1.0}, ValueError, "t_span is 1.0; accepted is a pair"),
        ({"label": 7}, ValueError, "label 7 does not occur"),
        ({"guidance": 1.0}, ValueError, "guidance is given without label"),
        ({"label": [0, 1, 9]}, ValueError, "label 9 does not occur"),
        ({"label": [[0, 1]]}, ValueError, r"label has shape \(1, 2\)"),
        ({"label": True}, TypeError, "label has dtype bool; accepted are whole numbers"),
        ({"label": "a"}, TypeError, "label has dtype .*; accepted are whole numbers"),
    ],
)
def test_refused_before_the_solver_starts(options, error, message):
    with pytest.raises(error, match=message):
        ode_function(made(labels=LABELS), **options)


@pytest.mark.parametrize(
    ("t", "y", "error", "message"),
    [
        (0.5, np.zeros(5), ValueError, r"y has shape \(5,\); accepted is \(B \* 6,\)"),
        (0.5, np.zeros((1, 2, 3)), ValueError, "y has shape"),
        (0.5, np.zeros(6, complex), TypeError, "y has dtype complex128"),
        (np.nan, np.zeros(6), ValueError, "the time t is nan; accepted is 0"),
        (500.0, np.zeros(6), ValueError, "the time t is 500; accepted is 0"),
        (None, np.zeros(6), TypeError, "t has dtype object; accepted are real numbers"),
        ("a", np.zeros(6), TypeError, "t has dtype .*; accepted are real numbers"),
        (np.zeros(2), np.zeros(6), ValueError, r"t has shape \(2,\); accepted is one time"),
        (0.5, None, TypeError, "y has dtype object; accepted are real numbers"),
        (0.5, "a", TypeError, "y has dtype .*; accepted are real numbers"),
        (0.5, np.full(6, np.nan), ValueError, "must be finite"),
    ],
)
def test_refused_in_the_call(t, y, error, message):
    with pytest.raises(error, match=message):
        ode_function(made())(t, y)


def test_field_is_required():
    with pytest.raises(TypeError, match="field is ndarray; accepted is a VelocityField"):
        ode_function(DATA)
