"""Schedules against 50-digit arithmetic, at both ends of time, and in everything that they refuse."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re

import mpmath
import numpy as np
import pytest

import fastflow as ff
from fastflow import schedules
from fastflow.schedules import (
    VE,
    VP,
    Coefficients,
    Cosine,
    Custom,
    Linear,
    LinearVP,
    OptimalTransport,
    Polynomial,
    Schedule,
)

EPS = 2.0**-52
INF = math.inf
ENDS = (0.0, 1.0)
INTERIOR = (1e-6, 0.01, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 1 - 1e-9)

NAMED = [
    Linear(),
    Cosine(),
    Polynomial(),
    Polynomial(1.0),
    Polynomial(1.7),
    Polynomial(3),
    LinearVP(),
    VP(),
    VP(0.5, 0.5),
    VP(beta_min=0.01, beta_max=3.0),
    VE(),
    VE(sigma_min=0.01, sigma_max=50.0),
    VE(sigma_min=1.0999, sigma_max=1.1),
    OptimalTransport(),
    OptimalTransport(0.0),
    OptimalTransport(0.1),
]
named = pytest.mark.parametrize("schedule", NAMED, ids=repr)


# --- the definitions, written again in 50 digits ------------------------------------------------


def vp_exponent(schedule, t):
    low, high = mpmath.mpf(schedule.beta_min), mpmath.mpf(schedule.beta_max)
    return (1 - t) ** 2 * (high - low) / 2 + (1 - t) * low


def definition(schedule, t):
    """(alpha, beta) at the mpf `t`, straight from the formulas."""
    match schedule:
        case Linear():
            return 1 - t, t
        case Cosine():
            return mpmath.cos(mpmath.pi * t / 2), mpmath.sin(mpmath.pi * t / 2)
        case Polynomial():
            power = t ** mpmath.mpf(schedule.n)
            return 1 - power, power
        case LinearVP():
            return mpmath.sqrt(1 - t * t), t
        case VP():
            exponent = vp_exponent(schedule, t)
            return mpmath.sqrt(1 - mpmath.exp(-exponent)), mpmath.exp(-exponent / 2)
        case VE():
            low, high = mpmath.mpf(schedule.sigma_min), mpmath.mpf(schedule.sigma_max)
            return low**t * high ** (1 - t), mpmath.mpf(1)
        case OptimalTransport():
            return 1 - (1 - mpmath.mpf(schedule.sigma_min)) * t, t
    raise AssertionError(f"no definition of {schedule!r}")


def reference(schedule, t):
    """All five coefficients at the interior float `t`, derivatives by numerical differentiation."""
    with mpmath.workdps(50):
        t = mpmath.mpf(t)
        alpha, beta = definition(schedule, t)
        return Coefficients(
            alpha,
            beta,
            mpmath.diff(lambda u: definition(schedule, u)[0], t),
            mpmath.diff(lambda u: definition(schedule, u)[1], t),
            mpmath.diff(lambda u: definition(schedule, u)[0] ** 2 / 2, t),
        )


def tolerance(schedule, t):
    """4 units in the last place; the exponential of a rounded exponent T adds |T| / 2 of them."""
    ulps = 4.0
    if isinstance(schedule, VP):
        ulps *= 1.0 + float(vp_exponent(schedule, t)) / 2
    return ulps * EPS


def relative_error(actual, expected):
    """Infinity for anything that cannot be compared, NaN included."""
    with mpmath.workdps(50):
        if not math.isfinite(actual):
            return INF
        # Differentiation in 50 digits leaves a rest of this size where the derivative is 0.
        if abs(expected) < 1e-25 and abs(actual) == 0.0:
            return 0.0
        return float(abs(mpmath.mpf(actual) - expected) / abs(expected))


@named
@pytest.mark.parametrize("t", INTERIOR)
def test_against_50_digits(schedule, t):
    actual, expected = schedule(t), reference(schedule, t)
    errors = {name: relative_error(getattr(actual, name), getattr(expected, name)) for name in Coefficients._fields}
    worst = max(errors, key=errors.get)
    print(f"worst: {worst}, {errors[worst] / EPS:.2f} ulp")
    assert errors[worst] <= tolerance(schedule, t), errors


# Everything that mathematics gives exactly; None stands for a number that must be rounded.
EXACT_ENDS = {
    Linear(): [(1, 0, -1, 1, -1), (0, 1, -1, 1, 0)],
    Cosine(): [(1, 0, 0, math.pi / 2, 0), (0, 1, -math.pi / 2, 0, 0)],
    Polynomial(): [(1, 0, 0, 0, 0), (0, 1, -2, 2, 0)],
    Polynomial(1.0): [(1, 0, -1, 1, -1), (0, 1, -1, 1, 0)],
    Polynomial(1.7): [(1, 0, 0, 0, 0), (0, 1, -1.7, 1.7, 0)],
    Polynomial(3): [(1, 0, 0, 0, 0), (0, 1, -3, 3, 0)],
    LinearVP(): [(1, 0, 0, 1, 0), (0, 1, -INF, 1, -1)],
    VP(): [None, (0, 1, -INF, 0.05, -0.05)],
    VP(0.5, 0.5): [None, (0, 1, -INF, 0.25, -0.25)],
    VP(beta_min=0.01, beta_max=3.0): [None, (0, 1, -INF, 0.005, -0.005)],
    VE(): [(80.0, 1, None, 0, None), (0.002, 1, None, 0, None)],
    VE(sigma_min=0.01, sigma_max=50.0): [(50.0, 1, None, 0, None), (0.01, 1, None, 0, None)],
    VE(sigma_min=1.0999, sigma_max=1.1): [(1.1, 1, None, 0, None), (1.0999, 1, None, 0, None)],
    OptimalTransport(): [(1, 0, 1e-4 - 1, 1, 1e-4 - 1), (1e-4, 1, 1e-4 - 1, 1, 1e-4 * (1e-4 - 1))],
    OptimalTransport(0.0): [(1, 0, -1, 1, -1), (0, 1, -1, 1, 0)],
    OptimalTransport(0.1): [(1, 0, -0.9, 1, -0.9), (0.1, 1, -0.9, 1, 0.1 * -0.9)],
}


@named
@pytest.mark.parametrize("end", (0, 1))
def test_ends_are_exact(schedule, end):
    actual = schedule(ENDS[end])
    exact = EXACT_ENDS[schedule][end] or (None,) * 5
    for name, value, wanted in zip(Coefficients._fields, actual, exact, strict=True):
        if wanted is not None:
            assert value == wanted, name
            assert value != 0.0 or math.copysign(1.0, value) == 1.0, f"{name} is a negative zero"
        else:
            assert relative_error(value, getattr(reference(schedule, ENDS[end]), name)) <= tolerance(
                schedule, ENDS[end]
            ), name


@named
def test_alpha_d_alpha_is_finite_at_all_times(schedule):
    times = np.concatenate([np.linspace(0.0, 1.0, 1001), 1.0 - np.logspace(-16, -1, 50), np.logspace(-300, -1, 50)])
    values = schedule(times)
    for name in ("alpha", "beta", "d_beta", "alpha_d_alpha"):
        assert np.isfinite(getattr(values, name)).all(), name
    assert not np.isnan(values.d_alpha).any()
    assert np.isfinite(values.d_alpha[times < 1.0]).all()


# --- scalars and arrays ------------------------------------------------------------------------


@named
def test_scalar_and_array_agree_bit_for_bit(schedule):
    rng = np.random.default_rng(0)
    times = np.concatenate([ENDS, INTERIOR, rng.random(200)])
    together = schedule(times)
    alone = [schedule(t) for t in times.tolist()]
    for i, name in enumerate(Coefficients._fields):
        np.testing.assert_array_equal(together[i], [one[i] for one in alone], err_msg=name)
    strided = schedule(np.repeat(times, 3)[::3])
    np.testing.assert_array_equal(np.array(strided), np.array(together))


CUSTOM = Custom(lambda t: 1.0 - t, lambda t: t)


@pytest.mark.parametrize("schedule", [*NAMED, CUSTOM], ids=repr)
@pytest.mark.parametrize("t", [0.25, 0, 1, np.float64(0.25), np.float32(0.25), np.int64(1)], ids=repr)
def test_numbers_give_python_floats(schedule, t):
    values = schedule(t)
    assert type(values) is Coefficients
    assert [type(value) for value in values] == [float] * 5
    assert values == schedule(float(t))


@pytest.mark.parametrize("schedule", [*NAMED, CUSTOM], ids=repr)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (5, 1), (2, 0, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_arrays_keep_their_shape(schedule, shape, dtype):
    t = np.full(shape, 0.25, dtype=dtype)
    before = t.copy()
    values = schedule(t)
    assert type(values) is Coefficients
    for name, value in values._asdict().items():
        assert isinstance(value, np.ndarray), name
        assert (value.shape, value.dtype) == (shape, np.float64), name
        assert not np.shares_memory(value, t), name
        np.testing.assert_array_equal(value, np.full(shape, getattr(schedule(0.25), name)), err_msg=name)
        value[...] = 7.0  # the caller's to write to
    np.testing.assert_array_equal(t, before)


def test_lists_and_integer_arrays_are_times():
    np.testing.assert_array_equal(Linear()([0.0, 0.25]).alpha, [1.0, 0.75])
    np.testing.assert_array_equal(Linear()(np.array([0, 1])).alpha, [1.0, 0.0])


@pytest.mark.parametrize("t", [0.5j, "0.5", None, np.array([0.5j]), np.array(["a"]), np.array([True])], ids=repr)
def test_other_times_are_refused(t):
    with pytest.raises(TypeError, match="t must be a real number or an array of real numbers"):
        Linear()(t)


def test_infinite_derivative_raises_no_floating_point_warning():
    with np.errstate(all="raise"):
        assert LinearVP()(np.array([0.5, 1.0])).d_alpha[1] == -INF
        assert VP()(np.array([0.5, 1.0])).d_alpha[1] == -INF


# --- schedules as objects ----------------------------------------------------------------------


def test_every_name_gives_its_schedule():
    assert schedules.names() == (
        "linear",
        "cosine",
        "polynomial",
        "linear_vp",
        "vp",
        "ve",
        "optimal_transport",
    )
    for name in schedules.names():
        schedule = schedules.get(name)
        assert schedule.name == name
        assert schedule == type(schedule)()
        assert schedules.get(schedule) is schedule
    assert schedules.get(CUSTOM) is CUSTOM


def test_every_named_schedule_is_tested():
    assert {type(schedules.get(name)) for name in schedules.names()} == {type(schedule) for schedule in NAMED}
    assert set(EXACT_ENDS) == set(NAMED)


def test_all_lists_the_public_names():
    for name in schedules.__all__:
        assert hasattr(schedules, name)
    own = {cls.__name__ for cls in Schedule.__subclasses__() if cls.__module__ == Schedule.__module__}
    assert own and own <= set(schedules.__all__)


def test_what_messages_call_a_schedule():
    """Of a class that gives no name, that of the class: a message must not end in another error."""

    class Nameless(Schedule):
        def __call__(self, t):
            return schedules.Coefficients(1.0 - t, t, -np.inf if t == 1.0 else -1.0, 1.0, t - 1.0)

    assert schedules.name_of(Linear()) == "linear" and schedules.name_of(Nameless()) == "Nameless"
    field = ff.VelocityField(np.eye(2), schedule=Nameless(), source_mean=1.0, backend="numpy")
    with pytest.raises(ValueError, match="velocity of schedule Nameless with non-zero source_mean is unbounded"):
        field(np.ones((1, 2)), 1.0)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown schedule 'liner'; known names are 'linear', 'cosine'") as caught:
        schedules.get("liner")
    assert all(repr(name) in str(caught.value) for name in schedules.names())


@pytest.mark.parametrize("wrong", [None, 3, Linear, ["linear"]], ids=repr)
def test_wrong_type_of_schedule(wrong):
    with pytest.raises(TypeError, match=r"schedule must be a name or a Schedule instance, not .* of type"):
        schedules.get(wrong)


def test_base_class_has_no_coefficients():
    with pytest.raises(NotImplementedError, match="Schedule does not define its coefficients"):
        Schedule()(0.5)


def test_repr():
    assert repr(Linear()) == "Linear()"
    assert repr(VP()) == "VP(beta_min=0.1, beta_max=20.0)"
    assert repr(Polynomial(np.float64(3))) == "Polynomial(n=3.0)"
    custom = Custom(numpy_alpha, numpy_beta, d_beta=numpy_d_beta, name="mine")
    assert repr(custom) == (
        "Custom(alpha=numpy_alpha, beta=numpy_beta, d_alpha=None, d_beta=numpy_d_beta, name='mine')"
    )


@named
def test_repr_evaluates_to_an_equal_schedule(schedule):
    assert eval(repr(schedule)) == schedule


@named
def test_equality_and_hash(schedule):
    twin = dataclasses.replace(schedule)
    assert twin is not schedule
    assert twin == schedule
    assert hash(twin) == hash(schedule)


def test_different_parameters_and_classes_differ():
    assert len(set(NAMED)) == len(NAMED)
    assert VP(0.1, 20) == VP()
    assert Polynomial(1.0) != Linear()
    assert Custom(numpy_alpha, numpy_beta) == Custom(numpy_alpha, numpy_beta)
    assert Custom(numpy_alpha, numpy_beta) != Custom(numpy_alpha, numpy_beta, name="other")


@named
def test_immutable(schedule):
    for field in [*dataclasses.fields(schedule), None]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, field.name if field else "name", 1.0)


@pytest.mark.parametrize("duplicate", [lambda s: pickle.loads(pickle.dumps(s)), copy.copy, copy.deepcopy])
def test_pickling_and_copying(duplicate):
    for schedule in [*NAMED, Custom(numpy_alpha, numpy_beta, name="mine")]:
        schedule(0.3)
        again = duplicate(schedule)
        assert again == schedule
        assert repr(again) == repr(schedule)
        assert again(0.3) == schedule(0.3)


# --- refused parameters ------------------------------------------------------------------------

POSITIVE = "must be a positive finite number"
POSITIVE_ARGUMENTS = [(VP, "beta_min"), (VP, "beta_max"), (VE, "sigma_min"), (VE, "sigma_max")]


@pytest.mark.parametrize(("cls", "argument"), POSITIVE_ARGUMENTS)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, INF, -INF, 1e-200, 1e200])
def test_positive_parameters(cls, argument, value):
    with pytest.raises(ValueError, match=rf"{cls.__name__}: {argument} {POSITIVE} .*, not {re.escape(repr(value))}"):
        cls(**{argument: value})


@pytest.mark.parametrize(("cls", "argument"), [*POSITIVE_ARGUMENTS, (Polynomial, "n"), (OptimalTransport, "sigma_min")])
@pytest.mark.parametrize("value", ["1", None, 1j, True, np.array([1.0])], ids=repr)
def test_parameters_of_the_wrong_type(cls, argument, value):
    with pytest.raises(TypeError, match=rf"{cls.__name__}: {argument} must be .*, not .* of type"):
        cls(**{argument: value})


@pytest.mark.parametrize("n", [0.0, 0.5, 1.0 - EPS, -2, math.nan, INF])
def test_polynomial_exponent(n):
    with pytest.raises(
        ValueError,
        match=r"Polynomial: n must be a finite number >= 1 \(below 1 .* infinite at t = 0",
    ):
        Polynomial(n)


@pytest.mark.parametrize("value", [-1e-9, 1.5, math.nan, INF])
def test_optimal_transport_sigma(value):
    with pytest.raises(ValueError, match="OptimalTransport: sigma_min must be a number between 0 and 1, not"):
        OptimalTransport(value)


def test_order_of_bounds():
    with pytest.raises(
        ValueError,
        match=r"VP: beta_min must not exceed beta_max, but beta_min=2\.0 and beta_max=1\.0",
    ):
        VP(2, 1)
    for low in (1, 2):
        with pytest.raises(ValueError, match="VE: sigma_min must be less than sigma_max, but sigma_min="):
            VE(low, 1)


# --- Custom ------------------------------------------------------------------------------------


def numpy_alpha(t):
    return np.sqrt((1 - t) * (1 + t))


def numpy_beta(t):
    return np.sin(np.pi / 2 * t) ** 2


def numpy_d_beta(t):
    return np.pi * np.sin(np.pi / 2 * t) * np.cos(np.pi / 2 * t)


def math_alpha(t):
    return math.sqrt((1 - t) * (1 + t))


def math_d_alpha(t):
    return -t / math_alpha(t) if t < 1 else -INF


def one(t):
    return 1.0


def zero(t):
    return 0.0


def linear_alpha(t):
    return 1 - t


def linear_beta(t):
    return t


@pytest.mark.parametrize("t", (*ENDS, *INTERIOR))
def test_complex_step_equals_given_derivatives(t):
    stepped = Custom(numpy_alpha, numpy_beta)(t)
    given = Custom(math_alpha, numpy_beta, math_d_alpha, numpy_d_beta)(t)
    np.testing.assert_allclose(stepped, given, rtol=4 * EPS, atol=4 * EPS)


@pytest.mark.parametrize("t", (*ENDS, *INTERIOR))
@pytest.mark.parametrize(
    "custom",
    [Custom(numpy_alpha, linear_beta), Custom(math_alpha, linear_beta, math_d_alpha)],
    ids=["complex step", "given"],
)
def test_custom_equals_the_named_schedule(custom, t):
    actual, expected = custom(t), LinearVP()(t)
    np.testing.assert_allclose(actual[:2], expected[:2], rtol=4 * EPS)
    # The derivative of a product is a difference of rounded terms: accurate relative to the terms.
    np.testing.assert_allclose(actual, expected, rtol=4 * EPS, atol=EPS)


def test_custom_with_infinite_derivative_at_the_data():
    for custom in (Custom(numpy_alpha, linear_beta), Custom(math_alpha, linear_beta, math_d_alpha)):
        end = custom(1.0)
        assert (end.alpha, end.d_alpha) == (0.0, -INF)
        assert end.alpha_d_alpha == pytest.approx(-1.0, rel=4 * EPS)


def test_constants_and_one_given_derivative():
    assert Custom(zero, one)(0.3) == (0.0, 1.0, 0.0, 0.0, 0.0)
    assert Custom(one, linear_beta, d_alpha=zero)(0.3) == (1.0, 0.3, 0.0, 1.0, 0.0)
    assert Custom(lambda t: 1, lambda t: np.array(t))(0.3) == (1.0, 0.3, 0.0, 1.0, 0.0)


def test_negative_coefficients_are_accepted():
    assert Custom(lambda t: t - 1, lambda t: -t)(0.25) == (-0.75, -0.25, 1.0, -1.0, -0.75)


def test_scalar_only_and_vectorised_functions_serve_arrays():
    times = np.array([[0.0, 0.25], [0.75, 1.0]])
    scalar_only = Custom(math_alpha, linear_beta, math_d_alpha)(times)
    vectorised = Custom(numpy_alpha, linear_beta)(times)
    for a, b, c in zip(scalar_only, vectorised, LinearVP()(times), strict=True):
        assert a.shape == b.shape == times.shape
        np.testing.assert_allclose(a, c, rtol=4 * EPS)
        np.testing.assert_allclose(b, c, rtol=4 * EPS)


def test_function_without_complex_support_asks_for_the_derivative():
    with pytest.raises(TypeError, match=r"'custom': alpha\(.*\) failed .*, or give d_alpha"):
        Custom(math_alpha, linear_beta)
    with pytest.raises(TypeError, match=r"'mine': beta\(.*\) failed .*, or give d_beta"):
        Custom(linear_alpha, lambda t: t if t < 0.5 else 0.5, name="mine")
    Custom(math_alpha, linear_beta, math_d_alpha)


@pytest.mark.parametrize(
    "beta",
    [lambda t: abs(t), lambda t: t.real, lambda t: t * abs(t), lambda t: np.abs(t) + 0 * t],
    ids=range(4),
)
def test_lost_imaginary_part_asks_for_the_derivative(beta):
    with pytest.raises(ValueError, match=r"beta\(.*loses the imaginary part of t .*; give d_beta"):
        Custom(linear_alpha, beta)


def test_complex_step_that_fails_only_later():
    custom = Custom(linear_alpha, lambda t: t if t.real < 0.95 else math.sin(t))
    assert custom(0.5).d_beta == 1.0
    with pytest.raises(TypeError, match=r"beta\(.*\) failed .*, or give d_beta"):
        custom(0.97)


def bad_at_half(bad):
    return lambda t: bad if t == 0.5 else 1.0 - t


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("label", ["alpha", "beta", "d_alpha", "d_beta"])
def test_non_finite_values(label, bad):
    functions = {"alpha": linear_alpha, "beta": linear_beta, "d_alpha": zero, "d_beta": zero}
    custom = Custom(**(functions | {label: bad_at_half(bad)}), name="mine")
    pattern = rf"'mine': {label}\(0\.5\) is {bad!r}; accepted is a finite number for every t in \[0, 1\]"
    for t in (0.5, np.array([0.25, 0.5])):
        with pytest.raises(ValueError, match=pattern):
            custom(t)
    assert custom(0.25).alpha == 0.75


def test_infinite_derivative_needs_a_finite_limit():
    custom = Custom(linear_alpha, linear_beta, lambda t: -INF)
    with pytest.raises(ValueError, match=r"d_alpha\(0\.999\d*\) is -inf; .* where alpha is exactly 0"):
        custom(1.0)
    not_a_number = Custom(linear_alpha, linear_beta, lambda t: -1.0 if t < 1 else math.nan)
    with pytest.raises(ValueError, match=r"d_alpha\(1\.0\) is nan"):
        not_a_number(1.0)
    with pytest.raises(ValueError, match=r"d_beta\(0\.0\) is inf"):
        Custom(linear_alpha, lambda t: np.sqrt(t))(0.0)


@pytest.mark.parametrize("label", ["alpha", "beta", "d_alpha", "d_beta"])
def test_values_of_the_wrong_shape_or_type(label):
    functions = {"alpha": linear_alpha, "beta": linear_beta, "d_alpha": zero, "d_beta": zero}
    for value in (np.zeros(1), [0.0, 1.0], np.zeros((2, 2))):
        with pytest.raises(
            ValueError,
            match=rf"{label}\(0\.5\) returned an array of shape .*must return one number",
        ):
            Custom(**(functions | {label: lambda t, value=value: value}))(0.5)
    for value in ("1", None, 1j, object()):
        with pytest.raises(TypeError, match=rf"{label}\(0\.5\) returned .* of type .*; accepted is a real number"):
            Custom(**(functions | {label: lambda t, value=value: value}))(0.5)


def test_arguments_of_the_wrong_type():
    with pytest.raises(TypeError, match=r"Custom: alpha must be a function of t, not 1\.0"):
        Custom(1.0, linear_beta)
    with pytest.raises(TypeError, match="Custom: beta must be a function of t, not None"):
        Custom(linear_alpha, None)
    with pytest.raises(TypeError, match="Custom: d_alpha must be a function of t or None, not 0"):
        Custom(linear_alpha, linear_beta, 0)
    with pytest.raises(TypeError, match="Custom: name must be a string, not 3"):
        Custom(linear_alpha, linear_beta, name=3)


def test_errors_of_the_function_pass_through():
    with pytest.raises(ZeroDivisionError):
        Custom(linear_alpha, linear_beta, d_alpha=lambda t: 1 / t)(0.0)


def test_custom_is_as_picklable_as_its_functions():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(CUSTOM)
