"""t = 1 without variance: the nearest points by exact arithmetic, and what their ties share."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastflow as ff
from fastflow import limit


def field(data, **options):
    """What happens at t = 1 without variance is the same code for all backends."""
    return ff.VelocityField(np.asarray(data), backend="numpy", **options)


def brute_force(data, x, weights=None, alpha=0.0, beta=1.0, mean=None):
    """Weights of the points nearest to one query, with fractions."""
    mean = np.zeros(np.shape(x)) if mean is None else mean
    squares = []
    for point in np.asarray(data, float):
        terms = (
            Fraction(float(a)) - Fraction(alpha) * Fraction(float(m)) - Fraction(beta) * Fraction(float(b))
            for a, m, b in zip(np.ravel(x), np.ravel(mean), np.ravel(point), strict=True)
        )
        squares.append(sum(r * r for r in terms))
    masses = np.ones(len(squares)) if weights is None else np.asarray(weights, float)
    least = min(s for s, mass in zip(squares, masses, strict=True) if mass > 0.0)
    shares = np.array([mass * (s == least) for s, mass in zip(squares, masses, strict=True)])
    return shares / shares.sum()


# Ties and near ties ---------------------------------------------------------------------------------------------


def test_ties_share_by_mass(variant):
    at = {"x": [[0.0], [2.0], [3.0], [3.5]], "t": 1.0}
    got = variant.field(np.array([[-1.0], [1.0], [5.0]])).weights(**at)
    np.testing.assert_array_equal(got, [[0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    got = variant.field(np.array([[-1.0], [1.0], [5.0]]), weights=[1, 3, 1]).weights(**at)
    np.testing.assert_allclose(got, [[0.25, 0.75, 0], [0, 1, 0], [0, 0.75, 0.25], [0, 0, 1]], rtol=1e-15)


def test_tiny_spacing():
    data = np.array([[0.0, 0.0], [1e-50, 0.0], [2e-50, 0.0]])
    np.testing.assert_array_equal(field(data).weights(data, 1.0), np.eye(3))
    np.testing.assert_array_equal(field(data).log_density(data, 1.0), [np.inf] * 3)
    between = np.array([[1.2e-50, 0.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(field(data).weights(between, 1.0), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(field(data).log_density(between, 1.0), [-np.inf] * 2)
    data = data * 1e-150  # squares of these are zero
    np.testing.assert_array_equal(field(data).weights([[1.0, 0.0], [-3.0, 7.0]], 1.0), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(field(data).weights(data, 1.0), np.eye(3))
    np.testing.assert_array_equal(field(data).log_density(data, 1.0), [np.inf] * 3)


def test_large_values():
    data = np.array([[1e70, 0.0], [-1e70, 0.0], [0.0, 1.0], [0.0, -1.0]])
    np.testing.assert_array_equal(field(data).weights(data, 1.0), np.eye(4))
    np.testing.assert_array_equal(field(data).weights([0.0, 0.0], 1.0), [0, 0, 0.5, 0.5])
    np.testing.assert_array_equal(field(data[:2]).weights([0.0, 1e70], 1.0), [0.5, 0.5])
    np.testing.assert_array_equal(field(data[:2]).weights([1e-300, 1e70], 1.0), [1, 0])


def test_ties_that_rounding_breaks():
    """The distances of these are equal, though their differences, squares and sums round differently."""
    data = np.array([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.2, 0.3, 0.1], [0.1, 0.2, np.nextafter(0.3, 1)]]) + 0.0
    x = np.array([0.7, 0.7, 0.7])
    np.testing.assert_array_equal(field(data[:3]).weights(x, 1.0), [1 / 3] * 3)
    np.testing.assert_array_equal(field(data).weights(x, 1.0), [0, 0, 0, 1])
    np.testing.assert_array_equal(field(data).weights(-x, 1.0), [1 / 3, 1 / 3, 1 / 3, 0])


def test_points_without_mass_never_win(variant):
    data = np.array([[0.0], [1.0], [1.0], [4.0]])
    flow = variant.field(data, weights=[0.0, 1.0, 0.0, 1.0])
    x = np.array([[0.0], [1.0], [-1e6]])
    np.testing.assert_array_equal(flow.weights(x, 1.0), [[0, 1, 0, 0]] * 3)
    np.testing.assert_array_equal(flow.target_mean(x, 1.0), [[1.0]] * 3)
    np.testing.assert_array_equal(flow.log_density(x, 1.0), [-np.inf, np.inf, -np.inf])
    np.testing.assert_array_equal(flow.top_k(x, 1.0, 1)[0], [[1]] * 3)


def test_exclude_and_subset(variant):
    flow = variant.field(np.array([[0.0], [1.0], [3.0]]), labels=[0, 1, 1])
    x = np.array([[0.0], [2.0], [0.0]])
    np.testing.assert_array_equal(flow.weights(x, 1.0, exclude=0), [[0, 1, 0], [0, 0.5, 0.5], [0, 1, 0]])
    np.testing.assert_array_equal(flow.weights(x, 1.0, exclude=[1, 1, 2]), [[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(flow.weights(x, 1.0, subset=[0, 2]), [[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(flow.weights(x, 1.0, label=1), [[0, 1, 0], [0, 0.5, 0.5], [0, 1, 0]])
    np.testing.assert_array_equal(flow.target_mean(x, 1.0, exclude=0), [[1.0], [2.0], [1.0]])


def test_times_may_be_mixed(variant):
    rng = np.random.default_rng(0)
    data, x = rng.standard_normal((30, 3)), rng.standard_normal((5, 3))
    flow = variant.field(data)
    t = np.array([0.5, 1.0, 0.9, 1.0, 0.0])
    names = ("velocity", "target_mean", "source_mean", "entropy", "effective_sample_size", "log_density")
    together = flow.evaluate(x, t, names)
    for k in range(5):
        alone = flow.evaluate(x[k], t[k], names)
        for name in names:
            np.testing.assert_allclose(together[name][k], alone[name], rtol=1e-12, atol=1e-12)
    assert (together["entropy"][[1, 3]] == 0.0).all()


def test_points_without_variance_among_others():
    """On such a point it takes all of the weight; elsewhere it has none."""
    flow = field([[0.1], [0.2], [0.3], [0.1]], variance=[0.0, 1.0, 1.0, 0.0], weights=[1, 1, 1, 3])
    x = np.array([[0.1], [0.15], [np.nextafter(0.1, 1)]])
    got = flow.weights(x, 1.0)
    np.testing.assert_allclose(got[0], [0.25, 0, 0, 0.75], rtol=1e-15)
    assert (got[1:, [0, 3]] == 0.0).all()
    np.testing.assert_allclose(got[1:].sum(axis=1), 1.0)
    np.testing.assert_array_equal(flow.target_mean(x[:1], 1.0), [[0.1]])
    np.testing.assert_array_equal(np.isinf(flow.log_density(x, 1.0)), [True, False, False])
    np.testing.assert_allclose(flow.weights([0.1], 1.0, exclude=3), [1, 0, 0, 0])


# By exact arithmetic --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 12),
    size=st.sampled_from([1, 2, 3, 9]),
    kind=st.sampled_from(["whole", "near", "normal", "far", "mixed", "tiny"]),
    dtype=st.sampled_from(["float64", "float32"]),
    schedule=st.sampled_from(["linear", "cosine", "odd"]),
)
def test_random_data(seed, count, size, kind, dtype, schedule):
    """Lattices with many ties, points that differ in their last bits, and clouds seen from far away."""
    rng = np.random.default_rng(seed)
    lattice = rng.integers(-2, 3, size=(count, size)).astype(float)
    data = {
        "whole": lattice,
        "near": 0.1 + lattice * 2.0**-55,
        "normal": rng.standard_normal((count, size)),
        "far": 1e6 + lattice,
        "tiny": rng.standard_normal((count, size)) * 2.0 ** (-600 if dtype == "float64" else -120),
        "mixed": lattice * 10.0 ** rng.integers(-30, 30, size=(count, 1)),
    }[kind].astype(dtype)
    mean = rng.integers(-1, 2, size=size).astype(float)
    x = np.concatenate((data[:3], np.zeros((1, size)), rng.integers(-3, 4, (2, size)), 0.1 * lattice[:2]))
    if kind == "far":
        x = np.concatenate((x, x[:3] * 1e6))
    x = x.astype(dtype)
    weights = rng.integers(0, 4, size=count).astype(float)
    weights[rng.integers(count)] = 1.0
    alpha, beta = (2.0**-600, 0.7) if schedule == "odd" else (0.0, 1.0)
    if schedule == "odd":
        schedule = ff.schedules.Custom(
            lambda t: 1.0 - t * (1.0 - alpha), lambda t: beta * t, lambda t: -1.0, lambda t: beta
        )
        alpha = schedule(1.0).alpha
    flow = field(data, weights=weights, schedule=schedule, source_mean=mean)
    got = flow.weights(x, 1.0)
    for row, query in zip(got, x, strict=True):
        np.testing.assert_allclose(row, brute_force(data, query, weights, alpha, beta, mean), rtol=1e-14)
    found = flow.evaluate(x, 1.0, ("target_mean", "entropy", "effective_sample_size"))
    np.testing.assert_allclose(found["target_mean"], got @ data.astype(float), rtol=1e-6, atol=1e-70)
    np.testing.assert_allclose(found["effective_sample_size"], 1.0 / (got**2).sum(axis=1), rtol=1e-12)
    indices, largest = flow.top_k(x, 1.0, 1)
    np.testing.assert_array_equal(largest[:, 0], got.max(axis=1))
    np.testing.assert_array_equal(got[np.arange(len(x)), indices[:, 0]], got.max(axis=1))


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_blocks_do_not_show(monkeypatch, block):
    rng = np.random.default_rng(3)
    data = rng.integers(-1, 2, size=(300, 4)).astype(float)
    x = np.concatenate((rng.integers(-1, 2, size=(20, 4)).astype(float), rng.standard_normal((20, 4))))
    want = field(data).weights(x, 1.0)
    monkeypatch.setattr(limit, "LOGIT_BLOCK", block)
    np.testing.assert_array_equal(field(data).weights(x, 1.0), want)
    for row, query in zip(want[::7], x[::7], strict=True):
        np.testing.assert_allclose(row, brute_force(data, query), rtol=1e-14)


def test_many_copies_of_a_point():
    data = np.zeros((200_000, 3))
    got = field(data).evaluate(np.array([[0.0, 0, 0], [1e9, 1, 0.1]]), 1.0, ("target_mean", "entropy"))
    np.testing.assert_array_equal(got["target_mean"], 0.0)
    np.testing.assert_allclose(got["entropy"], math.log(len(data)), rtol=1e-12)


def test_a_query_far_from_many_points():
    """Nearly nothing is left of the differences of the distances, and all of it counts."""
    rng = np.random.default_rng(5)
    data = rng.standard_normal((5000, 20))
    x = np.zeros((1, 20))
    x[0, 0] = 1e18
    winner = int(np.argmax(data[:, 0]))
    assert field(data).top_k(x, 1.0, 1)[0].tolist() == [[winner]]


# Merging --------------------------------------------------------------------------------------------------------


def test_parts_of_a_tie_share_by_mass(variant):
    x = np.array([[0.0], [0.5], [-1.0]])
    left = variant.field(np.array([[-1.0]])).moments(x, 1.0).scaled(0.9)
    right = variant.field(np.array([[1.0], [4.0]]), weights=[0.1, 0.9]).moments(x, 1.0).scaled(1.0)
    merged = left.merge(right)
    whole = variant.field(np.array([[-1.0], [1.0], [4.0]]), weights=[0.9, 0.1, 0.9])
    names = ("velocity", "target_mean", "source_mean", "entropy", "effective_sample_size", "log_density")
    got, want = whole.finish(merged, x, 1.0, names), whole.evaluate(x, 1.0, names)
    for name in names:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-14)
    np.testing.assert_allclose(want["target_mean"], [[-0.8], [1.0], [-1.0]], rtol=1e-15)
    # In any order and grouping, and beside queries at other times.
    third = variant.field(np.array([[1.0]])).moments(x, 1.0).scaled(2.0)
    one, other = ff.merge([left, right, third]), third.merge(right).merge(left)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-15)
    np.testing.assert_allclose(one.tied, other.tied, rtol=1e-15)
    t = np.array([1.0, 0.5, 1.0])
    left = variant.field(np.array([[-1.0]])).moments(x, t).scaled(0.9)
    right = variant.field(np.array([[1.0]])).moments(x, t).scaled(0.1)
    got = whole.finish(left.merge(right), x, t, ("target_mean",))["target_mean"]
    want = variant.field(np.array([[-1.0], [1.0]]), weights=[0.9, 0.1]).target_mean(x, t)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_guidance_at_a_tie(variant):
    data = np.array([[-1.0], [1.0], [1.0]])
    flow = variant.field(data, labels=[0, 1, 1], weights=[3.0, 0.5, 0.5])
    x = np.array([[0.0]])
    # (1 + g) E[x_f | label 0] - g E[x_f] with E[x_f] = -3/4 + 1/4
    got = flow.evaluate(x, 1.0, ("target_mean",), label=0, guidance=1.0)["target_mean"]
    np.testing.assert_allclose(got, [[-1.5]], rtol=1e-15)
