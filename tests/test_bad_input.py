"""What is refused, in which words, and what odd but valid input must not change."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastflow as ff

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
    call = lambda: ff.VelocityField(data, backend=backend)  # noqa: E731
    refused(call, "FASTFLOW_ISA", "avx9000", backend, *ff.backends()[backend].isas)


def test_isa_override_for_a_backend_without_any(monkeypatch, data):
    monkeypatch.setenv("FASTFLOW_ISA", "plain")
    call = lambda: ff.VelocityField(data, backend="numpy")  # noqa: E731
    refused(call, "FASTFLOW_ISA", "plain", "numpy")


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
def test_out_of_memory(backend):
    """In a process of its own with little memory left: MemoryError, and life goes on."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OUT_OF_MEMORY), backend],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "still alive", done.stdout + done.stderr
