"""What must hold for any input: how the work is cut up does not show in the results.

Comparisons are bit for bit where the package promises it (threads, splits and permutations of a
batch), and otherwise to the accuracy of the storage type.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
SCHEDULES = ("linear", "cosine", "vp", "optimal_transport")
# Two results, each right to 1e-12 or 1e-5.
ROUNDING = {"float64": 2e-12, "float32": 2e-5}

examples = settings(
    deadline=None,
    max_examples=25,
    # The variant fixture is the same object for all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(sorted(ROUNDING))
times = st.one_of(st.sampled_from([0.0, 1e-6, 0.5, 0.99]), st.floats(0.0, 0.99))


def make(seed: int, n: int, d: int, batch: int, t: float, dtype: str, schedule="linear"):
    """Data, unnormalised weights and queries on their way to the data."""
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((n, d))
    weights = rng.exponential(size=n)
    c = ff.schedules.get(schedule)(t)
    x = c.alpha * rng.standard_normal((batch, d)) + c.beta * data[rng.integers(n, size=batch)]
    return data.astype(dtype), weights, x.astype(dtype), rng


def same(a: dict, b: dict) -> None:
    """Equal bit for bit (NaN nowhere)."""
    for name in a:
        assert np.isfinite(a[name]).all(), name
        assert np.array_equal(a[name], b[name]), (name, np.abs(a[name] - b[name]).max())


def close(a: dict, b: dict, dtype: str, t: float, schedule="linear") -> None:
    """Equal to rounding, relative to the size of what the quantities are made of.

    ``x``, ``mu`` and their difference are of order one here; score and source mean are that
    difference times 1/D and alpha/D, the velocity times alpha'/alpha.
    """
    c = ff.schedules.get(schedule)(t)
    factor = {
        "score": 1 / c.alpha**2,
        "source_mean": 1 / c.alpha,
        "velocity": 1 + abs(c.d_alpha) + abs(c.alpha_d_alpha) / c.alpha**2,
    }
    for name in a:
        one, other = np.asarray(a[name], float), np.asarray(b[name], float)
        if one.ndim > 1:
            difference = np.linalg.norm(one - other, axis=1)
            size = np.linalg.norm(other, axis=1)
        else:
            difference, size = np.abs(one - other), np.abs(other)
        # 1e-3: a few units in the last place of float64, and less than one of float32.
        floor = max(1e-3 * factor.get(name, 1.0), 0.1) if one.ndim > 1 else 1.0
        bad = ~(difference <= ROUNDING[dtype] * np.maximum(size, floor))
        assert not bad.any(), (name, difference[bad], size[bad])


# ------------------------------------------------------------------------------------------------
# Splits of the data


@st.composite
def partitions(draw, n):
    """Cuts of range(n) into consecutive non-empty parts."""
    cuts = draw(st.lists(st.integers(1, n), max_size=5, unique=True))
    edges = sorted({0, n, *cuts})
    return list(itertools.pairwise(edges))


@examples
@given(
    data=st.data(),
    seed=seeds,
    n=st.integers(1, 60),
    d=st.integers(1, 9),
    batch=st.sampled_from([1, 3, 20]),
    t=times,
    dtype=dtypes,
    schedule=st.sampled_from(SCHEDULES),
    order=st.randoms(use_true_random=False),
)
def test_any_split_of_the_data_merges(variant, data, seed, n, d, batch, t, dtype, schedule, order):
    points, weights, x, rng = make(seed, n, d, batch, t, dtype, schedule)
    weights[rng.random(n) < 0.2] = 0.0
    weights[0] = 1.0
    parts = []
    for start, stop in data.draw(partitions(n)):
        mass = weights[start:stop].sum()
        if mass == 0.0:
            continue  # a part without mass is no field; it adds nothing
        part = variant.field(points[start:stop], weights=weights[start:stop], schedule=schedule)
        parts.append(part.moments(x, t).scaled(mass / weights.sum()))
    order.shuffle(parts)
    whole = variant.field(points, weights=weights, schedule=schedule)
    want = whole.evaluate(x, t, quantities=QUANTITIES)
    close(whole.finish(ff.merge(parts), x, t, QUANTITIES), want, dtype, t, schedule)
    # One at a time, left to right and right to left: the merge is associative.
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = left.merge(part)
    for part in parts[-2::-1]:
        right = part.merge(right)
    close(whole.finish(left, x, t, QUANTITIES), want, dtype, t, schedule)
    close(whole.finish(right, x, t, QUANTITIES), want, dtype, t, schedule)


@examples
@given(seed=seeds, t=times, dtype=dtypes, masses=st.lists(st.floats(1e-3, 1.0), min_size=3))
def test_merge_commutes_and_associates(variant, seed, t, dtype, masses):
    points, _, x, _ = make(seed, 12, 3, 4, t, dtype)
    field = variant.field(points)
    a, b, c = (
        variant.field(points[i : i + 4]).moments(x, t).scaled(mass) for i, mass in zip((0, 4, 8), masses, strict=False)
    )
    ways = (
        a.merge(b).merge(c),
        a.merge(b.merge(c)),
        c.merge(a).merge(b),
        ff.merge([b, c, a]),
    )
    results = [field.finish(m, x, t, QUANTITIES) for m in ways]
    for other in results[1:]:
        close(other, results[0], dtype, t)


def test_finish_of_own_moments_is_evaluate(variant):
    points, weights, x, _ = make(1, 50, 5, 20, 0.6, "float64")
    field = variant.field(points, weights=weights)
    got = field.finish(field.moments(x, 0.6), x, 0.6, QUANTITIES)
    same(got, field.evaluate(x, 0.6, quantities=QUANTITIES))


# At a distance of 1000 the whole's centre lies 500 from the near points. Offsets from it round by half a unit in the
# last place of 500, which moves a float64 velocity at t = 0.99 by 6e-12: a defect of centring at the mean. The native
# centre is a median, and lies in the part that the queries are near.
@pytest.mark.parametrize("gap", [30, 1000])
@pytest.mark.parametrize("dtype", sorted(ROUNDING))
def test_parts_with_nothing_near(variant, dtype, gap, request):
    """A part whose weights all underflow beside another's adds nothing, and no NaN."""
    if dtype == "float64" and gap == 1000 and variant.backend != "native":
        reason = "float64 offsets from one global centre, the mean, lose digits"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    rng = np.random.default_rng(0)
    near = rng.standard_normal((20, 3)).astype(dtype)
    far = (rng.standard_normal((20, 3)) + gap).astype(dtype)
    x = near[:5] * np.asarray(0.99, dtype)
    a = variant.field(near).moments(x, 0.99).scaled(0.5)
    b = variant.field(far).moments(x, 0.99).scaled(0.5)
    whole = variant.field(np.concatenate([near, far]))
    want = whole.evaluate(x, 0.99, quantities=QUANTITIES)
    close(whole.finish(a.merge(b), x, 0.99, QUANTITIES), want, dtype, 0.99)
    close(whole.finish(b.merge(a), x, 0.99, QUANTITIES), want, dtype, 0.99)


# ------------------------------------------------------------------------------------------------
# Threads and batches


@examples
@given(
    seed=seeds,
    n=st.sampled_from([1, 7, 300, 2500]),
    d=st.sampled_from([1, 2, 5, 33]),
    batch=st.sampled_from([1, 2, 9, 40]),
    t=times,
    dtype=dtypes,
)
def test_thread_count_does_not_show(variant, seed, n, d, batch, t, dtype):
    points, weights, x, _ = make(seed, n, d, batch, t, dtype)
    results = [
        variant.field(points, weights=weights, num_threads=k).evaluate(x, t, quantities=QUANTITIES)
        for k in (1, 2, 3, 4)
    ]
    for other in results[1:]:
        same(results[0], other)


@pytest.mark.parametrize("dtype", sorted(ROUNDING))
@pytest.mark.parametrize("batch", [1, 5, 64, 200])
def test_thread_count_does_not_show_when_all_have_work(variant, dtype, batch):
    """Enough data that every driver splits it: the more queries, the fewer points that takes."""
    points, weights, x, _ = make(5, 20_011 if batch < 64 else 6_007, 6, batch, 0.7, dtype)
    results = []
    for k in (1, 2, 3, 4):
        field = variant.field(points, weights=weights, num_threads=k)
        results.append(field.evaluate(x, 0.7, quantities=QUANTITIES))
        results[-1]["weights"] = field.weights(x, 0.7)
    for other in results[1:]:
        same(results[0], other)


@examples
@given(
    data=st.data(),
    seed=seeds,
    n=st.sampled_from([1, 31, 500]),
    d=st.sampled_from([1, 3, 17]),
    batch=st.integers(2, 80),
    t=times,
    dtype=dtypes,
    per_query=st.booleans(),
)
def test_splits_of_a_batch_do_not_show(variant, data, seed, n, d, batch, t, dtype, per_query):
    """Bit for bit where a piece is served by the kernel that serves the whole. That for few dimensions serves all small
    batches; of more dimensions it depends on more than their number which do."""
    points, weights, x, rng = make(seed, n, d, batch, t, dtype)
    field = variant.field(points, weights=weights)
    when = t * rng.random(batch) if per_query else np.full(batch, t)
    whole, small = field.evaluate(x, when, quantities=QUANTITIES), field._parts.whole.prepared.small_batch
    pieces = data.draw(partitions(batch))
    for a, b in pieces:
        piece = field.evaluate(x[a:b], when[a:b], quantities=QUANTITIES)
        part = {name: value[a:b] for name, value in whole.items()}
        if min(b - a, batch) > small or (d < 10 and batch <= small):
            same(piece, part)
        else:
            close(piece, part, dtype, t)


@pytest.mark.parametrize("stored", ["float32", "float64", "uint8", "float16"])
@pytest.mark.parametrize("d", [12, 100, 301])
def test_width_of_a_batch_does_not_show(variant, d, stored):
    """Rows of more dimensions than are multiplied at a time; batches that leave panels of queries half empty or not."""
    rng = np.random.default_rng(d)
    values = rng.integers(0, 255, (531, d))
    data = values.astype(stored)
    field = variant.field(data, scale=1 / 64, offset=-2.0)
    assert field._parts.whole.prepared.small_batch < 9
    for dtype in ("float32", "float64"):
        x = (0.3 * (values[:97] / 64 - 2) + 0.7 * rng.standard_normal((97, d))).astype(dtype)
        whole = field.evaluate(x, 0.3, quantities=QUANTITIES)
        for batch in (9, 13, 16, 17, 24, 32, 33, 47, 49, 64, 65):
            same(
                field.evaluate(x[:batch], 0.3, quantities=QUANTITIES),
                {name: value[:batch] for name, value in whole.items()},
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["shared", "variance", "covariance", "covariances"])
def test_width_of_a_batch_does_not_show_in_the_second_order(variant, kind, dtype):
    rng = np.random.default_rng(5)
    data, x, u = rng.standard_normal((211, 5)), rng.standard_normal((35, 5)), rng.standard_normal((35, 5))
    x, u = x.astype(dtype), u.astype(dtype)
    factors = 0.3 * rng.standard_normal((211, 5, 5))
    options = {
        "shared": {},
        "variance": {"variance": rng.uniform(0.1, 0.5, 211)},
        "covariance": {"covariance": np.diag(rng.uniform(0.1, 0.5, 5))},
        "covariances": {"covariance": factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(5)},
    }
    field = variant.field(data.astype(dtype), **options[kind])
    for t in (0.4, rng.uniform(0.2, 0.8, 35)):
        whole = {name: field.evaluate(x, t, quantities=(name,))[name] for name in ("divergence", "velocity_variance")}
        product = field.jvp(x, t, u)
        for batch in (1, 2, 3, 4, 5, 8, 9, 12, 16, 17, 20):
            some = t if np.ndim(t) == 0 else t[:batch]
            for name, value in whole.items():
                assert np.array_equal(field.evaluate(x[:batch], some, quantities=(name,))[name], value[:batch])
            assert np.array_equal(field.jvp(x[:batch], some, u[:batch]), product[:batch])


@examples
@given(
    seed=seeds,
    n=st.sampled_from([1, 31, 500]),
    d=st.sampled_from([1, 3, 17]),
    batch=st.integers(1, 40),
    t=times,
    dtype=dtypes,
)
def test_order_of_queries_does_not_show(variant, seed, n, d, batch, t, dtype):
    points, weights, x, rng = make(seed, n, d, batch, t, dtype)
    field = variant.field(points, weights=weights)
    order = rng.permutation(batch)
    when = rng.random(batch) * t
    straight = field.evaluate(x, when, quantities=QUANTITIES)
    mixed = field.evaluate(x[order], when[order], quantities=QUANTITIES)
    same({name: value[order] for name, value in straight.items()}, mixed)


@examples
@given(seed=seeds, batch=st.sampled_from([1, 3, 20]), dtype=dtypes, t=times)
def test_company_of_quantities_does_not_show(variant, seed, batch, dtype, t):
    points, weights, x, _ = make(seed, 40, 4, batch, t, dtype)
    field = variant.field(points, weights=weights)
    together = field.evaluate(x, t, quantities=QUANTITIES)
    same(together, field.evaluate(x, t, quantities=QUANTITIES[::-1]))
    same(together, {name: getattr(field, name)(x, t) for name in QUANTITIES})
    assert np.array_equal(field(x, t), together["velocity"])


@examples
@given(seed=seeds, batch=st.sampled_from([1, 20]), dtype=dtypes, t=times)
def test_one_time_for_all_is_a_time_for_each(variant, seed, batch, dtype, t):
    points, weights, x, _ = make(seed, 40, 4, batch, t, dtype)
    field = variant.field(points, weights=weights)
    scalar = field.evaluate(x, t, quantities=QUANTITIES)
    close(field.evaluate(x, np.full(batch, t), quantities=QUANTITIES), scalar, dtype, t)


def test_the_same_call_twice(variant):
    points, weights, x, _ = make(2, 5000, 7, 33, 0.4, "float32")
    field = variant.field(points, weights=weights)
    first = field.evaluate(x, 0.4, quantities=QUANTITIES)
    for _ in range(5):
        same(first, field.evaluate(x, 0.4, quantities=QUANTITIES))


# ------------------------------------------------------------------------------------------------
# Symmetries of the problem


@examples
@given(seed=seeds, n=st.integers(1, 70), batch=st.sampled_from([1, 20]), t=times, dtype=dtypes)
def test_order_of_data(variant, seed, n, batch, t, dtype):
    points, weights, x, rng = make(seed, n, 4, batch, t, dtype)
    order = rng.permutation(n)
    straight = variant.field(points, weights=weights)
    mixed = variant.field(points[order], weights=weights[order])
    want = straight.evaluate(x, t, quantities=QUANTITIES)
    close(mixed.evaluate(x, t, quantities=QUANTITIES), want, dtype, t)
    one, other = straight.weights(x, t)[:, order], mixed.weights(x, t)
    assert np.abs(one - other).sum(axis=1).max() <= ROUNDING[dtype]


@examples
@given(seed=seeds, power=st.integers(-8, 8), batch=st.sampled_from([1, 20]), t=times, dtype=dtypes)
def test_scaling_everything(variant, seed, power, batch, t, dtype):
    """Lengths in another unit: a power of two, so that the inputs stay exact."""
    points, weights, x, rng = make(seed, 30, 3, batch, t, dtype)
    unit = 2.0**power
    mean = rng.standard_normal(3).astype(np.float32).astype(float)
    one = variant.field(points, weights=weights, variance=0.02, source_mean=mean)
    other = variant.field(
        points * np.asarray(unit, dtype),
        weights=weights,
        variance=0.02 * unit**2,
        source_mean=mean * unit,
        source_variance=unit**2,
    )
    want = one.evaluate(x, t, quantities=QUANTITIES)
    got = other.evaluate(x * np.asarray(unit, dtype), t, quantities=QUANTITIES)
    for name in ("velocity", "target_mean", "source_mean"):
        got[name] = got[name] / unit
    got["score"] = got["score"] * unit
    got["log_density"] = got["log_density"] + 3 * np.log(unit)
    close(got, want, dtype, t)


@examples
@given(seed=seeds, shift=st.integers(-1000, 1000), batch=st.sampled_from([1, 20]), dtype=dtypes)
def test_moving_the_data(variant, seed, shift, batch, dtype):
    """Data moved by a, queries by beta a: the velocity moves by beta' a. All inputs are exact."""
    rng = np.random.default_rng(seed)
    t = 0.5
    points = rng.integers(-1024, 1024, size=(30, 3)) / 512.0
    x = rng.integers(-1024, 1024, size=(batch, 3)) / 512.0
    one = variant.field(points.astype(dtype))
    other = variant.field((points + 2 * shift).astype(dtype))
    names = ("source_mean", "score", "log_density", "entropy", "effective_sample_size")
    want = one.evaluate(x.astype(dtype), t, quantities=names)
    got = other.evaluate((x + shift).astype(dtype), t, quantities=names)
    close(got, want, dtype, t)


@examples
@given(seed=seeds, batch=st.sampled_from([1, 20]), t=times, dtype=dtypes)
def test_a_weight_is_a_multiplicity_and_zero_is_absence(variant, seed, batch, t, dtype):
    points, _, x, rng = make(seed, 20, 3, batch, t, dtype)
    counts = rng.integers(0, 4, size=20)
    counts[3] = 2
    repeated = variant.field(np.repeat(points, counts, axis=0))
    weighted = variant.field(points, weights=counts)
    # Entropy and effective sample size count repeated points apart.
    names = ("velocity", "target_mean", "source_mean", "score", "log_density")
    want = repeated.evaluate(x, t, quantities=names)
    close(weighted.evaluate(x, t, quantities=names), want, dtype, t)
    assert (weighted.weights(x, t)[:, counts == 0] == 0.0).all()
    present = variant.field(points[counts > 0], weights=counts[counts > 0])
    want = present.evaluate(x, t, quantities=QUANTITIES)
    close(weighted.evaluate(x, t, quantities=QUANTITIES), want, dtype, t)


@examples
@given(seed=seeds, batch=st.sampled_from([1, 20]), t=times, dtype=dtypes)
def test_size_of_weights_does_not_matter(variant, seed, batch, t, dtype):
    points, weights, x, _ = make(seed, 20, 3, batch, t, dtype)
    want = variant.field(points, weights=weights).evaluate(x, t, quantities=QUANTITIES)
    for factor in (1e-200, 1e200):
        field = variant.field(points, weights=weights * factor)
        close(field.evaluate(x, t, quantities=QUANTITIES), want, dtype, t)


def test_weights_sum_to_one(variant):
    points, weights, x, _ = make(4, 200, 3, 30, 0.5, "float32")
    field = variant.field(points, weights=weights)
    for t in (0.0, 0.5, 0.999, 1.0):
        w = field.weights(x, t)
        assert (w >= 0).all()
        assert np.abs(w.sum(axis=1) - 1).max() < 1e-6


def test_no_state_between_calls(variant):
    """A field evaluated elsewhere in between gives the same bits."""
    points, weights, x, _ = make(9, 100, 5, 10, 0.5, "float64")
    field = variant.field(points, weights=weights)
    first = field.evaluate(x, 0.5, quantities=QUANTITIES)
    field.evaluate(x[:3] + 50, 0.999, quantities=QUANTITIES)
    variant.field(points[:7]).velocity(x, 0.1)
    same(first, field.evaluate(x, 0.5, quantities=QUANTITIES))
