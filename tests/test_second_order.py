"""Divergence, Jacobian products, velocity variance: against differences of first-order quantities, and each other.

Derivatives are central differences of sixth order, as in test_continuity, of the package's own velocity and
denoiser: right to about 1e-9 where the smallest scale is above 0.03. The identities among the second-order
quantities (docs/theory.md, sections 10 and 18) hold to rounding: with ``omega = alpha beta' - alpha' beta``,

- ``J`` is symmetric where the source is isotropic, and ``J^T = S_i^-1 J S_i`` for a source of covariance ``S_i``;
- ``J = (alpha' / alpha) I + beta / (alpha omega) Cov(v_s | x) S_i^-1``, and the trace of that;
- ``Cov(v_s | x) = (omega / alpha)^2 Cov(x_f | x)``;
- ``d E[x_f | x] / dx = (beta / alpha^2) Cov(x_f | x) S_i^-1``.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from test_continuity import FACTORS, OFFSETS, SCHEDULES, STEP
from test_models import MODELS, spread_matrices

import fastflow as ff

TOLERANCE = 1e-8
ROUNDING = {"float64": 1e-11, "float32": 1e-4}
PRODUCTS = ("jvp", "vjp", "target_covariance_product")
TIMES = (0.1, 0.35, 0.6)


def make(variant, model, d=3, n=7, seed=0, schedule="linear", dtype="float64", **more):
    """A field and queries on their way to its points."""
    rng = np.random.default_rng(seed)
    data, options = rng.standard_normal((n, d)).astype(dtype), MODELS[model](rng, n, d)
    options |= {"weights": rng.exponential(size=n), "source_mean": rng.standard_normal(d), "schedule": schedule}
    if "source_covariance" not in options:
        options["source_variance"] = 1.7
    field = variant.field(data, **options, **more)
    x = 0.8 * rng.standard_normal((5, d)) + 0.5 * data[:5]
    u = rng.standard_normal((5, d))
    u /= np.linalg.norm(u, axis=1, keepdims=True)  # so that a step along it is one
    return field, x.astype(dtype), u.astype(dtype), options


def source_covariance(options, d):
    return options.get("source_covariance", options.get("source_variance", 1.0) * np.eye(d))


def matrix(product, x, t, **which):
    """The (B, D, D) matrix of a product, a column at a time."""
    d = x.shape[1]
    columns = [product(x, t, np.broadcast_to(axis, x.shape), **which) for axis in np.eye(d, dtype=x.dtype)]
    return np.stack(columns, axis=2)


def difference(f, x, u):
    """The derivative of a function of queries along u, of each."""
    moved = x[None] + STEP * OFFSETS[:, None, None] * u
    values = f(moved.reshape(-1, x.shape[1]))
    return np.tensordot(FACTORS, values.reshape(6, *x.shape), 1)


def off(got, want):
    """The error of each query relative to one plus the size of the whole."""
    axes = tuple(range(1, np.ndim(want)))
    return np.max(np.abs(got - want).max(axis=axes) / (1.0 + np.abs(want).max(axis=axes)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("model", ["some_zero", "shared", "each", "source_bare", "source_points", "source_each"])
def test_products_are_derivatives(variant, model, schedule):
    field, x, u, options = make(variant, model, schedule=schedule)
    inverse = np.linalg.inv(source_covariance(options, 3))
    for t in TIMES:
        c = schedule(t)
        velocity, denoiser = partial(field.velocity, t=t), partial(field.target_mean, t=t)
        jacobian = np.stack([difference(velocity, x, axis) for axis in np.eye(3)], axis=2)
        assert off(field.divergence(x, t), np.trace(jacobian, axis1=1, axis2=2)) <= TOLERANCE, t
        assert off(field.jvp(x, t, u), difference(velocity, x, u)) <= TOLERANCE, t
        assert off(field.vjp(x, t, u), np.einsum("bij,bi->bj", jacobian, u)) <= TOLERANCE, t
        # The slope of the denoiser along S_i u is the covariance times u
        product = c.beta / c.alpha**2 * field.target_covariance_product(x, t, u @ inverse)
        assert off(product, difference(denoiser, x, u)) <= TOLERANCE * (1.0 + c.beta / c.alpha**2), t


@pytest.mark.parametrize("dtype", sorted(ROUNDING))
@pytest.mark.parametrize("model", MODELS)
def test_symmetries(variant, model, dtype):
    field, x, _, options = make(variant, model, dtype=dtype)
    source = source_covariance(options, 3)
    for t in (0.0, 0.4, 0.9):
        jacobian, transposed, covariance = (matrix(getattr(field, name), x, t) for name in PRODUCTS)
        tolerance = ROUNDING[dtype]
        assert off(np.swapaxes(transposed, 1, 2), jacobian) <= tolerance
        assert off(np.linalg.inv(source) @ jacobian @ source, transposed) <= 10 * tolerance
        if "source_covariance" not in options:
            assert off(np.swapaxes(jacobian, 1, 2), jacobian) <= tolerance
            u = np.ones_like(x)
            assert off(field.vjp(x, t, u), field.jvp(x, t, u)) <= tolerance
        assert off(np.swapaxes(covariance, 1, 2), covariance) <= tolerance
        assert (np.linalg.eigvalsh(covariance.astype(float))[:, 0] >= -tolerance * (1 + np.abs(covariance).max())).all()
        assert off(field.divergence(x, t), np.trace(jacobian, axis1=1, axis2=2)) <= tolerance


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("model", MODELS)
def test_identities(variant, model, schedule):
    field, x, _, options = make(variant, model, schedule=schedule)
    source = source_covariance(options, 3)
    for t in TIMES:
        c = schedule(t)
        omega = c.alpha * c.d_beta - c.d_alpha * c.beta
        variance = field.velocity_variance(x, t)
        of_target = matrix(field.target_covariance_product, x, t)
        assert off(variance, (omega / c.alpha) ** 2 * np.trace(of_target, axis1=1, axis2=2)) <= 1e-10
        across = (omega / c.alpha) ** 2 * of_target @ np.linalg.inv(source)
        want = c.d_alpha / c.alpha * np.eye(3) + c.beta / (c.alpha * omega) * across
        assert off(matrix(field.jvp, x, t), want) <= 1e-10
        divergence = field.divergence(x, t)
        assert off(divergence, np.trace(want, axis1=1, axis2=2)) <= 1e-10
        if "source_covariance" not in options:
            s = options["source_variance"]
            by_variance = 3 * c.d_alpha / c.alpha + c.beta / (c.alpha * omega * s) * variance
            assert off(divergence, by_variance) <= 1e-10


@pytest.mark.parametrize("model", ["some_zero", "each", "source_shared"])
def test_products_are_linear(variant, model):
    field, x, u, _ = make(variant, model)
    other = np.random.default_rng(9).standard_normal(x.shape)
    for name in PRODUCTS:
        product = getattr(field, name)
        assert off(product(x, 0.4, u - 3.0 * other), product(x, 0.4, u) - 3.0 * product(x, 0.4, other)) <= 1e-12
        assert (product(x, 0.4, np.zeros_like(x)) == 0.0).all()
        # Any size: no step, as a difference would have
        for size in (1e-60, 1e60):
            np.testing.assert_allclose(product(x, 0.4, size * u) / size, product(x, 0.4, u), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", sorted(ROUNDING))
@pytest.mark.parametrize("model", ["wide_some_zero", "each", "source_points"])
def test_shapes_and_types(variant, model, dtype):
    """Batches, events without a batch axis, times for each, directions of another type."""
    field, x, u, _ = make(variant, model, dtype=dtype)
    t = np.linspace(0.1, 0.8, len(x))
    for name in PRODUCTS:
        product = getattr(field, name)
        whole = product(x, t, u)
        assert whole.shape == x.shape
        assert whole.dtype == x.dtype
        assert np.array_equal(whole, product(x, t[:, None], u))
        for i in range(len(x)):
            one = product(x[i], t[i], u[i])
            assert one.shape == x[i].shape
            assert off(one[None], whole[i : i + 1]) <= ROUNDING[dtype]
        ones = np.ones(x.shape, dtype=np.int8)
        assert np.array_equal(product(x, t, ones), product(x, t, ones.astype(dtype)))
        assert np.array_equal(product(x, t, np.asfortranarray(u)), whole)
        assert product(x[:0], 0.5, u[:0]).shape == (0, 3)
    for name in ("divergence", "velocity_variance"):
        whole = getattr(field, name)(x, t)
        assert whole.shape == (len(x),)
        assert whole.dtype == np.float64
        for i in range(len(x)):
            one = getattr(field, name)(x[i], t[i])
            assert np.shape(one) == ()
            assert off(np.reshape(one, 1), whole[i : i + 1]) <= ROUNDING[dtype]
        assert getattr(field, name)(x[:0], 0.5).shape == (0,)


def test_shaped_events(variant):
    rng = np.random.default_rng(1)
    data, x, u = rng.standard_normal((9, 2, 3)), rng.standard_normal((4, 2, 3)), rng.standard_normal((4, 2, 3))
    variances = rng.uniform(0.0, 1.0, 9)
    shaped, flat = variant.field(data, variance=variances), variant.field(data.reshape(9, 6), variance=variances)
    for name in PRODUCTS:
        got = getattr(shaped, name)(x, 0.4, u)
        assert got.shape == x.shape
        assert np.array_equal(got.reshape(4, 6), getattr(flat, name)(x.reshape(4, 6), 0.4, u.reshape(4, 6)))
    for name in ("divergence", "velocity_variance"):
        assert np.array_equal(getattr(shaped, name)(x, 0.4), getattr(flat, name)(x.reshape(4, 6), 0.4))


def test_company_of_quantities_does_not_show(variant):
    """Second-order quantities among others, in any order, change none of them."""
    names = ("velocity", "score", "log_density", "entropy", "velocity_variance", "divergence")
    for model in ("some_zero", "each"):
        field, x, _, _ = make(variant, model)
        together = field.evaluate(x, 0.4, names)
        backwards = field.evaluate(x, 0.4, names[::-1])
        for name in names:
            assert np.array_equal(together[name], backwards[name]), name
            alone = getattr(field, name)(x, 0.4)
            assert np.abs(alone - together[name]).max() <= 1e-12 * (1.0 + np.abs(alone).max()), name


@pytest.mark.parametrize("model", ["some_zero", "shared", "each", "source_points"])
@pytest.mark.parametrize("batch", [1, 5])
def test_threads_do_not_show(variant, model, batch):
    results = []
    for threads in (1, 2, 3):
        field, x, u, _ = make(variant, model, n=700, num_threads=threads)
        x, u = x[:batch], u[:batch]
        got = field.evaluate(x, 0.6, ("velocity", "score", "log_density", "divergence", "entropy"))
        got |= {name: getattr(field, name)(x, 0.6, u) for name in PRODUCTS}
        results.append(got)
    for other in results[1:]:
        for name, value in other.items():
            assert np.array_equal(value, results[0][name]), name


def test_nothing_is_modified_or_shared(variant):
    rng = np.random.default_rng(4)
    given = {
        "data": rng.standard_normal((9, 3)),
        "variance": rng.uniform(0.1, 1.0, 9),
        "covariance": spread_matrices(rng, 9, 3),
        "source_covariance": spread_matrices(rng, 1, 3)[0],
        "labels": np.arange(9) % 2,
        "x": rng.standard_normal((4, 3)),
        "u": rng.standard_normal((4, 3)),
        "label": np.array([0, 1, 1, 0]),
        "exclude": np.array([3, 8, 1, 0]),
        "subset": np.array([5, 1, 2, 3]),
    }
    before = {name: value.copy() for name, value in given.items()}
    for value in given.values():
        value.flags.writeable = False
    x, u, options = given["x"], given["u"], {"labels": given["labels"]}
    for spread in ("variance", "covariance"):
        for source in ({}, {"source_covariance": given["source_covariance"]}):
            field = variant.field(given["data"], **options, **source, **{spread: given[spread]})
            for which in (
                {},
                {"label": given["label"], "exclude": given["exclude"]},
                {"subset": given["subset"], "exclude": given["exclude"]},
            ):
                results = [getattr(field, name)(x, 0.4, u, **which) for name in PRODUCTS]
                results += [field.divergence(x, 0.4, **which), field.weights(x, 0.4, **which)]
                results += field.top_k(x, 0.4, 2, **which)
                for value in results:
                    assert not any(np.shares_memory(value, other) for other in given.values())
    for name, value in given.items():
        assert np.array_equal(value, before[name]), name


def test_a_change_of_the_callers_arrays_changes_nothing(variant):
    """Options are taken once; only the data themselves must be left alone."""
    rng = np.random.default_rng(5)
    data, x = rng.standard_normal((9, 3)), rng.standard_normal((4, 3))
    for name, value in (
        ("variance", rng.uniform(0.1, 1.0, 9)),
        ("covariance", spread_matrices(rng, 9, 3)),
        ("covariance", spread_matrices(rng, 1, 3)[0]),
        ("source_covariance", spread_matrices(rng, 1, 3)[0]),
        ("labels", np.arange(9) % 2),
    ):
        field = variant.field(data, **{name: value})
        which = {"label": 1} if name == "labels" else {}
        want = field.velocity(x, 0.4, **which)
        value[...] = 1
        assert np.array_equal(field.velocity(x, 0.4, **which), want), name


def test_merged_moments_of_points_that_differ(variant):
    """Parts whose largest variance is that of the whole merge to the whole."""
    rng = np.random.default_rng(6)
    data, variances, x = rng.standard_normal((12, 3)), rng.uniform(0.1, 1.0, 12), rng.standard_normal((5, 3))
    variances[[0, 6]] = 1.0
    whole = variant.field(data, variance=variances)
    names = ("velocity", "target_mean", "source_mean", "score", "log_density", "entropy", "effective_sample_size")
    for t in (0.0, 0.3, 0.9):
        parts = [variant.field(data[i::2], variance=variances[i::2]).moments(x, t).scaled(0.5) for i in range(2)]
        parts = [
            variant.field(data[i : i + 6], variance=variances[i : i + 6]).moments(x, t).scaled(0.5) for i in (0, 6)
        ]
        got = whole.finish(ff.merge(parts), x, t, names)
        for name, want in whole.evaluate(x, t, names).items():
            assert off(got[name], want) <= 1e-12, name
