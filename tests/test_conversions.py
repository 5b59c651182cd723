"""Conversions against linear algebra in 50 digits, against fields, and in everything that they refuse.

What a conversion can lose is bounded by how far it magnifies rounding of what it is given. It is linear in the value,
in x and in the source mean, so the three magnifications are measured by calling it with units, and every tolerance
below is a number of roundings times `size`, the sum of the magnified inputs.
"""

from __future__ import annotations

import itertools
import math
import re

import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import fastflow as ff
from fastflow import conversions
from fastflow.conversions import PREDICTIONS, change_schedule, convert, reverse_time
from fastflow.schedules import VE, VP, Cosine, Custom, Linear, LinearVP, OptimalTransport, Polynomial

EPS = 2.0**-52


def root_alpha(t):
    return np.sqrt((1 - t) * (1 + t) * (1 + t))


def bent_beta(t):
    return t * (3 - t) / 2


def parting_alpha(t):
    return (1 - t) * (2 + t) / 2


def short_beta(t):
    return t * (3 - t) / 4


SCHEDULES = [
    Linear(),
    Cosine(),
    Polynomial(),
    Polynomial(1.7),
    LinearVP(),
    VP(),
    VE(0.05, 20.0),
    OptimalTransport(0.01),
    Custom(parting_alpha, short_beta, name="finite"),
    Custom(root_alpha, bent_beta, name="infinite"),
]
IDS = [f"{schedule.name}{index}" for index, schedule in enumerate(SCHEDULES)]
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))
by_pair = pytest.mark.parametrize(("given", "wanted"), PAIRS, ids=["-".join(pair) for pair in PAIRS])

TIMES = (0.0, 1e-6, 0.3, 0.7, 0.99, 1.0)
MEAN = np.array([0.5, -1.25, 2.0])
SOURCE_VARIANCE = 1.7


def determined(given, wanted, schedule, t, with_mean):
    """Whether the given prediction tells the other, from where the schedule's numbers are zero or infinite."""
    if given == wanted:
        return True
    c = schedule(t)
    of_data, of_source = c.beta != 0.0, c.alpha != 0.0  # whether x holds anything of these
    infinite = math.isinf(c.d_alpha)
    along_x = not infinite and c.alpha * c.d_beta == c.d_alpha * c.beta
    match wanted:
        case "source_mean":
            return True
        case "target_mean":
            return not along_x if given == "velocity" else of_data
        case "score":
            return of_source or (infinite and given == "velocity" and not with_mean)
        case "velocity":
            if infinite:
                return given == "score" and not with_mean
            return of_data or along_x or given == "target_mean"


def size(value, x, t, mean, **names):
    """The sum of what the value, x and the source mean contribute, without regard to sign."""
    nothing = np.zeros_like(x)
    shares = (
        (value, convert(np.ones_like(x), nothing, t, **names)),
        (x, convert(nothing, np.ones_like(x), t, **names)),
        (np.broadcast_to(mean, x.shape), convert(nothing, nothing, t, source_mean=1.0, **names) if np.any(mean) else 0),
    )
    return sum(np.linalg.norm(a * b, axis=-1, keepdims=True) for a, b in shares)


# --- predictions -------------------------------------------------------------------------------


def in_50_digits(given, wanted, schedule, t, value, x, mean, variance):
    """The two equations in E[x_i | x] and E[x_f | x], solved as a matrix equation."""
    with mpmath.workdps(50):
        alpha, beta, d_alpha, d_beta = (mpmath.mpf(c) for c in schedule(t)[:4])
        value, x, mean, variance = (mpmath.mpf(float(number)) for number in (value, x, mean, variance))
        rows = {
            "velocity": ((d_alpha, d_beta), value),
            "source_mean": ((1, 0), value),
            "target_mean": ((0, 1), value),
            "score": ((1, 0), mean - alpha * variance * value),
        }
        row, right = rows[given]
        e, f = mpmath.lu_solve(mpmath.matrix([[alpha, beta], list(row)]), mpmath.matrix([x, right]))
        answers = {
            "velocity": d_alpha * e + d_beta * f,
            "source_mean": e,
            "target_mean": f,
            "score": (mean - e) / (alpha * variance),
        }
        return float(answers[wanted])


@by_schedule
@by_pair
def test_inside_against_50_digits(schedule, given, wanted):
    rng = np.random.default_rng(0)
    names = {"given": given, "wanted": wanted, "schedule": schedule, "source_variance": SOURCE_VARIANCE}
    for t in (1e-6, 0.01, 0.3, 0.7, 0.99, 1 - 1e-6):
        x, value = 3.0 * rng.standard_normal((2, 2, 3))
        for mean in (np.zeros(3), MEAN):
            got = convert(value, x, t, source_mean=mean, **names)
            want = np.array(
                [
                    [
                        in_50_digits(given, wanted, schedule, t, *numbers, SOURCE_VARIANCE)
                        for numbers in zip(*row, strict=True)
                    ]
                    for row in zip(value, x, np.broadcast_to(mean, x.shape), strict=True)
                ]
            )
            error = np.abs(got - want) / size(value, x, t, mean, **names)
            assert np.max(error) <= 8 * EPS, (t, np.max(error) / EPS)


def on_the_path(rng, data, schedule, t, mean, variance):
    """Points that the path passes at time t."""
    c = schedule(t)
    noise = rng.standard_normal((2, *data.shape))
    source = mean + math.sqrt(SOURCE_VARIANCE) * noise[0]
    return c.alpha * source + c.beta * (data + math.sqrt(variance) * noise[1])


def existing(schedule, t, mean, variance):
    """The quantities that a field has at this time."""
    c = schedule(t)
    names = list(PREDICTIONS)
    if c.alpha == 0.0 and variance == 0.0:
        names.remove("score")
    if math.isinf(c.d_alpha) and np.any(mean):
        names.remove("velocity")
    return names


@pytest.mark.parametrize("variance", [0.0, 0.3])
@pytest.mark.parametrize("mean", [0.0, MEAN], ids=["centred", "shifted"])
@by_schedule
def test_every_pair_against_a_field(backend, schedule, mean, variance):
    rng = np.random.default_rng(1)
    data = rng.standard_normal((6, 3))
    options = {"schedule": schedule, "source_mean": mean, "source_variance": SOURCE_VARIANCE}
    field = ff.VelocityField(data, variance=variance, backend=backend, **options)
    checked = 0
    for t in TIMES:
        x = on_the_path(rng, data, schedule, t, mean, variance)
        quantities = field.evaluate(x, t, existing(schedule, t, mean, variance))
        for given, wanted in itertools.product(quantities, quantities):
            names = {"given": given, "wanted": wanted, "schedule": schedule, "source_variance": SOURCE_VARIANCE}
            if not determined(given, wanted, schedule, t, np.any(mean)):
                with pytest.raises(ValueError, match=rf"'{wanted}', which given '{given}' does not determine"):
                    convert(quantities[given], x, t, source_mean=mean, **names)
                continue
            got = convert(quantities[given], x, t, source_mean=mean, **names)
            scale = size(quantities[given], x, t, mean, **names)
            # A field is not exact either: where D is small, its rounding is that of x / sqrt(D).
            c = schedule(t)
            spread = c.alpha**2 * SOURCE_VARIANCE + c.beta**2 * variance
            allowed = 1e-14 * (scale + np.abs(quantities[wanted]).max()) * (1 + 1 / math.sqrt(spread or 1.0))
            error = np.abs(got - quantities[wanted])
            assert np.all(error <= allowed), (given, wanted, t, np.max(error / allowed))
            checked += given != wanted
    assert checked >= 40


@by_schedule
@by_pair
def test_round_trips(schedule, given, wanted):
    rng = np.random.default_rng(2)
    value, x = rng.standard_normal((2, 5, 3))
    options = {"schedule": schedule, "source_mean": MEAN, "source_variance": SOURCE_VARIANCE}
    there = {"given": given, "wanted": wanted}
    back = {"given": wanted, "wanted": given}
    for t in (0.05, 0.3, 0.7, 0.9):
        other = convert(value, x, t, **there, **options)
        again = convert(other, x, t, **back, **options)
        names = {**options, **back}
        del names["source_mean"]
        error = np.abs(again - value) / size(other, x, t, MEAN, **names)
        assert np.max(error) <= 32 * EPS, (t, np.max(error) / EPS)


# Closed forms at the ends: what a conversion gives there, for v, e, f or s given as `value`.
ENDS = {
    ("linear", 0.0): {
        ("velocity", "source_mean"): lambda x, v, m, s: x,
        ("velocity", "target_mean"): lambda x, v, m, s: x + v,
        ("velocity", "score"): lambda x, v, m, s: (m - x) / s,
        ("target_mean", "velocity"): lambda x, f, m, s: f - x,
        ("target_mean", "score"): lambda x, f, m, s: (m - x) / s,
        ("source_mean", "score"): lambda x, e, m, s: (m - e) / s,
    },
    ("linear", 1.0): {
        ("velocity", "source_mean"): lambda x, v, m, s: x - v,
        ("velocity", "target_mean"): lambda x, v, m, s: x,
        ("score", "velocity"): lambda x, g, m, s: x - m,
        ("score", "source_mean"): lambda x, g, m, s: m + 0 * x,
        ("source_mean", "velocity"): lambda x, e, m, s: x - e,
        ("target_mean", "source_mean"): lambda x, f, m, s: m + 0 * x,
        ("target_mean", "velocity"): lambda x, f, m, s: x - m,
    },
    ("polynomial", 0.0): {
        ("velocity", "source_mean"): lambda x, v, m, s: x,
        ("velocity", "score"): lambda x, v, m, s: (m - x) / s,
        ("source_mean", "velocity"): lambda x, e, m, s: 0 * x,
        ("score", "velocity"): lambda x, g, m, s: 0 * x,
        ("target_mean", "velocity"): lambda x, f, m, s: 0 * x,
    },
    ("vp", 1.0): {
        ("velocity", "source_mean"): lambda x, v, m, s: m + 0 * x,
        ("velocity", "target_mean"): lambda x, v, m, s: x,
        ("score", "source_mean"): lambda x, g, m, s: m + 0 * x,
        ("score", "target_mean"): lambda x, g, m, s: x,
        ("target_mean", "source_mean"): lambda x, f, m, s: m + 0 * x,
    },
}


@pytest.mark.parametrize(("schedule", "t"), ENDS)
def test_closed_forms_at_the_ends(schedule, t):
    value, x = np.random.default_rng(3).standard_normal((2, 4, 3))
    for (given, wanted), formula in ENDS[schedule, t].items():
        got = convert(
            value,
            x,
            t,
            given=given,
            wanted=wanted,
            schedule=schedule,
            source_mean=MEAN,
            source_variance=SOURCE_VARIANCE,
        )
        want = formula(x, value, MEAN, SOURCE_VARIANCE)
        np.testing.assert_allclose(got, want, rtol=4 * EPS, atol=4 * EPS, err_msg=f"{given} to {wanted}")


@pytest.mark.parametrize("schedule", ["vp", "linear_vp"])
def test_velocity_and_score_where_alpha_falls_infinitely_fast(schedule):
    """At t = 1, with a centred source and smoothed data, each gives the other: alpha alpha' is finite."""
    data = np.random.default_rng(4).standard_normal((5, 3))
    field = ff.VelocityField(data, variance=0.4, schedule=schedule, source_variance=SOURCE_VARIANCE)
    x = data + 0.3
    velocity, score = field.velocity(x, 1.0), field.score(x, 1.0)
    options = {"schedule": schedule, "source_variance": SOURCE_VARIANCE}
    np.testing.assert_allclose(
        convert(score, x, 1.0, given="score", wanted="velocity", **options), velocity, rtol=1e-13, atol=1e-13
    )
    np.testing.assert_allclose(
        convert(velocity, x, 1.0, given="velocity", wanted="score", **options), score, rtol=1e-12, atol=1e-12
    )


@by_schedule
@by_pair
def test_what_is_refused_is_named(schedule, given, wanted):
    x = np.ones((2, 3))
    for t, mean in itertools.product((0.0, 1.0), (0.0, MEAN)):
        call = lambda t=t, mean=mean: convert(  # noqa: E731
            x, x, t, given=given, wanted=wanted, schedule=schedule, source_mean=mean
        )
        if determined(given, wanted, schedule, t, np.any(mean)):
            assert np.isfinite(call()).all()
            continue
        with pytest.raises(
            ValueError, match=rf"'{wanted}', which given '{given}' does not determine at t = {t}"
        ) as got:
            call()
        assert re.search(r"accepted are times at which .* is not 0 and alpha' is finite", str(got.value))
        assert repr(schedule.name) in str(got.value)
        with pytest.raises(ValueError, match=rf"at t\[1\] = {t} of schedule"):
            convert(x, x, [0.5, t], given=given, wanted=wanted, schedule=schedule, source_mean=mean)


def test_a_schedule_that_comes_to_a_stop():
    """Where alpha = alpha' = 0 the Wronskian is zero, and x is all that is known."""
    schedule = Custom(lambda t: (1 - t) ** 2, lambda t: t * (2 - t))
    value, x = np.ones((2, 3)), np.full((2, 3), 0.5)
    for given in PREDICTIONS:
        for wanted, want in {"source_mean": MEAN + 0 * x, "target_mean": x, "velocity": 0 * x}.items():
            if given != wanted:
                got = convert(value, x, 1.0, given=given, wanted=wanted, schedule=schedule, source_mean=MEAN)
                np.testing.assert_array_equal(got, want, err_msg=f"{given} to {wanted}")


def test_a_schedule_without_a_path():
    schedule = Custom(lambda t: 1 - t, lambda t: (1 - t) * t, name="mine")
    with pytest.raises(ValueError, match=r"schedule 'mine' has alpha = beta = 0 at t\[1\] = 1\.0; accepted is"):
        convert(np.ones((2, 3)), np.ones((2, 3)), [0.5, 1.0], given="score", wanted="velocity", schedule=schedule)
    with pytest.raises(ValueError, match=r"schedule 'mine' has alpha = beta = 0 at t = 1\.0; accepted is"):
        change_schedule(lambda x, t: x, "linear", schedule)(np.ones(3), 1.0)


# --- shapes, dtypes, and what is refused in conversions ------------------------------------------


@by_pair
def test_shapes_and_times(given, wanted):
    rng = np.random.default_rng(5)
    value, x = rng.standard_normal((2, 4, 2, 3))
    t = np.array([0.2, 0.4, 0.6, 0.8])
    mean = rng.standard_normal((2, 3))
    options = {"given": given, "wanted": wanted, "schedule": "cosine", "source_mean": mean, "source_variance": 0.6}
    together = convert(value, x, t, **options)
    assert together.shape == x.shape
    np.testing.assert_array_equal(convert(value, x, t[:, None], **options), together)
    for i in range(4):
        np.testing.assert_array_equal(convert(value[i], x[i], t[i], **options), together[i])
        np.testing.assert_array_equal(convert(value[i : i + 1], x[i : i + 1], t[i : i + 1], **options)[0], together[i])
    flat = options | {"source_mean": 0.5}
    np.testing.assert_array_equal(
        convert(value, x, t, **flat).reshape(4, 6), convert(value.reshape(4, 6), x.reshape(4, 6), t, **flat)
    )
    scalar = convert(value[0, 0, 0], x[0, 0, 0], 0.2, **flat)
    assert scalar.shape == ()
    assert scalar == convert(value, x, 0.2, **flat)[0, 0, 0]
    # Scalar events, each at its own time.
    np.testing.assert_array_equal(convert(value[:, 0, 0], x[:, 0, 0], t, **flat), convert(value, x, t, **flat)[:, 0, 0])


@by_pair
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "bool", ">f8", ">f4"])
def test_the_dtype_is_that_of_x(given, wanted, dtype):
    rng = np.random.default_rng(6)
    value = rng.standard_normal((4, 3))
    x = rng.integers(0, 2, size=(4, 3)).astype(dtype)
    got = convert(value, x, 0.4, given=given, wanted=wanted, source_mean=MEAN)
    expected = np.dtype(dtype).newbyteorder("=") if np.dtype(dtype).kind == "f" else np.dtype(np.float64)
    assert got.dtype == expected
    want = convert(value, x.astype(np.float64), 0.4, given=given, wanted=wanted, source_mean=MEAN)
    np.testing.assert_array_equal(got, want.astype(expected))  # computed in float64, rounded once


@by_pair
def test_nothing_is_modified_or_shared(given, wanted):
    rng = np.random.default_rng(7)
    arguments = [rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), rng.random(4), rng.standard_normal(3)]
    before = [a.copy() for a in arguments]
    for a in arguments:
        a.flags.writeable = False
    value, x, t, mean = arguments
    got = convert(value, x, t, given=given, wanted=wanted, source_mean=mean)
    assert got.flags.writeable
    assert not any(np.shares_memory(got, a) for a in arguments)
    for a, b in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 2, 3)])
def test_empty_batches(shape):
    x = np.empty(shape)
    for t in (0.5, np.full(shape[0], 0.5), np.full((shape[0], 1), 0.5)):
        assert convert(x, x, t, given="velocity", wanted="score").shape == shape
        assert reverse_time(lambda x, t: x)(x, t).shape == shape
        assert change_schedule(lambda x, t: x, "linear", "cosine")(x, t).shape == shape


GOOD = {"value": np.ones((4, 3)), "x": np.ones((4, 3)), "t": 0.5, "given": "velocity", "wanted": "score"}
COMPLEX = np.ones((4, 3), dtype=complex)
NAMES = "accepted is one of velocity, source_mean, target_mean, score"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"given": "speed"}, ValueError, rf"given is 'speed'; {NAMES}"),
        ({"wanted": "noise"}, ValueError, rf"wanted is 'noise'; {NAMES}"),
        ({"given": None}, TypeError, rf"given is None of type NoneType; {NAMES}"),
        ({"wanted": ("score",)}, TypeError, rf"wanted is \('score',\) of type tuple; {NAMES}"),
        ({"schedule": "liner"}, ValueError, "unknown schedule 'liner'; known names are"),
        ({"schedule": 3}, TypeError, "schedule must be a name or a Schedule instance"),
        ({"source_variance": 0.0}, ValueError, r"source_variance is 0\.0; accepted is a finite number above zero"),
        ({"source_variance": -1.0}, ValueError, r"source_variance is -1\.0; accepted is a finite number"),
        ({"source_variance": math.nan}, ValueError, "source_variance is nan; accepted is a finite number"),
        ({"source_variance": np.ones(3)}, ValueError, r"source_variance has shape \(3,\); accepted is one number"),
        ({"source_variance": 1j}, TypeError, "source_variance has dtype complex128; accepted are real numbers"),
        ({"source_mean": np.ones(2)}, ValueError, r"source_mean has shape \(2,\); accepted is a scalar or an event of"),
        ({"source_mean": [0.0, math.nan, 0.0]}, ValueError, r"source_mean\[1\] is nan; every value of"),
        ({"source_mean": math.inf}, ValueError, "source_mean is inf; every value of"),
        ({"source_mean": "a"}, TypeError, "source_mean has dtype <U1; accepted are real numbers"),
        ({"value": np.ones((4, 2))}, ValueError, r"value has shape \(4, 2\); accepted is the shape of x, \(4, 3\)"),
        ({"value": np.ones(3)}, ValueError, r"value has shape \(3,\); accepted is the shape of x, \(4, 3\)"),
        ({"value": np.full((4, 3), math.inf)}, ValueError, r"value\[0, 0\] is inf; every value of value must be"),
        ({"value": COMPLEX}, TypeError, "value has dtype complex128; accepted are real numbers"),
        ({"value": [[1], [1, 2]]}, TypeError, "value cannot be read as an array"),
        ({"x": np.full((4, 3), math.nan)}, ValueError, r"x\[0, 0\] is nan; every value of x must be finite"),
        ({"x": COMPLEX}, TypeError, "x has dtype complex128; accepted are real numbers"),
        ({"x": None}, TypeError, "x has dtype object; accepted are real numbers"),
        ({"t": 1.5}, ValueError, r"t is 1\.5; times must lie in \[0, 1\]"),
        ({"t": [0.5, 0.5, -0.5, 0.5]}, ValueError, r"t\[2\] is -0\.5; times must lie in \[0, 1\]"),
        ({"t": math.nan}, ValueError, r"t is nan; times must lie in \[0, 1\]"),
        ({"t": np.full(3, 0.5)}, ValueError, r"t has shape \(3,\); accepted is a scalar, \(4,\) or \(4, 1\)"),
        ({"t": "0.5"}, TypeError, "t has dtype <U3; accepted are real numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(wrong, error, message):
    arguments = GOOD | wrong
    value, x, t = (arguments.pop(name) for name in ("value", "x", "t"))
    with pytest.raises(error, match=message):
        convert(value, x, t, **arguments)
    if {"given", "wanted"}.isdisjoint(wrong):  # also where there is nothing to convert
        with pytest.raises(error, match=message):
            convert(value, x, t, **(arguments | {"wanted": "velocity"}))


def test_a_batch_with_times_of_its_own_has_events_of_its_own():
    x = np.ones((3, 3))
    with pytest.raises(
        ValueError, match=r"source_mean has shape \(3, 3\); accepted is a scalar or an event of shape \("
    ):
        convert(x, x, [0.1, 0.2, 0.3], given="velocity", wanted="score", source_mean=np.ones((3, 3)))


def test_all_lists_the_public_names():
    assert set(conversions.__all__) == {"PREDICTIONS", "change_schedule", "convert", "reverse_time"}
    assert set(PREDICTIONS) < set(ff.VelocityField.__dict__)


# --- time reversal -----------------------------------------------------------------------------


@pytest.fixture
def data():
    return np.random.default_rng(8).standard_normal((6, 3))


def test_reversed_velocity(backend, data):
    field = ff.VelocityField(data, schedule="vp", variance=0.1, backend=backend)
    reversed_field = reverse_time(field)
    x = np.random.default_rng(9).standard_normal((4, 3))
    for t in (0.0, 0.25, 1.0):
        np.testing.assert_array_equal(reversed_field(x, t), -field(x, 1.0 - t))
    t = np.array([0.0, 0.25, 0.5, 1.0])
    for times in (t, t[:, None], t.tolist()):
        np.testing.assert_array_equal(reversed_field(x, times), -field(x, 1.0 - t))
        np.testing.assert_array_equal(reverse_time(reversed_field)(x, times), field(x, t))
    assert reversed_field(x[0], 0.5).shape == (3,)
    assert reversed_field(x.astype(np.float32), 0.5).dtype == np.float32


def integrated(velocity, x, start, stop):
    """x followed from one time to another, to 1e-10."""
    solution = solve_ivp(
        lambda t, y: velocity(y.reshape(x.shape), min(max(t, 0.0), 1.0)).ravel(),
        (start, stop),
        x.ravel(),
        method="DOP853",
        rtol=1e-11,
        atol=1e-11,
    )
    assert solution.success
    return solution.y[:, -1].reshape(x.shape)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_reversed_flow_goes_the_same_way_back(data, schedule):
    field = ff.VelocityField(data, schedule=schedule, variance=0.1, source_mean=MEAN)
    noise = MEAN + np.random.default_rng(10).standard_normal((4, 3))
    points = integrated(field, noise, 0.0, 1.0)
    reversed_field = reverse_time(field)
    np.testing.assert_allclose(integrated(reversed_field, points, 0.0, 1.0), noise, atol=1e-7)
    np.testing.assert_allclose(integrated(reversed_field, noise, 1.0, 0.0), points, atol=1e-7)
    half = integrated(reversed_field, points, 0.0, 0.4)
    np.testing.assert_allclose(half, integrated(field, noise, 0.0, 0.6), atol=1e-7)
    sampled = field.sample(points, t_span=(1.0, 0.0), method="dopri5", rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(integrated(reversed_field, points, 0.0, 1.0), sampled, atol=1e-6)


def test_wu_writes_the_path_the_other_way_round(data):
    """One pair of points: x_s = a x_0 + b x_1 with data x_0, noise x_1, and its derivative in s."""
    cosine = Cosine()
    field = ff.VelocityField(data[:1], schedule=cosine)
    noise, s = np.array([0.3, -0.4, 1.1]), 0.2
    a, b = math.cos(math.pi / 2 * s), math.sin(math.pi / 2 * s)
    x = a * data[0] + b * noise
    want = math.pi / 2 * (-b * data[0] + a * noise)
    np.testing.assert_allclose(reverse_time(field)(x, s), want, rtol=1e-13)


# --- change of schedule ------------------------------------------------------------------------


def reaches(old, new, t):
    """Whether the ratio beta / alpha of the new schedule occurs in the old one."""
    c = new(t)
    ends = [math.atan2(end.beta, end.alpha) for end in (old(0.0), old(1.0))]
    return ends[0] - 1e-15 <= math.atan2(c.beta, c.alpha) <= ends[1] + 1e-15


def turns_finitely(old, new, t):
    """Whether no infinite tau' is in the way at this time: beta goes like t^p at t = 0, alpha like (1 - t)^p at 1."""

    def power(schedule):
        c = schedule(t)
        if t == 0.0:
            return getattr(schedule, "n", 1.0) if c.beta == 0.0 else 0.0
        return (0.5 if math.isinf(c.d_alpha) else 1.0) if c.alpha == 0.0 else 0.0

    if power(new) == 0.0:  # a ratio that the old schedule has inside
        return True
    if t == 0.0 and power(new) > 1.0:  # the new path stands still, so tau' is not needed
        return True
    return power(old) <= power(new)


NO_RATIO = "accepted are times whose ratio beta / alpha occurs in schedule_from"
TOO_FAST = "turns infinitely fast there beside schedule_from"


@pytest.mark.parametrize("variance", [0.0, 0.3])
@pytest.mark.parametrize("mean", [0.0, MEAN], ids=["centred", "shifted"])
@pytest.mark.parametrize("old", SCHEDULES, ids=IDS)
def test_change_of_schedule_against_the_other_field(old, mean, variance):
    rng = np.random.default_rng(11)
    data = rng.standard_normal((6, 3))
    options = {"variance": variance, "source_mean": mean, "source_variance": SOURCE_VARIANCE, "backend": "numpy"}
    before = ff.VelocityField(data, schedule=old, **options)
    checked = 0
    for new in SCHEDULES:
        after = ff.VelocityField(data, schedule=new, **options)
        changed = change_schedule(before, old, new)
        for t in TIMES:
            x = on_the_path(rng, data, new, t, mean, variance)
            if math.isinf(new(t).d_alpha) and np.any(mean):
                continue  # unbounded
            if not reaches(old, new, t):
                with pytest.raises(ValueError, match=NO_RATIO):
                    changed(x, t)
                continue
            if not turns_finitely(old, new, t):
                with pytest.raises(ValueError, match=TOO_FAST):
                    changed(x, t)
                continue
            if t == 1.0 and math.isinf(old(t).d_alpha) and np.any(mean) and new(t).alpha == 0.0:
                with pytest.raises(ValueError, match="source_mean is unbounded at t = 1"):
                    changed(x, t)
                continue
            want = after.velocity(x, t)
            # tau is known to EPS; from schedules with infinite alpha', 1 - tau is the square of alpha.
            known = EPS / new(t).alpha ** 2 if math.isinf(old(1.0).d_alpha) and new(t).alpha else EPS
            error = np.abs(changed(x, t) - want).max() / (np.abs(want).max() + np.abs(x).max())
            assert error <= 200 * max(known, EPS), (new, t, error)
            checked += 1
    assert checked >= 15


def test_a_schedule_reaches_itself():
    x = np.random.default_rng(12).standard_normal((5, 3))
    for schedule in SCHEDULES:
        field = ff.VelocityField(x, schedule=schedule, variance=0.2)
        same = change_schedule(field, schedule, schedule)
        for t in (0.0, 1e-12, 0.2, 1 - 1e-12, 1.0):
            np.testing.assert_allclose(same(x, t), field(x, t), rtol=1e-7, atol=1e-12, err_msg=f"{schedule} {t}")


def test_a_ratio_that_only_rounding_keeps_apart():
    """A multiple of a schedule has the same ratios, though not to the last bit."""
    old = OptimalTransport(0.3)
    for factor in np.linspace(0.1, 1.9, 50).tolist():
        new = Custom(
            lambda t, factor=factor: old(t).alpha / factor,
            lambda t, factor=factor: t / factor,
            d_alpha=lambda t, factor=factor: -0.7 / factor,
        )
        assert conversions._matching_time(old, new, 1.0) == 1.0, factor


@pytest.mark.parametrize("t", [1e-300, 1e-30, 1e-9, 0.5, 1 - 1e-9, 1 - EPS])
@pytest.mark.parametrize(
    ("old", "inverse"),
    [
        (Linear(), lambda b, a: b / (a + b)),
        (Cosine(), lambda b, a: 2 / math.pi * math.atan2(b, a)),
        (Polynomial(3), lambda b, a: (b / (a + b)) ** (1 / 3)),
        (LinearVP(), lambda b, a: b / math.hypot(a, b)),
        (OptimalTransport(0.01), lambda b, a: b / (a + 0.99 * b)),
    ],
    ids=lambda v: v.name if isinstance(v, ff.schedules.Schedule) else "",
)
def test_matching_times_against_closed_forms(old, inverse, t):
    new = Custom(lambda t: 1 - t, lambda t: t)
    if not reaches(old, new, t):
        with pytest.raises(ValueError, match=NO_RATIO):
            conversions._matching_time(old, new, t)
        return
    tau = conversions._matching_time(old, new, t)
    assert 0.0 < tau < 1.0
    assert tau == pytest.approx(inverse(t, 1 - t), rel=4 * EPS)


def test_close_to_the_end_a_time_is_never_the_end():
    """From vp, 1 - tau is the square of 1 - t and rounds to nothing; a source mean would be unbounded at tau = 1."""
    data = np.random.default_rng(13).standard_normal((5, 3))
    options = {"variance": 0.3, "source_mean": MEAN}
    changed = change_schedule(ff.VelocityField(data, schedule="vp", **options), "vp", "linear")
    field = ff.VelocityField(data, **options)
    for t in (1 - 1e-9, 1 - 1e-12):
        np.testing.assert_allclose(changed(data, t), field(data, t), rtol=1e-7)


def test_changed_velocities_carry_noise_to_the_same_points(data):
    field = ff.VelocityField(data, variance=0.1, source_mean=MEAN)
    noise = MEAN + np.random.default_rng(14).standard_normal((4, 3))
    want = integrated(field, noise, 0.0, 1.0)
    for schedule in ("cosine", "polynomial"):
        got = integrated(change_schedule(field, "linear", schedule), noise, 0.0, 1.0)
        np.testing.assert_allclose(got, want, atol=1e-7)


def test_a_chain_of_changes_comes_back(data):
    field = ff.VelocityField(data, variance=0.1)
    there = change_schedule(field, "linear", "cosine")
    back = change_schedule(change_schedule(there, "cosine", "linear_vp"), "linear_vp", "linear")
    x = np.random.default_rng(15).standard_normal((4, 3))
    for t in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(back(x, t), field(x, t), rtol=1e-12, atol=1e-12)


def test_a_negative_scale_is_a_scale(data):
    """alpha and beta with their signs turned: x_t is the mirror image."""
    mirrored = Custom(lambda t: t - 1, lambda t: -t)
    options = {"variance": 0.1, "source_mean": MEAN}
    x = np.random.default_rng(16).standard_normal((4, 3))
    for old, new in ((mirrored, Cosine()), (Cosine(), mirrored)):
        changed = change_schedule(ff.VelocityField(data, schedule=old, **options), old, new)
        want = ff.VelocityField(data, schedule=new, **options)
        for t in (0.0, 0.3, 1.0):
            np.testing.assert_allclose(changed(x, t), want(x, t), rtol=1e-12, atol=1e-12)


def test_shapes_and_dtypes_of_a_changed_velocity():
    rng = np.random.default_rng(17)
    data = rng.standard_normal((6, 2, 2)).astype(np.float32)
    changed = change_schedule(ff.VelocityField(data, variance=0.1), "linear", "vp")
    x = rng.standard_normal((4, 2, 2))
    t = np.array([0.2, 0.7, 0.2, 0.4])
    together = changed(x, t)
    assert together.shape == x.shape
    np.testing.assert_array_equal(changed(x, t[:, None]), together)
    for i in range(4):
        np.testing.assert_allclose(changed(x[i], t[i]), together[i], rtol=1e-13)
        np.testing.assert_allclose(changed(x[i : i + 1], t[i : i + 1])[0], together[i], rtol=1e-13)
    single = changed(x.astype(np.float32), t)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, together, rtol=1e-5, atol=1e-6)
    assert changed(np.ones((4, 2, 2), dtype=int), 0.5).dtype == np.float64


def test_nothing_is_modified_by_a_changed_velocity(data):
    x, t = np.random.default_rng(18).standard_normal((4, 3)), np.full(4, 0.3)
    for array in (x, t):
        array.flags.writeable = False
    before = x.copy()
    for new in ("linear", "cosine"):
        for function in (change_schedule(ff.VelocityField(data), "linear", new), reverse_time(ff.VelocityField(data))):
            assert not np.shares_memory(function(x, t), x)
    np.testing.assert_array_equal(x, before)


# --- what is refused by functions of functions ---------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 3, "linear", np.ones(3)], ids=repr)
def test_velocities_must_be_callable(wrong):
    message = r"velocity is .* of type \w+; accepted is a VelocityField or a function of \(x, t\)"
    with pytest.raises(TypeError, match=message):
        reverse_time(wrong)
    with pytest.raises(TypeError, match=message):
        change_schedule(wrong, "linear", "cosine")


@pytest.mark.parametrize("pair", [("liner", "cosine"), ("cosine", "liner")])
def test_schedules_to_change_must_be_known(pair):
    with pytest.raises(ValueError, match="unknown schedule 'liner'; known names are"):
        change_schedule(lambda x, t: x, *pair)
    with pytest.raises(TypeError, match="schedule must be a name or a Schedule instance"):
        change_schedule(lambda x, t: x, *(3 if name == "liner" else name for name in pair))


FUNCTIONS = {
    "reversed": reverse_time,
    "changed": lambda velocity: change_schedule(velocity, "linear", "cosine"),
}


@pytest.mark.parametrize("make", FUNCTIONS.values(), ids=FUNCTIONS)
def test_queries_and_results_are_checked(make):
    x = np.ones((4, 3))
    function = make(lambda x, t: x)
    for t in (-0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=rf"t is {re.escape(str(t))}; times must lie in \[0, 1\]"):
            function(x, t)
    with pytest.raises(ValueError, match=r"t has shape \(3,\); accepted is a scalar, \(4,\) or \(4, 1\)"):
        function(x, np.full(3, 0.5))
    with pytest.raises(TypeError, match="x has dtype complex128; accepted are real numbers"):
        function(x + 0j, 0.5)
    with pytest.raises(ValueError, match=r"velocity\(x, t\) has shape \(3,\); accepted is the shape of x, \(4, 3\)"):
        make(lambda x, t: x[0])(x, 0.5)
    with pytest.raises(TypeError, match=r"velocity\(x, t\) has dtype complex128; accepted are real numbers"):
        make(lambda x, t: x * 1j)(x, 0.5)


def test_a_changed_velocity_is_finite():
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"velocity\(x, tau\)\[0, 0\] is nan; every value of"):
        change_schedule(lambda x, t: x * math.nan, "linear", "cosine")(x, 0.5)
    with pytest.raises(ValueError, match=r"x\[0, 0\] is inf; every value of x must be finite"):
        change_schedule(lambda x, t: x, "linear", "cosine")(x * math.inf, 0.5)


def test_times_that_a_change_cannot_reach_are_named():
    x = np.ones((2, 3))
    from_vp = change_schedule(lambda x, t: x, "vp", "linear")
    with pytest.raises(ValueError, match=rf"t is 0\.0, where schedule_to 'linear' has .*{NO_RATIO} 'vp', which goes"):
        from_vp(x, [0.5, 0.0])
    with pytest.raises(ValueError, match=rf"t is 1\.0, where schedule_to 'linear' has .*{NO_RATIO} 've', which goes"):
        change_schedule(lambda x, t: x, "ve", "linear")(x, 1.0)
    with pytest.raises(ValueError, match=rf"t\[1\] = 1\.0: schedule_to 'vp' {TOO_FAST} 'linear' at its time 1,"):
        change_schedule(lambda x, t: x, "linear", "vp")(x, [0.5, 1.0])
    with pytest.raises(ValueError, match=rf"t = 0\.0: schedule_to 'linear' {TOO_FAST} 'polynomial' at its time 0,"):
        change_schedule(lambda x, t: x, "polynomial", "linear")(x, 0.0)
