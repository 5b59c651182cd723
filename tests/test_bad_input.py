"""What is refused, in which words, and what odd but valid input must not change."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastflow as ff
from fastflow import conversions

QUANTITIES = (
    "velocity",
    "target_mean",
    "source_mean",
    "score",
    "log_density",
    "entropy",
    "effective_sample_size",
)


@pytest.fixture
def data():
    return np.random.default_rng(0).standard_normal((6, 3))


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((4, 3))


@pytest.fixture
def field(variant, data):
    return variant.field(data)


def refused(call, *words, error=ValueError):
    """``call()`` raises, and the message has all of these words (regular expressions)."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert re.search(word, message), f"{word!r} is not in the message: {message!r}"
    return message


# ------------------------------------------------------------------------------------------------
# Shapes


@pytest.mark.parametrize("shape", [(), (2,), (4, 2), (4, 1), (2, 4, 3), (3, 4), (0,), (0, 2)])
def test_shape_of_x(field, shape):
    # The message says what was passed and both accepted forms.
    call = lambda: field.velocity(np.zeros(shape), 0.5)  # noqa: E731
    refused(call, r"\bx\b", re.escape(str(shape)), r"\(3,\)", r"\(B, 3\)")


@pytest.mark.parametrize("shape", [(2,), (6,), (3, 2), (2, 2, 3), (5, 3, 2), (1, 2, 2, 3)])
def test_shape_of_x_for_shaped_events(variant, shape):
    field = variant.field(np.zeros((4, 2, 3)))
    if shape == (2, 2, 3):
        assert field.velocity(np.zeros(shape), 0.5).shape == shape
    else:
        call = lambda: field.velocity(np.zeros(shape), 0.5)  # noqa: E731
        refused(call, r"\bx\b", re.escape(str(shape)), r"\(2, 3\)", r"\(B, 2, 3\)")


@pytest.mark.parametrize("name", (*QUANTITIES, "weights", "moments", "evaluate"))
def test_every_call_checks_x_and_t(field, name):
    call = getattr(field, name)
    refused(lambda: call(np.zeros((4, 2)), 0.5), r"\bx\b", r"\(4, 2\)")
    refused(lambda: call(np.zeros((4, 3)), 1.5), r"\bt\b", "1.5")
    refused(lambda: call(np.full((4, 3), np.nan), 0.5), r"x\[0, ?0\]")


def test_top_k_and_finish_check_x_and_t(field, x):
    refused(lambda: field.top_k(np.zeros((4, 2)), 0.5, 2), r"\bx\b", r"\(4, 2\)")
    refused(lambda: field.top_k(x, -0.5, 2), r"\bt\b", "-0.5")
    moments = field.moments(x, 0.5)
    refused(lambda: field.finish(moments, x[:, :2], 0.5, ("velocity",)), r"\bx\b", r"\(4, 2\)")
    refused(lambda: field.finish(moments, x[:2], 0.5, ("velocity",)), "moments", "shape")


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 2), (1, 4), (4, 2), (4, 1, 1), (0,), (4, 3)])
def test_shape_of_t(field, x, shape):
    call = lambda: field.velocity(x, np.full(shape, 0.5))  # noqa: E731
    refused(call, r"\bt\b", re.escape(str(shape)), r"\(4,\)", r"\(4, 1\)")


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (0, 0)])
def test_data_need_a_point_with_a_value(variant, shape):
    refused(lambda: variant.field(np.zeros(shape)), r"\bdata\b", "at least one|N >= 1")


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), (1, 6), (), (0,)])
def test_shape_of_weights(variant, data, shape):
    call = lambda: variant.field(data, weights=np.ones(shape))  # noqa: E731
    refused(call, r"\bweights\b", re.escape(str(shape)), r"\(6,\)")


@pytest.mark.parametrize("shape", [(2,), (1, 3), (3, 1), (6, 3), (0,)])
def test_shape_of_source_mean(variant, data, shape):
    call = lambda: variant.field(data, source_mean=np.ones(shape))  # noqa: E731
    refused(call, r"\bsource_mean\b", re.escape(str(shape)), r"\(3,\)")


# ------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_data_must_be_finite(variant, data, bad, dtype):
    data = data.astype(dtype)
    data[4, 0] = bad
    data[2, 1] = bad  # the first in order is named
    refused(lambda: variant.field(data), r"data\[2, ?1\]", str(bad), "finite")
    refused(lambda: variant.field(data.reshape(6, 3, 1)), r"data\[2, ?1, ?0\]", str(bad))


def test_the_first_bad_value_of_much_data(variant):
    data = np.zeros((700_000, 2), dtype=np.float32)
    data[600_001, 1] = np.nan
    data[650_000, 0] = np.inf
    refused(lambda: variant.field(data), r"data\[600001, ?1\]", "nan")
    # Finite values whose sum is not.
    big = np.full((40, 2), 1e38, dtype=np.float32)
    assert np.isfinite(variant.field(big).velocity(big[0] * 0, 0.0)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_x_must_be_finite(field, x, bad, dtype):
    x = x.astype(dtype)
    x[3, 0] = x[1, 2] = bad
    refused(lambda: field.velocity(x, 0.5), r"x\[1, ?2\]", str(bad), "finite")
    refused(lambda: field.velocity(x[1], 0.5), r"x\[2\]", str(bad), "finite")
    refused(lambda: field.velocity(x.T.copy().T, 0.5), r"x\[1, ?2\]", str(bad), "finite")
    # Two infinities of opposite sign, and one that only a long sum would meet.
    x[1, 2], x[3, 0] = np.inf, -np.inf
    refused(lambda: field.velocity(x, 0.5), r"x\[1, ?2\]", "inf")
    long = np.zeros((5000, 3), dtype)
    long[4321, 1] = bad
    refused(lambda: field.velocity(long, 0.5), r"x\[4321, ?1\]", str(bad))


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan, np.inf, -np.inf, -1e-300, np.nextafter(1, 2)])
def test_t_must_lie_in_the_unit_interval(field, x, bad):
    text = re.escape(str(bad))
    refused(lambda: field.velocity(x, bad), r"\bt\b", text, r"\[0, 1\]")
    refused(lambda: field.velocity(x, np.float64(bad)), r"\bt\b", text, r"\[0, 1\]")
    refused(lambda: field.velocity(x, np.array(bad)), r"\bt\b", text, r"\[0, 1\]")
    t = np.array([0.5, 0.2, bad, bad])
    refused(lambda: field.velocity(x, t), r"t\[2\]", text, r"\[0, 1\]")
    refused(lambda: field.velocity(x, t[:, None]), r"t\[2(, ?0)?\]", text, r"\[0, 1\]")
    refused(lambda: field.velocity(x[:1], t[2:3]), r"\bt\b", text, r"\[0, 1\]")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(variant, data, bad):
    weights = np.ones(6)
    weights[5] = weights[3] = bad
    refused(lambda: variant.field(data, weights=weights), r"weights\[3\]", str(bad), "finite")


def test_weights_must_not_be_negative_or_all_zero(variant, data):
    weights = np.ones(6)
    weights[[2, 4]] = -1e-9
    call = lambda: variant.field(data, weights=weights)  # noqa: E731
    refused(call, r"weights\[2\]", "-1e-09", "at least zero|>= 0|negative")
    call = lambda: variant.field(data, weights=np.zeros(6))  # noqa: E731
    refused(call, r"\bweights\b", "zero", "positive")


@pytest.mark.parametrize("bad", [-1.0, -1e-12, np.nan, np.inf])
def test_variance(variant, data, bad):
    call = lambda: variant.field(data, variance=bad)  # noqa: E731
    refused(call, r"\bvariance\b", re.escape(str(bad)), "at least 0|>= 0")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_source_variance(variant, data, bad):
    call = lambda: variant.field(data, source_variance=bad)  # noqa: E731
    refused(call, r"\bsource_variance\b", re.escape(str(bad)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_source_mean_must_be_finite(variant, data, bad):
    refused(lambda: variant.field(data, source_mean=bad), r"\bsource_mean\b", str(bad), "finite")
    call = lambda: variant.field(data, source_mean=np.array([0.0, bad, bad]))  # noqa: E731
    refused(call, r"source_mean\[1\]", str(bad), "finite")


@pytest.mark.parametrize("name", ["scale", "offset"])
def test_scale_and_offset_must_be_finite(variant, data, name):
    refused(lambda: variant.field(data, **{name: np.nan}), rf"\b{name}\b", "nan", "finite")


# ------------------------------------------------------------------------------------------------
# Names


def test_unknown_schedule(variant, data):
    call = lambda: variant.field(data, schedule="quadratic")  # noqa: E731
    refused(call, "schedule", "quadratic", "linear", "cosine", "vp")
    refused(lambda: variant.field(data, schedule=3), "schedule", "3", error=TypeError)


def test_unknown_backend(data):
    call = lambda: ff.VelocityField(data, backend="fortran")  # noqa: E731
    refused(call, "backend", "fortran", "auto", *ff.backends())
    refused(lambda: ff.VelocityField(data, backend=7), "backend", error=(TypeError, ValueError))


def test_unknown_quantity(field, x):
    call = lambda: field.evaluate(x, 0.5, quantities=("velocity", "speed"))  # noqa: E731
    refused(call, "quantit", "speed", *QUANTITIES)
    # A string is a sequence of one-letter names, but not what was meant.
    call = lambda: field.evaluate(x, 0.5, quantities="velocity")  # noqa: E731
    refused(call, "quantities", "velocity", error=(TypeError, ValueError))
    moments = field.moments(x, 0.5)
    refused(lambda: field.finish(moments, x, 0.5, ("speed",)), "speed", *QUANTITIES)


def test_unknown_option(data):
    with pytest.raises(TypeError, match="varience"):
        ff.VelocityField(data, varience=0.1)
    with pytest.raises(TypeError, match="varience"):
        ff.velocity(np.zeros((1, 3)), 0.5, data, varience=0.1)


# ------------------------------------------------------------------------------------------------
# Schedules


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_schedule_must_be_finite(variant, data, x, bad):
    """Of a schedule that is fine except at one time, that time is refused."""

    def broken(t):
        return bad if t == 0.5 else 1.0 - t

    def one(t):
        return 1.0

    for name, functions in {"alpha": (broken, lambda t: t), "beta": (one, broken)}.items():
        schedule = ff.schedules.Custom(*functions, d_alpha=one, d_beta=one)
        field = variant.field(data, schedule=schedule)
        assert np.isfinite(field.velocity(x, 0.25)).all()
        refused(lambda field=field: field.velocity(x, 0.5), rf"\b{name}\b", str(bad), "finite")
        t = np.array([0.25, 0.5, 0.75, 0.5])
        refused(lambda field=field, t=t: field.velocity(x, t), rf"\b{name}\b", str(bad), "finite")


# ------------------------------------------------------------------------------------------------
# Types


NOT_REAL = {
    "complex": np.ones((6, 3), dtype=complex),
    "object": np.array([[1, 2, 3]] * 6, dtype=object),
    "string": np.full((6, 3), "1.0"),
    "bytes": np.full((6, 3), b"1"),
    "date": np.zeros((6, 3), dtype="datetime64[s]"),
    "record": np.zeros((6, 3), dtype=[("a", "f8")]),
}


@pytest.mark.parametrize("kind", NOT_REAL)
def test_arrays_must_be_real(variant, data, kind):
    bad = NOT_REAL[kind]
    field = variant.field(data)
    scalar = bad[0, 0:1].reshape(())
    words = (re.escape(str(bad.dtype)), "real|float")
    both = (TypeError, ValueError)
    refused(lambda: variant.field(bad), r"\bdata\b", *words, error=both)
    refused(lambda: field.velocity(bad, 0.5), r"\bx\b", *words, error=both)
    refused(lambda: field.velocity(data, bad[:, 0]), r"\bt\b", *words, error=both)
    refused(lambda: field.velocity(data, scalar), r"\bt\b", "real|float", error=both)
    refused(lambda: variant.field(data, weights=bad[:, 0]), r"\bweights\b", *words, error=both)
    call = lambda: variant.field(data, source_mean=bad[0])  # noqa: E731
    refused(call, r"\bsource_mean\b", *words, error=both)
    call = lambda: variant.field(data, variance=scalar)  # noqa: E731
    refused(call, r"\bvariance\b", "real|float|number", error=both)


@pytest.mark.parametrize("bad", [None, "0.5", [[1, 2, 3], [1, 2]], {}, object()], ids=lambda v: type(v).__name__)
def test_things_that_are_no_arrays(field, data, variant, bad):
    both = (TypeError, ValueError)
    refused(lambda: field.velocity(bad, 0.5), r"\bx\b", error=both)
    refused(lambda: field.velocity(data, bad), r"\bt\b", error=both)
    refused(lambda: variant.field(bad), r"\bdata\b", error=both)


def test_out_must_fit(field, x):
    want = field.velocity(x, 0.5)
    both = (TypeError, ValueError)
    for out in (np.empty((4, 2)), np.empty((3, 3)), np.empty(12), np.empty((4, 3, 1))):
        call = lambda out=out: field.velocity(x, 0.5, out=out)  # noqa: E731
        refused(call, r"\bout\b", re.escape(str(out.shape)), r"\(4, 3\)")
    for dtype in (np.float32, np.int64, complex, ">f8"):
        out = np.empty((4, 3), dtype)
        call = lambda out=out: field.velocity(x, 0.5, out=out)  # noqa: E731
        refused(call, r"\bout\b", re.escape(str(out.dtype)), "float64", error=both)
    out = np.empty((4, 3))
    out.flags.writeable = False
    refused(lambda: field.velocity(x, 0.5, out=out), r"\bout\b", "read-only|writ")
    refused(lambda: field.velocity(x, 0.5, out=[[0.0] * 3] * 4), r"\bout\b", error=both)
    # Refused before any work: nothing was written.
    out = np.full((3, 3), 7.0)
    refused(lambda: field.velocity(x, 0.5, out=out), r"\bout\b")
    assert (out == 7.0).all()
    # And what fits is used, whatever its layout.
    for out in (np.empty((4, 3)), np.empty((4, 3), order="F"), np.empty((8, 6))[::2, ::2]):
        assert field.velocity(x, 0.5, out=out) is out
        assert np.array_equal(out, want)
    assert np.array_equal(field(x, 0.5, out=np.empty((4, 3))), want)


def test_out_may_be_x(field, x):
    """The one argument that is written to, also where it is an argument that is read."""
    want = field.velocity(x, 0.5)
    work = x.copy()
    assert field.velocity(work, 0.5, out=work) is work
    assert np.array_equal(work, want)


@pytest.mark.parametrize("bad", [0, -1, -100])
def test_num_threads_must_be_positive(variant, data, bad):
    call = lambda: variant.field(data, num_threads=bad)  # noqa: E731
    refused(call, r"\bnum_threads\b", str(bad), "at least 1|>= 1")


@pytest.mark.parametrize("bad", [1.5, "2", True, [1], np.nan])
def test_num_threads_must_be_whole(variant, data, bad):
    call = lambda: variant.field(data, num_threads=bad)  # noqa: E731
    refused(call, r"\bnum_threads\b", "whole|integer", error=(TypeError, ValueError))


def test_num_threads_may_be_a_numpy_integer(variant, data, x):
    got = variant.field(data, num_threads=np.int32(2)).velocity(x, 0.5)
    assert np.array_equal(got, variant.field(data).velocity(x, 0.5))


@pytest.mark.parametrize("bad", [0, -1, 7])
def test_k_must_be_among_the_points(field, x, bad):
    refused(lambda: field.top_k(x, 0.5, bad), r"\bk\b", str(bad), "6")


@pytest.mark.parametrize("bad", [1.5, "1", None, True])
def test_k_must_be_whole(field, x, bad):
    refused(lambda: field.top_k(x, 0.5, bad), r"\bk\b", error=(TypeError, ValueError))


def test_merging_what_does_not_fit(field, x):
    a, b = field.moments(x, 0.5), field.moments(x[:2], 0.5)
    refused(lambda: a.merge(b), "shape|size|disagree")
    refused(lambda: ff.merge([]), "parts|moments|empty")
    refused(lambda: ff.merge([a, 3]), "Moments", error=(TypeError, ValueError))
    for mass in (0.0, -1.0, np.nan, np.inf):
        refused(lambda mass=mass: a.scaled(mass), r"\bmass\b", re.escape(str(mass)))


# ------------------------------------------------------------------------------------------------
# Variances and covariances


PRODUCTS = ("jvp", "vjp", "target_covariance_product")
SQUARES = {
    "covariance": [(3,), (2, 2), (3, 2), (6,), (6, 3), (5, 3, 3), (6, 3, 2), (1, 3, 3), (6, 3, 3, 1), (), (0, 0)],
    "source_covariance": [(3,), (2, 2), (3, 2), (6, 3, 3), (1, 3, 3), (), (0, 0)],
}


@pytest.mark.parametrize("shape", [(5,), (7,), (1,), (6, 1), (1, 6), (6, 3), (0,), (3, 3)])
def test_shape_of_variance(variant, data, shape):
    call = lambda: variant.field(data, variance=np.ones(shape))  # noqa: E731
    refused(call, r"\bvariance\b", re.escape(str(shape)), r"\(6,\)", "one number")


@pytest.mark.parametrize("bad", [-1.0, -1e-12, np.nan, np.inf])
def test_variance_of_each_point(variant, data, bad):
    values = np.ones(6)
    values[[3, 5]] = bad
    call = lambda: variant.field(data, variance=values)  # noqa: E731
    refused(call, r"variance\[3\]", re.escape(str(bad)), "at least zero" if bad < 0 and np.isfinite(bad) else "finite")


@pytest.mark.parametrize("name", SQUARES)
def test_shape_of_covariances(variant, data, name):
    for shape in SQUARES[name]:
        call = lambda shape=shape: variant.field(data, **{name: np.ones(shape)})  # noqa: E731
        words = (rf"\b{name}\b", re.escape(str(shape)), r"\(3, 3\)")
        refused(call, *words, *([r"\(6, 3, 3\)"] if name == "covariance" else []))


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_covariances_must_be_finite(variant, data, name, bad):
    values = np.eye(3)
    values[1, 2] = values[2, 1] = bad
    refused(lambda: variant.field(data, **{name: values}), rf"{name}\[1, ?2\]", str(bad), "finite")
    if name == "covariance":
        values = np.stack([np.eye(3)] * 4 + [values, values])
        refused(lambda: variant.field(data, covariance=values), r"covariance\[4, ?1, ?2\]", str(bad), "finite")


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_covariances_must_be_symmetric(variant, data, name, size):
    values = np.eye(3)
    values[0, 1], values[1, 0] = 0.5, 0.4
    words = ("not symmetric", "accepted are symmetric positive")
    refused(lambda: variant.field(data, **{name: size * values}), rf"\b{name}\b", *words)
    if name == "covariance":
        values = size * np.stack([np.eye(3)] * 3 + [values, np.eye(3), values])
        refused(lambda: variant.field(data, covariance=values), r"covariance\[3\]", *words)


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_covariances_must_not_be_negative(variant, data, name, size):
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    for values in (np.diag([1.0, -1e-6, 2.0]), -np.eye(3), turned @ np.diag([1.0, -1e-3, 2.0]) @ turned.T):
        values = size * (values + values.T) / 2
        words = (r"eigenvalue -\d", "positive (semi-)?definite")
        refused(lambda values=values: variant.field(data, **{name: values}), rf"\b{name}\b", *words)
        if name == "covariance":
            several = np.stack([np.eye(3)] * 2 + [values, np.eye(3), values, np.eye(3)])
            refused(lambda several=several: variant.field(data, covariance=several), r"covariance\[2\]", *words)


def test_source_covariance_must_not_be_singular(variant, data):
    half = np.random.default_rng(1).standard_normal((3, 2))
    for values in (np.zeros((3, 3)), np.diag([1.0, 0.0, 2.0]), np.ones((3, 3)), half @ half.T, np.diag([1, 1e-20, 1])):
        call = lambda values=values: variant.field(data, source_covariance=values)  # noqa: E731
        refused(call, r"\bsource_covariance\b", "singular", "positive definite")


def test_one_way_to_say_how_wide(variant, data):
    eye = np.eye(3)
    for variance in (0.1, np.ones(6), np.arange(6.0)):
        call = lambda variance=variance: variant.field(data, variance=variance, covariance=eye)  # noqa: E731
        refused(call, r"\bvariance\b", r"\bcovariance\b", "both", "one of them")
    call = lambda: variant.field(data, source_variance=2.0, source_covariance=eye)  # noqa: E731
    refused(call, r"\bsource_variance\b", r"\bsource_covariance\b", "both", "one of them")
    # What is left at its default was not given
    variant.field(data, covariance=eye, source_covariance=eye, variance=0.0, source_variance=1.0)


@pytest.mark.parametrize("kind", NOT_REAL)
def test_widths_must_be_real(variant, data, kind):
    bad, both = NOT_REAL[kind], (TypeError, ValueError)
    words = (re.escape(str(bad.dtype)), "real|float")
    refused(lambda: variant.field(data, variance=bad[:, 0]), r"\bvariance\b", *words, error=both)
    for name in SQUARES:
        refused(lambda name=name: variant.field(data, **{name: bad[:3]}), rf"\b{name}\b", *words, error=both)
    field = variant.field(data)
    for name in PRODUCTS:
        refused(lambda name=name: getattr(field, name)(data, 0.5, bad), r"\bu\b", *words, error=both)


# ------------------------------------------------------------------------------------------------
# Directions


@pytest.mark.parametrize("name", PRODUCTS)
def test_shape_of_u(field, x, name):
    call = getattr(field, name)
    for shape in [(), (3,), (4,), (4, 2), (3, 3), (1, 3), (4, 3, 1), (12,), (0, 3)]:
        wrong = lambda shape=shape: call(x, 0.5, np.ones(shape))  # noqa: E731
        refused(wrong, r"\bu\b", re.escape(str(shape)), r"\(4, 3\)")
    refused(lambda: call(x[0], 0.5, x), r"\bu\b", r"\(4, 3\)", r"\(3,\)")
    refused(lambda: call(x, 0.5, None), r"\bu\b", error=(TypeError, ValueError))
    with pytest.raises(TypeError, match=r"\bu\b"):
        call(x, 0.5)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_u_must_be_finite(field, x, name, bad):
    u = np.ones((4, 3))
    u[3, 0] = u[1, 2] = bad
    call = getattr(field, name)
    refused(lambda: call(x, 0.5, u), r"u\[1, ?2\]", str(bad), "finite")
    refused(lambda: call(x[1], 0.5, u[1]), r"u\[2\]", str(bad), "finite")
    refused(lambda: call(np.full((4, 3), np.nan), 0.5, np.ones((4, 3))), r"x\[0, ?0\]")
    refused(lambda: call(x, 1.5, np.ones((4, 3))), r"\bt\b", "1.5")
    refused(lambda: call(x[:, :2], 0.5, np.ones((4, 2))), r"\bx\b", r"\(4, 2\)")


# ------------------------------------------------------------------------------------------------
# Labels, subsets, leaving out


LABELS = (7, 7, -2, 3, 3, 3)
CALLS = {
    "velocity": lambda field, x, **which: field.velocity(x, 0.5, **which),
    "call": lambda field, x, **which: field(x, 0.5, **which),
    "log_density": lambda field, x, **which: field.log_density(x, 0.5, **which),
    "divergence": lambda field, x, **which: field.divergence(x, 0.5, **which),
    "evaluate": lambda field, x, **which: field.evaluate(x, 0.5, ("entropy", "score"), **which),
    "jvp": lambda field, x, **which: field.jvp(x, 0.5, x, **which),
    "weights": lambda field, x, **which: field.weights(x, 0.5, **which),
    "top_k": lambda field, x, **which: field.top_k(x, 0.5, 1, **which),
}
BOTH = (TypeError, ValueError)


@pytest.fixture
def labelled(variant, data):
    return variant.field(data, labels=LABELS)


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), (1, 6), (), (0,)])
def test_shape_of_labels(variant, data, shape):
    call = lambda: variant.field(data, labels=np.ones(shape, int))  # noqa: E731
    refused(call, r"\blabels\b", re.escape(str(shape)), r"\(6,\)")


@pytest.mark.parametrize("name", ["labels", "label", "subset", "exclude"])
@pytest.mark.parametrize("kind", ["float64", "complex128", "object", "U1", "datetime64[s]"])
def test_choices_must_be_whole_numbers(variant, data, labelled, x, name, kind):
    count = {"labels": 6, "label": 4, "subset": 2, "exclude": 4}[name]
    bad = np.arange(count).astype(kind)
    words = (rf"\b{name}\b", re.escape(str(bad.dtype)), "whole")
    if name == "labels":
        refused(lambda: variant.field(data, labels=bad), *words, error=BOTH)
    else:
        refused(lambda: labelled.velocity(x, 0.5, **{name: bad}), *words, error=BOTH)


@pytest.mark.parametrize("name", ["labels", "label", "exclude"])
def test_choices_must_not_be_truth_values(variant, data, labelled, x, name):
    """Which would be 0 and 1; a mask is for `subset` alone."""
    count = {"labels": 6, "label": 4, "exclude": 4}[name]
    bad = np.ones(count, bool)
    if name == "labels":
        refused(lambda: variant.field(data, labels=bad), r"\blabels\b", "bool", "whole", error=BOTH)
    else:
        refused(lambda: labelled.velocity(x, 0.5, **{name: bad}), rf"\b{name}\b", "bool", "whole", error=BOTH)
        refused(lambda: labelled.velocity(x, 0.5, **{name: True}), rf"\b{name}\b", "bool", "whole", error=BOTH)


@pytest.mark.parametrize("name", ["label", "subset", "exclude"])
@pytest.mark.parametrize("bad", ["7", 7.0, {}, object(), [[1], [2, 3]]], ids=lambda v: type(v).__name__)
def test_choices_that_are_no_numbers(labelled, x, name, bad):
    refused(lambda: labelled.velocity(x, 0.5, **{name: bad}), rf"\b{name}\b", error=BOTH)


@pytest.mark.parametrize("call", CALLS)
def test_every_call_checks_its_choices(variant, data, labelled, x, call):
    def run(field=labelled, **which):
        return lambda: CALLS[call](field, x, **which)

    # Labels
    known = (r"known are -2, 3, 7|-2, 3,? (and|or) 7",)
    for bad in (0, 8, np.array([3, 7, 1, 3]), 2**40, -(2**40)):
        first = 1 if np.ndim(bad) else bad
        refused(run(label=bad), r"\blabel\b", str(first), *known)
    for shape in [(3,), (5,), (4, 1), (1,), (1, 4), (0,)]:
        refused(run(label=np.full(shape, 3)), r"\blabel\b", re.escape(str(shape)), r"\(4,\)")
    refused(run(variant.field(data), label=3), r"\blabel\b", "without labels", "None")
    # Subsets
    for bad in (6, -1, 10**9):
        refused(run(subset=[2, bad, 3]), r"\bsubset\b", str(bad), "0 to 5")
        refused(run(exclude=bad), r"\bexclude\b", str(bad), "0 to 5")
        refused(run(exclude=[2, 1, bad, 3]), r"\bexclude\b", str(bad), "0 to 5")
    for shape in [(5,), (7,), (6, 1), (), (1, 6)]:
        refused(run(subset=np.ones(shape, bool)), r"\bsubset\b", re.escape(str(shape)), r"\(6,\)", "mask")
    for shape in [(), (2, 1), (1, 2)]:
        refused(run(subset=np.ones(shape, int)), r"\bsubset\b", re.escape(str(shape)))
    refused(run(subset=[1, 2, 4, 2]), r"\bsubset\b", "twice", "different")
    for nothing in ([], np.zeros(0, int), np.zeros(6, bool)):
        refused(run(subset=nothing), r"\bsubset\b", "empty", "at least one")
    refused(run(subset=[1, 2], label=3), r"\bsubset\b", r"\blabel\b", "both", "one of them")
    # Leaving out
    for shape in [(3,), (5,), (4, 1), (1,), (0,)]:
        refused(run(exclude=np.zeros(shape, int)), r"\bexclude\b", re.escape(str(shape)), r"\(4,\)")
    refused(run(label=-2, exclude=2), r"\bexclude\b", "query 0", "no point")
    refused(run(label=[3, 3, -2, 7], exclude=[5, 3, 2, 0]), r"\bexclude\b", "query 2", "no point")
    refused(run(subset=[4], exclude=[1, 4, 0, 0]), r"\bexclude\b", "query 1", "no point")
    refused(run(variant.field(data[:1]), exclude=0), r"\bexclude\b", "no point")
    # The last point that has any mass, and a class that has none
    weights = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    weighted = variant.field(data, weights=weights, labels=LABELS)
    refused(run(weighted, label=3, exclude=3), r"\bexclude\b", "no point")
    refused(run(weighted, label=7), r"\blabel\b", "weight")
    refused(run(weighted, subset=[0, 1, 4]), r"\bsubset\b", "weight")


def test_k_must_be_among_the_points_that_count(labelled, x):
    for which, most in (({"label": 3}, 3), ({"subset": [1, 4]}, 2), ({"label": [3, 3, -2, 7]}, 1)):
        refused(lambda which=which, most=most: labelled.top_k(x, 0.5, most + 1, **which), r"\bk\b", f"1 to {most}")
        assert labelled.top_k(x, 0.5, most, **which)[0].shape == (4, most)


def test_choices_of_an_empty_batch(labelled):
    x = np.empty((0, 3))
    refused(lambda: labelled.velocity(x, 0.5, label=0), r"\blabel\b", "known")
    refused(lambda: labelled.velocity(x, 0.5, label=[3]), r"\blabel\b", r"\(1,\)", r"\(0,\)")
    refused(lambda: labelled.velocity(x, 0.5, exclude=6), r"\bexclude\b", "0 to 5")
    refused(lambda: labelled.velocity(x, 0.5, subset=[]), r"\bsubset\b", "empty")


def test_samples_check_their_label(variant, data, labelled):
    refused(lambda: labelled.sample(4, label=5), r"\blabel\b", "5", "known")
    refused(lambda: labelled.sample(4, label=[3, 3]), r"\blabel\b", r"\(2,\)", r"\(4,\)")
    refused(lambda: variant.field(data).sample(4, label=3), r"\blabel\b", "without labels")
    refused(lambda: labelled.sample(4, guidance=1.0), r"\bguidance\b", r"\blabel\b")
    refused(lambda: labelled.sample(4, label=3, guidance=np.nan), r"\bguidance\b", "nan", "finite")
    refused(lambda: labelled.sample(data[0], label=[3, 3]), r"\blabel\b")


# ------------------------------------------------------------------------------------------------
# Guidance


def test_guidance_needs_a_label(field, labelled, x):
    for call in (lambda: labelled.velocity(x, 0.5, guidance=1.0), lambda: field.velocity(x, 0.5, guidance=1.0)):
        refused(call, r"\bguidance\b", r"\blabel\b", "class")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_guidance_must_be_finite(labelled, x, bad):
    refused(lambda: labelled.velocity(x, 0.5, label=3, guidance=bad), r"\bguidance\b", str(bad), "finite")


@pytest.mark.parametrize("bad", ["1.0", None, [1.0, 2.0], 1j, np.ones(4), np.ones((1,)), {}], ids=repr)
def test_guidance_must_be_a_number(labelled, x, bad):
    refused(lambda: labelled.velocity(x, 0.5, label=3, guidance=bad), r"\bguidance\b", error=BOTH)


@pytest.mark.parametrize("name", ["log_density", "entropy", "effective_sample_size", "velocity_variance", "divergence"])
def test_guidance_of_scalars(labelled, x, name):
    vectors = ("velocity", "target_mean", "source_mean", "score")
    refused(lambda: getattr(labelled, name)(x, 0.5, label=3, guidance=1.0), r"\bguidance\b", name, *vectors)
    call = lambda: labelled.evaluate(x, 0.5, ("velocity", name), label=3, guidance=1.0)  # noqa: E731
    refused(call, r"\bguidance\b", name, *vectors)


def test_guidance_is_no_option_of_products_and_subsets(labelled, x):
    with pytest.raises(TypeError, match="guidance"):
        labelled.jvp(x, 0.5, x, label=3, guidance=1.0)
    with pytest.raises(TypeError, match="guidance"):
        labelled.weights(x, 0.5, label=3, guidance=1.0)
    refused(lambda: labelled.velocity(x, 0.5, subset=[1], guidance=1.0), r"\bguidance\b", r"\blabel\b")


def test_nothing_is_written_before_a_choice_is_refused(labelled, x):
    out = np.full((4, 3), 7.0)
    for which in ({"label": 0}, {"subset": []}, {"exclude": 6}, {"guidance": 1.0}):
        refused(lambda which=which: labelled.velocity(x, 0.5, out=out, **which), next(iter(which)))
    assert (out == 7.0).all()


# ------------------------------------------------------------------------------------------------
# Overrides by environment


def test_backend_override_is_honoured(monkeypatch, data, backend):
    monkeypatch.setenv("FASTFLOW_BACKEND", backend)
    assert ff.VelocityField(data).backend == backend


@pytest.mark.parametrize("bad", ["fortran", "NUMPY ", "native,numpy"])
def test_backend_override_that_is_unknown(monkeypatch, data, bad):
    monkeypatch.setenv("FASTFLOW_BACKEND", bad)
    call = lambda: ff.VelocityField(data)  # noqa: E731
    refused(call, "FASTFLOW_BACKEND", re.escape(bad), *ff.backends())


def test_backend_override_that_cannot_run(monkeypatch, data):
    missing = [name for name, info in ff.backends().items() if not info.available]
    if not missing:
        pytest.skip("every backend can run here")
    monkeypatch.setenv("FASTFLOW_BACKEND", missing[0])
    refused(lambda: ff.VelocityField(data), "FASTFLOW_BACKEND", missing[0])


def test_isa_override_that_is_unknown(monkeypatch, data, backend):
    monkeypatch.setenv("FASTFLOW_ISA", "avx9000")
    monkeypatch.setenv("FASTFLOW_BACKEND", backend)
    refused(lambda: ff.VelocityField(data), "FASTFLOW_ISA", "avx9000", backend, *ff.backends()[backend].isas)


def test_isa_override_beside_a_backend_as_argument(monkeypatch, data, backend):
    """The argument goes first: the environment is an error only where this backend has instruction sets."""
    monkeypatch.setenv("FASTFLOW_ISA", "avx9000")
    if ff.backends()[backend].isas:
        refused(lambda: ff.VelocityField(data, backend=backend), "FASTFLOW_ISA", "avx9000", backend)
    else:
        assert ff.VelocityField(data, backend=backend).isa is None


@pytest.mark.parametrize("bad", ["0", "-1", "many", "1.5", "2 threads", "²"])
def test_thread_override_that_is_no_number(monkeypatch, data, backend, bad):
    monkeypatch.setenv("FASTFLOW_NUM_THREADS", bad)
    call = lambda: ff.VelocityField(data, backend=backend)  # noqa: E731
    refused(call, "FASTFLOW_NUM_THREADS", re.escape(bad), "at least 1|>= 1")


def test_thread_override_is_honoured(monkeypatch, data, x, backend):
    want = ff.VelocityField(data, backend=backend).velocity(x, 0.5)
    monkeypatch.setenv("FASTFLOW_NUM_THREADS", "3")
    assert np.array_equal(ff.VelocityField(data, backend=backend).velocity(x, 0.5), want)


# ------------------------------------------------------------------------------------------------
# Input that is odd, but right


LAYOUTS = {
    "strided": lambda a: np.repeat(np.repeat(a, 2, axis=0), 3, axis=-1)[::2, ::3],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "fortran": np.asfortranarray,
    "byteswapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "misaligned": lambda a: misaligned(a),
    "readonly": lambda a: readonly(a),
    "nested": lambda a: a.tolist(),
}


def misaligned(a):
    buffer = np.empty(a.nbytes + 1, dtype=np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def readonly(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_layout_does_not_show(variant, layout, dtype, batch):
    if layout == "nested" and dtype == "float32":
        pytest.skip("a list has no dtype but float64")
    rng = np.random.default_rng(2)
    data = rng.standard_normal((40, 3)).astype(dtype)
    x = rng.standard_normal((batch, 3)).astype(dtype)
    t, weights = rng.random((batch, 1)), rng.random((40, 1))
    change = LAYOUTS[layout]
    plain = variant.field(data, weights=weights[:, 0])
    other = variant.field(change(data), weights=np.asarray(change(weights))[:, 0])
    want = plain.evaluate(x, t, quantities=QUANTITIES)
    for field, queries, when in (
        (other, x, t),
        (plain, change(x), t),
        (plain, x, change(t)),
        (other, change(x), np.asarray(change(t))[:, 0]),
    ):
        got = field.evaluate(queries, when, quantities=QUANTITIES)
        for name in QUANTITIES:
            assert np.array_equal(got[name], want[name]), name
        # The results are native, whatever the byte order of x.
        assert got["velocity"].dtype == np.dtype(dtype)
        assert got["velocity"].dtype.isnative
        assert np.array_equal(field.weights(queries, when), plain.weights(x, t))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_empty_batches(variant, data, dtype):
    field = variant.field(data.astype(dtype))
    x = np.empty((0, 3), dtype)
    for t in (0.0, 0.5, 1.0, np.empty(0), np.empty((0, 1))):
        names = [name for name in QUANTITIES if name != "score" or np.all(np.equal(t, 0.5))]
        for name, value in field.evaluate(x, t, quantities=names).items():
            vector = name in ("velocity", "target_mean", "source_mean", "score")
            assert value.shape == ((0, 3) if vector else (0,)), (name, t)
            assert not vector or value.dtype == np.dtype(dtype), (name, t)
        assert field.weights(x, t).shape == (0, 6)
        assert [a.shape for a in field.top_k(x, t, 2)] == [(0, 2), (0, 2)]
    out = np.empty((0, 3), dtype)
    assert field.velocity(x, 0.5, out=out) is out
    moments = field.moments(x, 0.5)
    merged = moments.merge(field.moments(x, 0.5))
    assert field.finish(merged, x, 0.5, ("velocity",))["velocity"].shape == (0, 3)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 1), (5,)])
def test_empty_batches_of_shaped_events(variant, shape):
    field = variant.field(np.zeros((2, *shape)))
    assert field.velocity(np.empty((0, *shape)), 0.5).shape == (0, *shape)


def test_scalar_events(variant):
    """Data of shape (N,): each event is a number, a batch is (B,)."""
    data = np.array([-1.0, 0.5, 2.0])
    x = np.array([0.1, 0.2])
    flat = variant.field(data)
    column = variant.field(data[:, None])
    want = column.evaluate(x[:, None], 0.5, quantities=QUANTITIES)
    got = flat.evaluate(x, 0.5, quantities=QUANTITIES)
    for name in QUANTITIES:
        assert got[name].shape == (2,)
        assert np.array_equal(got[name], want[name].reshape(2)), name
    assert flat.velocity(0.1, 0.5).shape == ()


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8", "bool", "float16"])
def test_other_storage_types(variant, dtype):
    """Exact conversions: the same numbers as from float64 data; whole-number x gives float64."""
    rng = np.random.default_rng(3)
    data = rng.integers(0, 2, size=(20, 3)).astype(dtype)
    x = rng.standard_normal((5, 3))
    want = variant.field(data.astype(float)).velocity(x, 0.4)
    np.testing.assert_allclose(variant.field(data).velocity(x, 0.4), want, rtol=1e-12)
    whole = rng.integers(0, 2, size=(5, 3)).astype(dtype)
    got = variant.field(data).velocity(whole, 0.4)
    assert got.dtype == (np.float16 if dtype == "float16" else np.float64)


def test_integers_as_times_and_weights(variant, data, x):
    field = variant.field(data, weights=[1, 2, 3, 4, 5, 6])
    same = variant.field(data, weights=np.arange(1.0, 7.0))
    assert np.array_equal(field.velocity(x, 0), same.velocity(x, 0.0))
    assert np.array_equal(field.velocity(x, True), same.velocity(x, 1.0))
    assert np.array_equal(field.velocity(x, [0, 1, 0, 1]), same.velocity(x, [0.0, 1.0, 0.0, 1.0]))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch", [1, 50])
def test_nothing_is_modified_or_shared(variant, dtype, batch):
    rng = np.random.default_rng(4)
    given = {
        "data": rng.standard_normal((30, 3)).astype(dtype),
        "weights": rng.random(30),
        "source_mean": rng.standard_normal(3),
        "x": rng.standard_normal((batch, 3)).astype(dtype),
        "t": rng.random(batch),
    }
    before = {name: value.copy() for name, value in given.items()}
    for value in given.values():
        value.flags.writeable = False
    x, t = given["x"], given["t"]
    field = variant.field(given["data"], weights=given["weights"], source_mean=given["source_mean"])
    for when in (t, 0.0, 1.0):
        names = [name for name in QUANTITIES if name != "score" or when is t]
        results = field.evaluate(x, when, quantities=names)
        results["weights"] = field.weights(x, when)
        results["indices"], results["largest"] = field.top_k(x, when, 2)
        for name, value in results.items():
            for other in given.values():
                assert not np.shares_memory(value, other), name
    moments = field.moments(x, t)
    half = moments.scaled(0.5)
    kept = {name: np.copy(getattr(half, name)) for name in type(half).__slots__}
    field.finish(half.merge(moments.scaled(0.5)), x, t, QUANTITIES)
    for name, value in kept.items():
        assert np.array_equal(getattr(half, name), value), name
    for name, value in given.items():
        assert np.array_equal(value, before[name]), name


def test_writing_to_a_result_changes_nothing_else(field, x):
    """No result is a view of another, or of something the field keeps."""
    first = field.evaluate(x, 0.5, quantities=QUANTITIES)
    kept = {name: value.copy() for name, value in first.items()}
    for name in QUANTITIES:
        first[name][...] = 0.0
        for other in QUANTITIES[QUANTITIES.index(name) + 1 :]:
            assert np.array_equal(first[other], kept[other]), (name, other)
    again = field.evaluate(x, 0.5, quantities=QUANTITIES)
    for name in QUANTITIES:
        assert np.array_equal(again[name], kept[name]), name


OUT_OF_MEMORY = """
    import resource, sys
    import numpy as np
    import fastflow as ff

    field = ff.VelocityField(np.zeros((200_000, 1), np.float32), backend=sys.argv[1])
    x = np.zeros((200_000, 1), np.float32)
    field.weights(x[:2], 0.5)
    field.velocity(x[:50], 0.5)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
    for call in (
        lambda: field.weights(x, 0.5),
        lambda: field.top_k(x, 0.5, 100_000),
        lambda: field.velocity(np.broadcast_to(np.float32(0), (2**30, 1)), 0.5),
    ):
        try:
            call()
        except MemoryError:
            pass
        else:
            raise SystemExit("no MemoryError")
    assert np.isfinite(field.velocity(x[:50], 0.5)).all()
    print("still alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_out_of_memory(backend, tmp_path):
    """In a process of its own with little memory left: MemoryError, and life goes on."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OUT_OF_MEMORY), backend],
        cwd=tmp_path,  # `python -c` looks for modules in its folder first: not in the sources, which have no extension
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "still alive", done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------
# Ranges: what squares of float64 can hold


def test_values_beyond_the_range(variant, data, x):
    large = data.copy()
    large[4, 1] = -1.5e160
    range_ = (r"-?1\.5e\+160", "1e\\+70")
    refused(lambda: variant.field(large), r"data\[4, ?1\]", *range_)
    refused(lambda: variant.field(data).velocity(large, 0.5), r"x\[4, ?1\]", *range_)
    refused(lambda: variant.field(data).jvp(data, 0.5, large), r"u\[4, ?1\]", *range_)
    refused(lambda: variant.field(data, source_mean=large[4]), r"source_mean\[1\]", *range_)
    refused(lambda: variant.field(data, scale=1e300), "scale", "e\\+(299|300)", "1e\\+70")
    refused(lambda: variant.field(data, offset=1e300), "offset", "1e\\+300", "1e\\+70")
    refused(lambda: variant.field(data).sample(np.full((2, 3), 1e71)), "num_or_x0", r"x\[0, ?0\]", "1e\\+70")
    tiny = 1e-75 * np.diag([1.0, 2.0, 3.0])
    refused(lambda: variant.field(data * 1e60, source_covariance=tiny), "data", "units of the source", "1e\\+70")


@pytest.mark.parametrize("bad", [5e-324, 1e-310, 9e-81, 1.1e80, 1e308])
def test_variances_beyond_the_range(variant, data, bad):
    words = (re.escape(str(bad)), "1e-80", r"1e\+80")
    refused(lambda: variant.field(data, source_variance=bad), r"\bsource_variance\b", *words)
    refused(lambda: variant.field(data, variance=bad), r"\bvariance\b", *words)
    several = np.array([0.0, 1.0, bad, 1.0, bad, 0.0])
    refused(lambda: variant.field(data, variance=several), r"variance\[2\]", *words)
    refused(lambda: variant.field(data, covariance=bad * np.eye(3)), r"\bcovariance\b", *words)
    matrices = several[:, None, None] * np.eye(3)
    refused(lambda: variant.field(data, covariance=matrices), r"covariance\[2\]", *words)
    refused(lambda: variant.field(data, source_covariance=bad * np.eye(3)), r"\bsource_covariance\b", *words)


@pytest.mark.parametrize("size", [2, 40])
@pytest.mark.parametrize("scale", [1e-70, 1.0, 1e70])
@pytest.mark.parametrize("reach", [1e-70, 1e70])
def test_nothing_is_nan_within_the_range(variant, size, scale, reach):
    rng = np.random.default_rng(6)
    data, x = rng.uniform(-scale, scale, (9, size)), rng.uniform(-reach, reach, (5, size))
    schedules = ("linear", ff.schedules.VE(1e-5, 1e9))
    for schedule, source, variance in itertools.product(schedules, (1e-80, 1e80), (0.0, 1e-80, 1e80)):
        field = variant.field(data, schedule=schedule, source_variance=source, variance=variance)
        for t in (0.0, 0.5, 1 - 2.0**-53, 1.0):
            singular = t == 1.0 and variance == 0.0 and schedule == "linear"
            names = [name for name in QUANTITIES if not (singular and name == "score")]
            for name, value in field.evaluate(x, t, names).items():
                assert not np.isnan(value).any(), (name, schedule, source, variance, t)
            np.testing.assert_allclose(field.weights(x, t).sum(axis=1), 1.0)


def test_points_without_mass_have_no_weight_at_the_end_of_the_range(variant):
    data = np.array([[1e70, 1e70], [-1e70, -1e70]])
    field = variant.field(data, weights=[0.0, 1.0], source_variance=1e-80)
    for t in (0.5, 1 - 2.0**-53, 1.0):
        np.testing.assert_array_equal(field.weights(data, t), [[0, 1], [0, 1]])
        np.testing.assert_array_equal(field.target_mean(data, t), data[[1, 1]])


def test_scale_is_not_applied_in_float32(variant, data):
    narrow = data.astype(np.float32)
    for scale in (1e-60, 1e50):
        field = variant.field(narrow, scale=scale)
        want = narrow.astype(np.float64).mean(axis=0) * scale
        np.testing.assert_allclose(field.target_mean(np.zeros(3), 0.0), want, rtol=1e-12)
        assert field.sample(2, steps=1).dtype == np.float64
    # Once in float64, and so right to half a unit in the last place of float32
    field = variant.field(narrow, scale=1 / 3, offset=-1.0)
    want = (narrow.astype(np.float64) / 3 - 1).astype(np.float32)
    np.testing.assert_array_equal(field.target_mean(want, 1.0), want)
    assert field.sample(2, steps=1).dtype == np.float32
    refused(lambda: variant.field(data * 1e-60, scale=1e-300), r"\bscale\b", "1e-300", "zero")
    assert (variant.field(data, scale=0.0).target_mean(x := np.ones(3), 0.5) == 0.0 * x).all()


# ------------------------------------------------------------------------------------------------
# Schedules of the caller's own


def test_a_schedule_without_a_path(variant, data, x):
    """alpha = beta = 0: neither source nor data are left."""
    schedule = ff.schedules.Custom(lambda t: t, lambda t: t, name="nowhere")
    words = ("schedule 'nowhere'", "alpha = beta = 0", r"t = 0\.0")
    for options in ({}, {"variance": 0.1}, {"variance": np.linspace(0.1, 1, 6)}):
        field = variant.field(data, schedule=schedule, **options)
        for t in (0.0, np.array([0.5, 0.0, 0.5, 0.5])):
            refused(lambda field=field, t=t: field.velocity(x, t), *words)
        refused(lambda field=field: field.sample(3), *words)


def test_a_schedule_beyond_the_range(variant, data, x):
    schedule = ff.schedules.Custom(lambda t: 1 - t, lambda t: 1e20 * t, d_beta=lambda t: 1e20)
    field = variant.field(data, schedule=schedule)
    assert np.isfinite(field.velocity(x, 1e-12)).all()
    assert ff.schedules.Custom(lambda t: 1 - t, lambda t: 1e9 * t)(0.0).d_beta == 1e9  # steep, but not infinite
    refused(lambda: field.velocity(x, 0.5), "schedule 'custom'", r"beta = 5e\+19", r"t = 0\.5", r"1e\+10")
    refused(lambda: field.velocity(x, np.full(4, 0.5)), "schedule 'custom'", r"beta = 5e\+19", r"t = 0\.5")
    field = variant.field(data, schedule=ff.schedules.VE(1e-100, 1.0))
    refused(lambda: field.velocity(x, 1.0), "schedule 've'", "variance 1e-200", r"t = 1\.0", "1e-115")


def odd(change):
    """The linear schedule, with something else returned."""

    class Odd(ff.schedules.Linear):
        name = "odd"

        def _formula(self, t, s, m):
            return change((s, t, -1.0, 1.0, t - 1.0))

    return Odd()


def own(change):
    """The same, of a class that has all to itself."""

    class Own(ff.schedules.Linear):
        name = "odd"

        def __call__(self, t):
            return change((1.0 - t, t, -1.0, 1.0, t - 1.0))

    return Own()


@pytest.mark.parametrize("kind", [odd, own])
@pytest.mark.parametrize("t", [0.5, np.full(4, 0.5)], ids=["number", "array"])
def test_a_schedule_class_may_return_anything(variant, data, x, kind, t):
    def run(change):
        return lambda: variant.field(data, schedule=kind(change)).velocity(x, t)

    def converted():
        schedule = kind(lambda c: (c[0], c[1] * np.nan, *c[2:]))
        return conversions.convert(x, x, t, given="velocity", wanted="target_mean", schedule=schedule)

    refused(converted, "odd", "beta", "nan", "finite")
    assert np.array_equal(run(lambda c: c)(), variant.field(data).velocity(x, t))
    for bad in (np.nan, np.inf, -np.inf):
        refused(run(lambda c, bad=bad: (c[0], bad * np.ones_like(t), *c[2:])), "odd", "beta", str(bad), "finite")
    refused(run(lambda c: (c[0], c[1], np.nan, *c[3:])), "odd", "d_alpha", "nan")
    for wrong in (lambda c: c[:4], lambda c: (*c, 1.0), lambda c: 3.0, lambda c: None):
        refused(run(wrong), "(?i)odd", error=TypeError)
    for wrong in ("a", 1j, np.ones(7), None):
        refused(run(lambda c, wrong=wrong: (c[0], wrong, *c[2:])), "(?i)odd", "beta", error=BOTH)


# ------------------------------------------------------------------------------------------------
# Names of quantities


def test_quantities_may_be_any_iterable(field, x):
    want = field.evaluate(x, 0.5, ("velocity", "entropy"))
    for names in (["velocity", "entropy"], (n for n in want), want.keys(), np.array(list(want))):
        got = field.evaluate(x, 0.5, names)
        assert list(got) == list(want)
        assert all(np.array_equal(got[name], want[name]) for name in want)
    moments = field.moments(x, 0.5)
    assert list(field.finish(moments, x, 0.5, (n for n in want))) == list(want)
    assert field.evaluate(x, 0.5, ()) == {}


@pytest.mark.parametrize("bad", [None, 3, 1.5, "score", b"score", [["score"]], [None], [b"score"], ("score", 3)])
def test_quantities_must_be_names(field, x, bad):
    moments = field.moments(x, 0.5)
    refused(lambda: field.evaluate(x, 0.5, bad), r"\bquantities\b", "sequence of names", error=TypeError)
    refused(lambda: field.finish(moments, x, 0.5, bad), r"\bquantities\b", "sequence of names", error=TypeError)


# ------------------------------------------------------------------------------------------------
# Arrays that are not what they seem


def test_masked_arrays(variant, data, x):
    field = variant.field(data, labels=np.arange(6))
    masked = np.ma.masked_array(data, data > 1.0)
    assert masked.mask.any()
    words = ("masked", "fill", "drop")
    refused(lambda: variant.field(masked), r"\bdata\b", *words, error=TypeError)
    refused(lambda: field.velocity(masked, 0.5), r"\bx\b", *words, error=TypeError)
    one = np.ma.masked_array(np.full(6, 0.5), [0, 1, 0, 0, 0, 0])
    whole = np.ma.masked_array(np.arange(6), [0, 1, 0, 0, 0, 0])
    refused(lambda: field.velocity(data, one), r"\bt\b", *words, error=TypeError)
    refused(lambda: field.velocity(data, np.ma.masked), r"\bt\b", *words, error=TypeError)
    refused(lambda: variant.field(data, weights=one), r"\bweights\b", *words, error=TypeError)
    refused(lambda: variant.field(data, variance=one), r"\bvariance\b", *words, error=TypeError)
    refused(lambda: variant.field(data, labels=whole), r"\blabels\b", *words, error=TypeError)
    refused(lambda: field.velocity(data, 0.5, label=whole), r"\blabel\b", *words, error=TypeError)
    refused(lambda: field.velocity(data, 0.5, subset=whole), r"\bsubset\b", *words, error=TypeError)
    refused(lambda: field.velocity(data, 0.5, exclude=whole), r"\bexclude\b", *words, error=TypeError)
    # Where nothing is masked they are arrays like others.
    plain = np.ma.masked_array(x, np.zeros(x.shape, bool))
    assert np.array_equal(field.velocity(plain, 0.5), field.velocity(x, 0.5))


def test_an_array_that_raises(field, variant):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("detach it first")

    refused(lambda: field.velocity(Broken(), 0.5), r"\bx\b", "RuntimeError: detach it first", error=TypeError)
    refused(lambda: variant.field(Broken()), r"\bdata\b", "detach it first", error=TypeError)


# ------------------------------------------------------------------------------------------------
# Moments from elsewhere


def changed(moments, **fields):
    return dataclasses.replace(moments, **fields)


@pytest.mark.parametrize("t", [0.5, 1.0])
def test_finish_checks_its_moments(field, x, t):
    moments = field.moments(x, t)
    for bad in (3, None, "moments", [moments], {}):
        refused(lambda bad=bad: field.finish(bad, x, t), r"\bmoments\b", "Moments", error=TypeError)
    for name, value in (("mean", x.astype(complex)), ("entropy", np.zeros(4, object)), ("residual", "text")):
        bad = changed(moments, **{name: value})
        refused(lambda bad=bad: field.finish(bad, x, t), rf"moments\.{name}", "dtype", error=TypeError)
    refused(lambda: field.finish(changed(moments, mean=np.zeros((4, 3), int)), x, t), "int64", "float", error=TypeError)
    refused(lambda: field.finish(changed(moments, log_total=None), x, t), r"moments\.log_total", error=TypeError)
    for value in (np.nan, np.inf, -np.inf):
        log_total = moments.log_total.copy()
        log_total[2] = value
        bad = changed(moments, log_total=log_total)
        refused(lambda bad=bad: field.finish(bad, x, t), r"moments\.log_total\[2\]", str(value), "finite")
        refused(lambda bad=bad: bad.merge(moments), r"log_total\[2\]", str(value), "finite")


def test_merge_and_scaled_check_their_input(field, x):
    moments = field.moments(x, 0.5)
    for bad in (moments, None, 3):
        refused(lambda bad=bad: ff.merge(bad), r"\bparts\b", "sequence of Moments", error=TypeError)
    for bad in (None, 3, "moments"):
        refused(lambda bad=bad: moments.merge(bad), "Moments", error=TypeError)
        refused(lambda bad=bad: ff.merge([moments, bad]), "Moments", error=TypeError)
    assert np.array_equal(ff.merge(m for m in [moments]).mean, moments.mean)
    for bad in ("a", None, 1j, True, np.True_, [[1.0], [1.0, 2.0]]):
        refused(lambda bad=bad: moments.scaled(bad), r"\bmass\b", "accepted", error=TypeError)
    for bad in (10**400, 10**5000, -1, 0, np.nan, [1.0, 2.0]):
        refused(lambda bad=bad: moments.scaled(bad), r"\bmass\b", "accepted")
    assert np.array_equal(moments.scaled(np.float32(1)).log_total, moments.log_total)


@pytest.mark.parametrize("t", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(4, 3), (3,)])
def test_results_share_no_memory_with_moments(field, x, t, shape):
    x = x if len(shape) == 2 else x[0]
    moments = field.moments(x, t)
    names = ("target_mean", "entropy", "effective_sample_size", "velocity", "source_mean", "log_density")
    for part in (moments, moments.merge(moments), moments.scaled(2.0)):
        kept = {name: np.copy(getattr(part, name)) for name in ("mean", "residual", "entropy", "log_total")}
        for value in field.finish(part, x, t, names).values():
            if np.ndim(value):
                value[...] = 77.0
        for name, value in kept.items():
            assert np.array_equal(getattr(part, name), value), name


# ------------------------------------------------------------------------------------------------
# Numbers of things


HUGE = [2**31, 1025, 10**30, 10**5000]


@pytest.mark.parametrize("bad", HUGE, ids=lambda n: f"{len(bin(n))} bits")
def test_num_threads_has_a_limit(variant, data, monkeypatch, bad):
    words = ("at least 1", "at most 1024")
    refused(lambda: variant.field(data, num_threads=bad), r"\bnum_threads\b", *words)
    digits = str(bad) if bad < 10**100 else "9" * 5000
    monkeypatch.setenv("FASTFLOW_NUM_THREADS", digits)
    refused(lambda: variant.field(data), "FASTFLOW_NUM_THREADS", *words)


def test_huge_counts(field, x):
    for bad in (10**30, 10**5000, np.iinfo(np.int64).max):
        refused(lambda bad=bad: field.sample(bad), "num_or_x0", "at least 0", "at most")
        refused(lambda bad=bad: field.sample(3, steps=bad), r"\bsteps\b", "at least 1", "at most")
        refused(lambda bad=bad: field.top_k(x, 0.5, bad), r"\bk\b", "from 1 to 6")
        refused(lambda bad=bad: field.velocity(x, bad), r"\bt\b", error=BOTH)
    for bad in (10**400, 10**5000):
        refused(lambda bad=bad: ff.schedules.Polynomial(n=bad), r"Polynomial: n\b", "digits")


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1e-3])
def test_tolerances(field, name, bad):
    refused(lambda: field.sample(3, method="dopri5", **{name: bad}), rf"\b{name} is {bad}", "finite number above zero")


# ------------------------------------------------------------------------------------------------
# The function, and where results go


def test_the_function_takes_what_the_method_takes(variant, data, x):
    options = {"backend": variant.backend, "labels": np.arange(6) % 2, "variance": 0.1}
    field = variant.field(data, labels=options["labels"], variance=0.1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    for which in ({"label": 1}, {"label": 1, "guidance": 2.0}, {"subset": [1, 2]}, {"exclude": 3}):
        np.testing.assert_allclose(ff.velocity(x, 0.5, data, **options, **which), field(x, 0.5, **which), **close)
    out = np.empty_like(x)
    assert ff.velocity(x, 0.5, data, out=out, **options) is out
    np.testing.assert_allclose(out, field(x, 0.5), **close)


def test_out_must_not_overlap(variant, x):
    store = np.random.default_rng(0).standard_normal((10, 3))
    field = variant.field(store[:6])
    for out in (store[2:6], store[4:8], store[:4][::-1]):
        refused(lambda out=out: field.velocity(x, 0.5, out=out), r"\bout\b", "shares memory", "data")
    before = store.copy()
    assert field.velocity(x, 0.5, out=store[6:]) is not None
    assert np.array_equal(store[:6], before[:6])
    flat = np.zeros(60)
    strided = np.lib.stride_tricks.as_strided
    for strides in ((0, 8), (8, 8), (16, 8), (24, 0), (-8, 8)):
        out = strided(flat[20:], (4, 3), strides)
        refused(lambda out=out: field.velocity(x, 0.5, out=out), r"\bout\b", "share memory")
    for strides in ((8, 32), (24, 8), (-24, 8), (48, 16), (24, -8)):  # rows, columns, and backwards
        out = strided(flat[20:], (4, 3), strides)
        want = field.velocity(x, 0.5)
        assert np.array_equal(field.velocity(x, 0.5, out=out), want)
    out = strided(flat, (4, 3), (24, 16))  # in each other's gaps
    assert np.array_equal(field.velocity(x, 0.5, out=out), want)


def test_numpy_may_be_set_to_raise(variant):
    """Weights that underflow are meant."""
    rng = np.random.default_rng(0)
    data, x = 50 * rng.standard_normal((40, 3)), 50 * rng.standard_normal((7, 3))
    field = variant.field(data, weights=np.arange(40.0))
    with np.errstate(all="raise"):
        for t in (0.0, 0.5, 0.97, 1 - 1e-9, 1.0):
            field.weights(x, t)
            field.top_k(x, t, 3)
            field.evaluate(x, t, [name for name in QUANTITIES if name != "score" or t < 1.0])
            ff.merge([field.moments(x, t), field.moments(x, t).scaled(1e-300)])
            field.posterior_sample(x, t)
        field.sample(3, steps=5)
